//! The behaviour of the published clients (kite-wire.md, section 5) as scripts.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentpost_testkit::socket::{Connect, Socket};
use rand::RngExt as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_tungstenite::tungstenite::Message;

use super::storm::Storm;
use crate::common::eventually;

/// What a client received, session by session.
#[derive(Default)]
struct Journal {
    sessions: Vec<Session>,
    seen: BTreeSet<u64>,
    /// The events in the order in which each was first received.
    first: Vec<u64>,
    /// The highest seq that it acknowledged, read or not.
    claimed: u64,
}

#[derive(Default)]
struct Session {
    start: u64,
    seqs: Vec<u64>,
}

/// A scripted client.
struct Client {
    storm: Arc<Storm>,
    kind: Kind,
    rng: StdRng,
    journal: Arc<Mutex<Journal>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// v0.2.0: it never acknowledges, but answers pings.
    Old,
    /// The vendor's test rig: it acknowledges every frame with its own counter.
    Rig,
    /// It does not read the socket while its handler runs, and never acknowledges.
    Busy,
    /// The current client: it acknowledges each event after its handler.
    Cli,
    /// The current client as `kite stream --client-id` with the scope `*`.
    Stream,
}

impl Kind {
    const ALL: [Kind; 5] = [Kind::Old, Kind::Rig, Kind::Busy, Kind::Cli, Kind::Stream];

    /// The agent whose messages it reads; `None` for all agents.
    fn agent(self) -> Option<&'static str> {
        match self {
            Kind::Old => Some("old"),
            Kind::Rig => Some("rig"),
            Kind::Busy => Some("busy"),
            Kind::Cli => Some("cli"),
            Kind::Stream => None,
        }
    }

    fn client_id(self) -> Option<&'static str> {
        (self == Kind::Stream).then_some("laptop")
    }
}

/// The clients of a storm.
pub struct Running {
    tasks: Vec<JoinHandle<()>>,
    journals: Vec<(Kind, Arc<Mutex<Journal>>)>,
    answers: Arc<Mutex<usize>>,
}

/// Starts one client of each kind and waits until they are connected.
pub async fn start_all(storm: &Arc<Storm>) -> Running {
    let (mut tasks, mut journals) = (Vec::new(), Vec::new());
    for (at, kind) in Kind::ALL.into_iter().enumerate() {
        let journal = Arc::<Mutex<Journal>>::default();
        journals.push((kind, Arc::clone(&journal)));
        let client = Client {
            storm: Arc::clone(storm),
            kind,
            rng: storm.rng(at as u64 + 50),
            journal,
        };
        tasks.push(tokio::spawn(client.live()));
    }
    let answers = Arc::<Mutex<usize>>::default();
    tasks.push(tokio::spawn(manage(Arc::clone(storm), Arc::clone(&answers))));
    eventually("connected clients", async || {
        let connected = |(_, journal): &(Kind, Arc<Mutex<Journal>>)| !journal.lock().unwrap().sessions.is_empty();
        journals.iter().all(connected).then_some(())
    })
    .await;
    Running {
        tasks,
        journals,
        answers,
    }
}

impl Running {
    /// Waits until every client has all its messages, then checks their journals.
    pub async fn finish(self, storm: &Storm) {
        for (kind, journal) in &self.journals {
            let mail = storm.mail(kind.agent()).await;
            assert!(mail.len() > 50, "{kind:?} got {} messages", mail.len());
            eventually(&format!("all mail of {kind:?}"), async || {
                let journal = journal.lock().unwrap();
                let has = |seq: &u64| journal.seen.contains(seq) || *seq <= journal.excused(*kind);
                mail.iter().all(has).then_some(())
            })
            .await;
            journal.lock().unwrap().check(*kind, &mail);
        }
        storm.over.cancel();
        for task in self.tasks {
            task.await.unwrap();
        }
        assert!(*self.answers.lock().unwrap() > 10);
    }
}

impl Journal {
    fn begin(&mut self, start: u64) {
        self.sessions.push(Session {
            start,
            seqs: Vec::new(),
        });
    }

    fn event(&mut self, seq: u64) {
        self.sessions.last_mut().unwrap().seqs.push(seq);
        if self.seen.insert(seq) {
            self.first.push(seq);
        }
    }

    /// The seq up to which a client may miss events, because it acknowledged events that it had not read.
    fn excused(&self, kind: Kind) -> u64 {
        if kind == Kind::Rig { self.claimed } else { 0 }
    }

    fn check(&self, kind: Kind, mail: &[u64]) {
        for Session { start, seqs } in &self.sessions {
            let expected = mail.iter().copied().filter(|seq| seq > start).take(seqs.len());
            assert_eq!(
                *seqs,
                expected.collect::<Vec<_>>(),
                "{kind:?} after {start}: no gap, in order"
            );
        }
        assert!(self.first.is_sorted(), "{kind:?}: first sightings in order");
        let stray = self.seen.iter().filter(|seq| mail.binary_search(seq).is_err());
        assert_eq!(stray.count(), 0, "{kind:?} saw mail of others");
        let events: usize = self.sessions.iter().map(|session| session.seqs.len()).sum();
        let (sessions, once) = (self.sessions.len(), self.seen.len());
        eprintln!(
            "{kind:?}: {once} of {} events, {} repeats, {sessions} sessions",
            mail.len(),
            events - once
        );
    }
}

impl Client {
    /// Runs until the storm is over.
    async fn live(mut self) {
        let over = self.storm.over.clone();
        over.run_until_cancelled(async {
            loop {
                match self.connect().await {
                    Some(socket) => self.session(socket).await,
                    None => sleep(Duration::from_millis(100)).await,
                }
            }
        })
        .await;
    }

    /// Tries to connect once, to any node.
    async fn connect(&mut self) -> Option<Socket> {
        let (agent, client_id) = (self.kind.agent().unwrap_or_default(), self.kind.client_id());
        // Events up to the stored cursor must not come again.
        let stored = self.storm.stored(agent, client_id.unwrap_or_default()).await;
        let scope = self
            .kind
            .agent()
            .map_or("*".to_owned(), |agent| format!("agent_to:{agent}"));
        let request = Connect {
            key: &self.storm.team.key,
            team: &self.storm.team.id,
            scopes: &[&scope],
            client_id,
        };
        let url = self.storm.door(self.rng.random_range(0..3));
        let (socket, last_seq) = greet(&url, request).await?;
        assert!(
            last_seq >= stored.unwrap_or_default(),
            "{:?}: acked mail comes again",
            self.kind
        );
        self.journal.lock().unwrap().begin(last_seq);
        Some(socket)
    }

    async fn session(&mut self, mut socket: Socket) {
        let mut pings = interval(Duration::from_millis(300));
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let frame = tokio::select! {
                frame = socket.frame_or_ending() => frame,
                _ = pings.tick(), if self.kind == Kind::Rig => {
                    socket.try_say(Message::Ping("rig".into())).await;
                    continue;
                }
            };
            let Some(frame) = frame else {
                return may_return(&socket);
            };
            if frame["type"] == "event" {
                let seq = frame["seq"].as_u64().unwrap();
                assert_eq!(frame["event"]["kiteseq"], seq);
                self.journal.lock().unwrap().event(seq);
                if !self.handle(&mut socket, seq).await {
                    return socket.cut();
                }
            }
            if self.kind == Kind::Rig {
                let claimed = {
                    let mut journal = self.journal.lock().unwrap();
                    journal.claimed += 1;
                    journal.claimed
                };
                socket.try_say(ack(claimed)).await;
            }
        }
    }

    /// Handles an event; returns false if the client disconnects.
    async fn handle(&mut self, socket: &mut Socket, seq: u64) -> bool {
        let storming = !self.storm.is_calm();
        match self.kind {
            Kind::Old | Kind::Rig => !(storming && self.rng.random_bool(0.02)),
            Kind::Busy => {
                if storming && self.rng.random_bool(0.1) {
                    // This is longer than many pings, and sometimes longer than the age at which a ping counts as an
                    // acknowledgement.
                    sleep(Duration::from_millis(self.rng.random_range(500..2_500))).await;
                }
                !(storming && self.rng.random_bool(0.05))
            }
            Kind::Cli | Kind::Stream => {
                sleep(Duration::from_millis(self.rng.random_range(0..5))).await;
                // The handler fails: the client does not acknowledge, and reconnects.
                if storming && self.rng.random_bool(0.03) {
                    return false;
                }
                socket.try_say(ack(seq)).await;
                true
            }
        }
    }
}

fn ack(seq: u64) -> Message {
    Message::text(json!({ "type": "ack", "seq": seq }).to_string())
}

/// Connects and returns `last_seq` too; `None` if this node refuses for now.
async fn greet(url: &str, request: Connect<'_>) -> Option<(Socket, u64)> {
    let mut socket = Socket::try_open(url, None).await.ok()?;
    let frame = request.frame().to_string();
    socket.try_say(Message::text(frame)).await;
    let Some(connected) = socket.frame_or_ending().await else {
        may_return(&socket);
        return None;
    };
    assert_eq!(connected["type"], "connected", "{connected}");
    let last_seq = connected["last_seq"].as_u64().unwrap();
    Some((socket, last_seq))
}

/// Asserts that the cluster's faults are not reported as the client's: 4001 is final for the vendor's clients.
fn may_return(socket: &Socket) {
    let error = socket.ended().error;
    assert!(matches!(error, None | Some(4003 | 4004)), "ended with {error:?}");
}

/// Management commands: each request has its own socket with the scope `*`, skips events and waits for its answer.
async fn manage(storm: Arc<Storm>, answers: Arc<Mutex<usize>>) {
    let mut rng = storm.rng(60);
    let over = storm.over.clone();
    over.run_until_cancelled(async {
        loop {
            let method = ["events.recent", "dashboard.stats", "keys.list"][rng.random_range(0..3)];
            if request(&storm, &storm.door(rng.random_range(0..3)), method)
                .await
                .is_some()
            {
                *answers.lock().unwrap() += 1;
            }
            sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
}

/// Makes one request; `None` if the node goes away meanwhile.
async fn request(storm: &Storm, url: &str, method: &str) -> Option<Value> {
    let everything = Connect {
        key: &storm.team.key,
        team: &storm.team.id,
        scopes: &["*"],
        client_id: None,
    };
    let (mut socket, last_seq) = greet(url, everything).await?;
    let ask = json!({ "type": "request", "id": "only", "method": method, "params": { "limit": 3 } });
    socket.try_say(Message::text(ask.to_string())).await;
    loop {
        let frame = socket.frame_or_ending().await?;
        match frame["type"].as_str().unwrap() {
            "response" => {
                assert_eq!(frame["id"], "only");
                return Some(frame);
            }
            "event" => assert!(frame["seq"].as_u64().unwrap() > last_seq, "a replay: {frame}"),
            _ => {}
        }
    }
}
