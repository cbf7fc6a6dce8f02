//! One WebSocket client with a name: its sessions, one after the other.

use std::time::{Duration, Instant};

use anyhow::Result;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::timeout;

use super::session::{MailFrame, Session};
use crate::cluster::Team;
use crate::record::history::{Fields, Item, Lane, Op, Outcome};
use crate::workload::context::ClientContext;
use crate::workload::load::StopFlag;

/// Frames that are recorded as one operation at most.
const FRAMES: usize = 64;
/// A frame that arrives within this time belongs to the same operation as those before it.
const SOON: Duration = Duration::from_millis(20);
/// Length of a session in milliseconds.
const LIFE_MS: std::ops::Range<u64> = 200..3_000;
/// How long a client stops reading: nodes wait 30 s.
const STARVED: Duration = Duration::from_secs(40);
/// How far a client acknowledges ahead of the newest seq.
const AHEAD: u64 = 1_000_000;
/// Time limit for reading the rest after healing.
const PATIENCE: Duration = Duration::from_secs(60);

/// The behaviour of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadBehaviour {
    /// Reads at once.
    Quick,
    /// Takes some time for each event.
    Slow,
    /// Reads a little and then stops for long.
    Starved,
    /// Sometimes acknowledges more than it received.
    Ahead,
}

pub struct StreamClient {
    /// The agent whose messages it receives.
    pub inbox: String,
    ctx: ClientContext,
    team: Team,
    client: String,
    behaviour: ReadBehaviour,
    lane: Lane,
    random: StdRng,
    sessions: u64,
    /// The client acknowledges one in this many frames.
    acks: u32,
}

impl StreamClient {
    /// Creates a client that has not connected yet.
    pub fn new(ctx: &ClientContext, team: &Team, inbox: &str, number: usize, behaviour: ReadBehaviour) -> Self {
        let lane = ctx.recorder.lane();
        StreamClient {
            inbox: inbox.to_owned(),
            random: StdRng::seed_from_u64(ctx.seed ^ u64::from(lane.number()) << 32),
            client: format!("{inbox}-client-{number}"),
            ctx: ctx.clone(),
            team: team.clone(),
            behaviour,
            lane,
            sessions: 0,
            acks: [1, 10, 50, 200][number % 4],
        }
    }

    /// Runs one session on a random node, until it breaks, has lasted long enough, or `stop` is set.
    pub async fn session(&mut self, stop: &StopFlag) {
        let Some((node, mut session)) = self.open().await else {
            return;
        };
        let life = Duration::from_millis(self.random.random_range(LIFE_MS));
        let starved = self.behaviour == ReadBehaviour::Starved && self.random.random_bool(0.5);
        let until = Instant::now() + life;
        while !stop.is_set() && Instant::now() < until {
            if self.read(node, &mut session, until).await.is_err() {
                return;
            }
        }
        if starved {
            rest(STARVED, stop).await;
            // Reads what is left in the buffers, until the node's error arrives.
            let until = Instant::now() + life;
            while Instant::now() < until && self.read(node, &mut session, until).await.is_ok() {}
        }
        if self.random.random_bool(0.5) {
            session.close().await;
        }
    }

    /// Runs sessions until the message with this key has arrived, or the time limit is over.
    pub async fn read_up_to(&mut self, key: &str) {
        let deadline = Instant::now() + PATIENCE;
        self.behaviour = ReadBehaviour::Quick;
        while Instant::now() < deadline {
            let Some((node, mut session)) = self.open().await else {
                continue;
            };
            while let Ok(items) = self.read(node, &mut session, deadline).await {
                if items.iter().any(|item| item.key == key) {
                    return session.close().await;
                }
                if Instant::now() >= deadline {
                    break;
                }
            }
        }
    }

    async fn open(&mut self) -> Option<(usize, Session)> {
        let node = self.random.random_range(1..=self.ctx.nodes());
        let narrow = matches!(self.behaviour, ReadBehaviour::Slow | ReadBehaviour::Starved);
        let url = &self.ctx.urls[node - 1];
        match Session::open(url, &self.team, &self.inbox, &self.client, narrow).await {
            Ok(session) => {
                self.sessions += 1;
                Some((node, session))
            }
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(self.random.random_range(50..300))).await;
                None
            }
        }
    }

    /// Records the next frames that arrive together and acknowledges some; an error when the session is over.
    async fn read(&mut self, node: usize, session: &mut Session, until: Instant) -> Result<Vec<Item>> {
        let asked = Fields {
            name: Some(self.client.clone()),
            seq: Some(session.last_seq),
            n: Some(self.sessions),
            ..Fields::default()
        };
        self.lane.invoke(Some(node), Op::Frame, &self.inbox, asked.clone());
        let mut fields = Fields::default();
        let mut broken = None;
        let mut patience = until.saturating_duration_since(Instant::now());
        while fields.items.len() < FRAMES
            && fields.n.is_none()
            && let Ok(frame) = timeout(patience, session.next()).await
        {
            match frame {
                Ok(MailFrame::Message(item, to)) => {
                    if to != self.inbox {
                        fields.name = Some(format!("{} is for {to}", item.id));
                    }
                    fields.items.push(item);
                }
                Ok(MailFrame::Expired(oldest)) => fields.n = Some(oldest),
                Err(error) => {
                    broken = Some(error);
                    break;
                }
            }
            if self.behaviour == ReadBehaviour::Slow {
                tokio::time::sleep(Duration::from_millis(self.random.random_range(1..50))).await;
            }
            patience = SOON;
        }
        let items = fields.items.clone();
        if let Some(error) = broken {
            if !items.is_empty() {
                self.lane.end(Outcome::Ok(fields));
                self.lane.invoke(Some(node), Op::Frame, &self.inbox, asked);
            }
            self.lane.end(Outcome::Info(format!("{error:#}")));
            return Err(error);
        }
        self.lane.end(Outcome::Ok(fields));
        self.acknowledge(node, session, &items).await?;
        Ok(items)
    }

    async fn acknowledge(&mut self, node: usize, session: &mut Session, items: &[Item]) -> Result<()> {
        for seq in items.iter().filter_map(|item| item.seq) {
            if !self.random.random_ratio(1, self.acks) {
                continue;
            }
            let ahead = self.behaviour == ReadBehaviour::Ahead && self.random.random_bool(0.1);
            let seq = if ahead { seq + AHEAD } else { seq };
            let asked = Fields {
                name: Some(self.client.clone()),
                seq: Some(seq),
                n: Some(self.sessions),
                ..Fields::default()
            };
            self.lane.invoke(Some(node), Op::FrameAck, &self.inbox, asked);
            let sent = session.ack(seq).await;
            self.lane.end(match &sent {
                Ok(()) => Outcome::Ok(Fields::default()),
                Err(error) => Outcome::Info(error.to_string()),
            });
            sent?;
        }
        Ok(())
    }
}

async fn rest(time: Duration, stop: &StopFlag) {
    let until = Instant::now() + time;
    while Instant::now() < until && !stop.is_set() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
