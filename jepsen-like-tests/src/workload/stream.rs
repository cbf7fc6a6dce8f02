//! Workload F: WebSocket clients with names whose sessions are cut again and again and resumed on another node, while
//! messages are sent.

mod client;
mod session;

use std::sync::Arc;
use std::time::{Duration, Instant};

use agentpost::api::abbababa::SendRequest;
use agentpost::{Error, InboxQuery};
use anyhow::{Result, ensure};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::value::to_raw_value;

use self::client::{ReadBehaviour, StreamClient};
use super::load::{Load, StopFlag};
use super::message::message;
use super::send::{audit, pace};
use super::sender::MessageSender;
use crate::cluster::Team;
use crate::record::history::{Fields, Op, Outcome};
use crate::workload::context::ClientContext;

/// Inboxes that clients listen to.
const INBOXES: usize = 4;
/// Clients of each inbox.
const TAILS: usize = 4;
/// Senders.
const LANES: u64 = 4;
/// Messages per second at most: each is pushed at least [`TAILS`] times.
const RATE_MAX: u64 = 400;
/// Size of the messages to slow readers, large enough to fill socket buffers.
const LARGE_BYTES: usize = 16 * 1024;
/// Time limit for sending the last message.
const PATIENCE: Duration = Duration::from_secs(60);

/// The behaviour of the readers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mix {
    /// Fast readers that acknowledge now and then.
    Tails,
    /// Slow readers, and some that stop reading for longer than a node waits.
    Slow,
    /// Readers that acknowledge seqs that do not exist yet.
    Ahead,
    /// Fast readers, and clients that list the same inboxes with corrupted cursors.
    InvalidCursors,
}

impl Mix {
    fn name(self) -> &'static str {
        match self {
            Mix::Tails => "clients",
            Mix::Slow => "slow",
            Mix::Ahead => "ahead",
            Mix::InvalidCursors => "invalid-cursors",
        }
    }

    fn behaviour(self, number: usize) -> ReadBehaviour {
        match self {
            Mix::Tails | Mix::InvalidCursors => ReadBehaviour::Quick,
            Mix::Slow if number.is_multiple_of(TAILS) => ReadBehaviour::Starved,
            Mix::Slow => ReadBehaviour::Slow,
            Mix::Ahead => ReadBehaviour::Ahead,
        }
    }
}

/// Clients whose lanes have ended.
type Ended = Arc<Mutex<Vec<StreamClient>>>;

pub async fn start(mix: Mix, ctx: &ClientContext) -> Result<Load> {
    let team = ctx.team(&format!("stream-{}", mix.name()), None).await?;
    let inboxes: Vec<String> = (0..INBOXES).map(|n| format!("{}-{n}", mix.name())).collect();
    let ended = Ended::default();
    let (owner, listened, clients) = (team.clone(), inboxes.clone(), ended.clone());
    let mut load = Load::new(move |ctx| async move { conclude(&ctx, &owner, &listened, &clients).await });
    for (place, inbox) in inboxes.iter().enumerate() {
        for number in 0..TAILS {
            let client = StreamClient::new(ctx, &team, inbox, number, mix.behaviour(number));
            load.spawn(listen(client, load.stop(), ended.clone()));
        }
        if mix == Mix::InvalidCursors {
            load.spawn(spoil(ctx.clone(), team.clone(), inbox.clone(), load.stop()));
        }
        let bytes = if mix == Mix::Slow { LARGE_BYTES } else { 0 };
        let rate = if ctx.rate == 0 {
            RATE_MAX
        } else {
            ctx.rate.min(RATE_MAX)
        };
        let mut sender = MessageSender::new(ctx, &team);
        sender.rename(&format!("{}-sender-{place}", mix.name()))?;
        load.spawn(send(sender, inbox.clone(), bytes, pace(rate, LANES, 1), load.stop()));
    }
    Ok(load)
}

async fn send(mut sender: MessageSender, inbox: String, bytes: usize, gap: Duration, stop: StopFlag) -> Result<()> {
    for sent in 0.. {
        if stop.is_set() {
            break;
        }
        let began = Instant::now();
        let key = format!("{}-{sent}", sender.number());
        sender.send(&key, padded(&inbox, &key, bytes)?, &stop).await;
        tokio::time::sleep(gap.saturating_sub(began.elapsed())).await;
    }
    Ok(())
}

/// A message with a body of at least this many bytes.
fn padded(inbox: &str, key: &str, bytes: usize) -> Result<SendRequest> {
    let body = serde_json::json!({ "key": key, "more": "x".repeat(bytes) });
    Ok(SendRequest {
        body: Some(to_raw_value(&body)?),
        ..message(inbox, key)?
    })
}

async fn listen(mut client: StreamClient, stop: StopFlag, ended: Ended) -> Result<()> {
    while !stop.is_set() {
        client.session(&stop).await;
    }
    ended.lock().push(client);
    Ok(())
}

/// Lists pages with cursors in which one letter is wrong: none may be accepted as another position.
async fn spoil(ctx: ClientContext, team: Team, inbox: String, stop: StopFlag) -> Result<()> {
    let mut lane = ctx.recorder.lane();
    let mut random = StdRng::seed_from_u64(ctx.seed ^ u64::from(lane.number()) << 32);
    let mut cursor: Option<String> = None;
    while !stop.is_set() {
        let node = random.random_range(1..=ctx.nodes());
        let client = ctx.node(node, &team.key, &inbox)?;
        let query = client.inbox().limit(5);
        let onward = match &cursor {
            Some(cursor) => query.clone().cursor(cursor),
            None => query.clone(),
        };
        if let Ok(page) = onward.await {
            let spoilt = spoiled(&page.cursor, &mut random);
            let asked = Fields {
                id: Some("invalid-cursors".to_owned()),
                name: Some(inbox.clone()),
                from: Some(spoilt.clone()),
                ..Fields::default()
            };
            lane.invoke(Some(node), Op::Probe, "GET messages", asked);
            lane.end(probe(query.cursor(spoilt)).await);
            cursor = Some(page.cursor);
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(20..200))).await;
    }
    Ok(())
}

async fn probe(query: InboxQuery) -> Outcome {
    match query.await {
        Ok(page) => Outcome::Ok(Fields {
            cursor: Some(page.cursor),
            ..Fields::default()
        }),
        Err(Error::Refused(answer)) => Outcome::Fail(answer.to_string()),
        Err(error) => Outcome::Info(error.to_string()),
    }
}

/// Replaces one letter of a cursor; never the last, whose bits may be padding.
fn spoiled(cursor: &str, random: &mut StdRng) -> String {
    let mut letters: Vec<char> = cursor.chars().collect();
    let place = random.random_range(0..letters.len().saturating_sub(1).max(1));
    if let Some(letter) = letters.get_mut(place) {
        *letter = if *letter == 'A' { 'B' } else { 'A' };
    }
    letters.into_iter().collect()
}

/// Sends a last message to each inbox, lets every client read up to it, and audits the inboxes.
async fn conclude(ctx: &ClientContext, team: &Team, inboxes: &[String], ended: &Ended) -> Result<()> {
    let mut sender = MessageSender::new(ctx, team);
    sender.rename("the-end")?;
    let deadline = Instant::now() + PATIENCE;
    let mut ends = Vec::new();
    for inbox in inboxes {
        // Each attempt has a key of its own, because an earlier one may still be stored later.
        for attempt in 0.. {
            let key = format!("{}-{inbox}-{attempt}", sender.number());
            if sender.send(&key, message(inbox, &key)?, &StopFlag::default()).await {
                ends.push((inbox.clone(), key));
                break;
            }
            ensure!(
                Instant::now() < deadline,
                "the last message to {inbox} was not stored in time"
            );
        }
    }
    let clients = std::mem::take(&mut *ended.lock());
    let reading = clients.into_iter().map(|mut client| {
        let end = ends.iter().find(|(inbox, _)| *inbox == client.inbox);
        async move {
            if let Some((_, key)) = end {
                client.read_up_to(key).await;
            }
        }
    });
    futures::future::join_all(reading).await;
    audit(ctx, team, inboxes).await
}
