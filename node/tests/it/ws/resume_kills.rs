//! Readers that reconnect to three nodes that die and restart, while messages expire. `resume_model` checks the decisions
//! alone; these few seeded runs check them with sockets, disks and elections.

use std::collections::BTreeSet;
use std::time::Duration;

use agentpost_node::base::clock::Clock;
use agentpost_proto::command::operation::Op;
use agentpost_proto::command::{BodyKind, Operation, Send, Sweep, reply};
use agentpost_raft_store::core::query;
use agentpost_testkit::socket::{Connect, Socket};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::Value;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message;

use crate::common::{TestCluster, TestTeam, eventually};

const STEPS: usize = 150;
const AGENTS: [&str; 2] = ["a", "b"];
/// Lifetime of a message that expires.
const EXPIRES_MS: u64 = 500;
/// How long a reader waits for its next frame.
const PAUSE: Duration = Duration::from_millis(150);

#[tokio::test(flavor = "multi_thread")]
async fn readers_miss_nothing_while_nodes_die_1() {
    Run::start(1).await.whole().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_miss_nothing_while_nodes_die_2() {
    Run::start(2).await.whole().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_miss_nothing_while_nodes_die_3() {
    Run::start(3).await.whole().await;
}

#[derive(Debug)]
struct Mail {
    seq: u64,
    to: &'static str,
    expires_at_ms: u64,
}

/// One client over all its sessions.
struct Reader {
    scope: &'static str,
    client_id: Option<&'static str>,
    /// The agent whose messages it must see; `None` for all agents.
    agent: Option<&'static str>,
    acks: bool,
    socket: Option<Socket>,
    /// The seq at which its first session began.
    origin: Option<u64>,
    /// In this session: the newest event or the start, and the seq up to which losses were told.
    last: u64,
    told: u64,
    have: BTreeSet<u64>,
    /// The seq up to which losses were told in any session.
    ever_told: u64,
    /// The last known position of its cursor.
    cursor: u64,
}

struct Run {
    cluster: TestCluster,
    team: TestTeam,
    rng: StdRng,
    sent: Vec<Mail>,
    readers: Vec<Reader>,
    down: Option<usize>,
    losses: usize,
}

fn reader(scope: &'static str, client_id: Option<&'static str>, acks: bool) -> Reader {
    Reader {
        scope,
        client_id,
        agent: scope.strip_prefix("agent_to:"),
        acks,
        socket: None,
        origin: None,
        last: 0,
        told: 0,
        have: BTreeSet::new(),
        ever_told: 0,
        cursor: 0,
    }
}

impl Run {
    async fn start(seed: u64) -> Self {
        let cluster = TestCluster::start(3).await;
        let team = cluster.team("kills").await;
        Run {
            cluster,
            team,
            rng: StdRng::seed_from_u64(seed),
            sent: Vec::new(),
            readers: vec![
                reader("agent_to:a", None, true),
                reader("agent_to:b", None, false),
                reader("agent_to:a", Some("phone"), true),
                reader("*", Some("archive"), true),
            ],
            down: None,
            losses: 0,
        }
    }

    async fn whole(mut self) {
        for _ in 0..STEPS {
            match self.rng.random_range(0..100) {
                0..35 => self.send().await,
                35..50 => self.open().await,
                50..85 => self.read().await,
                85..90 => self.cut(),
                90..94 => self.expire().await,
                _ => self.fault().await,
            }
        }
        self.finish().await;
    }

    fn node(&mut self) -> usize {
        let running = self.cluster.running();
        running[self.rng.random_range(0..running.len())]
    }

    fn reader(&mut self) -> usize {
        self.rng.random_range(0..self.readers.len())
    }

    /// Sends a message and repeats it until it is accepted.
    async fn send(&mut self) {
        let to = AGENTS[self.rng.random_range(0..AGENTS.len())];
        let number = self.sent.len();
        let expires_at_ms = match self.rng.random_bool(0.3) {
            true => Clock::system().wall_ms() + EXPIRES_MS,
            false => 0,
        };
        let seq = eventually("a send that succeeds", async || {
            let node = self.node();
            let services = self.cluster.services(node);
            let operation = Operation {
                principal: Some(self.team.principal()),
                op: Some(Op::Send(Send {
                    message_id: services.ids.message_id().to_bytes(),
                    from: "sender".to_owned(),
                    to: to.to_owned(),
                    r#type: "note".to_owned(),
                    body_kind: BodyKind::Text as i32,
                    body: number.to_string().into(),
                    idempotency_key: number.to_string(),
                    expires_at_ms,
                    ..Send::default()
                })),
            };
            match services.proposer.propose(operation).await.ok()?.reply? {
                reply::Reply::Send(sent) => Some(sent.seq),
                other => panic!("{other:?}"),
            }
        })
        .await;
        self.sent.push(Mail { seq, to, expires_at_ms });
    }

    /// A reader connects to any node.
    async fn open(&mut self) {
        let (at, node) = (self.reader(), self.node());
        self.connect(at, node).await;
    }

    async fn connect(&mut self, at: usize, node: usize) {
        if self.readers[at].socket.is_some() {
            return;
        }
        let stored = self.stored(at).await;
        let reader = &mut self.readers[at];
        let request = Connect {
            key: &self.team.key,
            team: &self.team.id.to_string(),
            scopes: &[reader.scope],
            client_id: reader.client_id,
        };
        let Ok(mut socket) = Socket::try_open(&self.cluster.url(node), None).await else {
            return;
        };
        socket.try_say(Message::text(request.frame().to_string())).await;
        let Some(connected) = socket.frame_or_ending().await else {
            assert!(
                matches!(socket.ended().error, None | Some(4003)),
                "{:?}",
                socket.ended()
            );
            return;
        };
        assert_eq!(connected["type"], "connected", "{connected}");
        let start = connected["last_seq"].as_u64().unwrap();
        assert!(start >= stored, "acked mail comes again");
        let origin = *reader.origin.get_or_insert(start);
        for mail in self.sent.iter().filter(|mail| origin < mail.seq && mail.seq <= start) {
            let lost = mail.expires_at_ms != 0 && mail.seq <= reader.ever_told;
            let has = reader.have.contains(&mail.seq) || lost || !reader.wants(mail);
            assert!(has, "the cursor of {} passed {mail:?}", reader.scope);
        }
        (reader.last, reader.told, reader.socket) = (start, 0, Some(socket));
    }

    /// A lower bound of a reader's cursor, which never goes back.
    async fn stored(&mut self, at: usize) -> u64 {
        let services = self.cluster.services(self.cluster.running()[0]);
        let reader = &mut self.readers[at];
        if let Some(state) = services.fresh_state().await {
            let agent = reader.agent.filter(|_| reader.client_id.is_none()).unwrap_or_default();
            let client_id = reader.client_id.unwrap_or_default();
            let row = query::inbox::cursor(&*state, self.team.id, agent, client_id).unwrap();
            let seq = row.map_or(0, |row| row.seq);
            assert!(seq >= reader.cursor, "the cursor of {} went back", reader.scope);
            reader.cursor = seq;
        }
        reader.cursor
    }

    /// A reader reads some events and acknowledges some of them.
    async fn read(&mut self) {
        let at = self.reader();
        let count = self.rng.random_range(1..10);
        let acked = self.rng.random_range(0..count);
        for n in 0..count {
            if !self.take(at, PAUSE).await {
                return;
            }
            let reader = &mut self.readers[at];
            if let (true, true, Some(socket)) = (reader.acks, n == acked, &mut reader.socket) {
                let ack = serde_json::json!({ "type": "ack", "seq": reader.last });
                socket.try_say(Message::text(ack.to_string())).await;
            }
        }
    }

    /// Reads one frame; returns whether there was one.
    async fn take(&mut self, at: usize, within: Duration) -> bool {
        let reader = &mut self.readers[at];
        let Some(socket) = &mut reader.socket else { return false };
        let Ok(frame) = timeout(within, socket.frame_or_ending()).await else {
            return false;
        };
        let Some(frame) = frame else {
            let error = socket.ended().error;
            assert!(matches!(error, None | Some(4003)), "{error:?}");
            reader.socket = None;
            return false;
        };
        match frame["type"].as_str().unwrap() {
            "event" => reader.event(&self.sent, &frame),
            "cursor_expired" => {
                self.losses += 1;
                reader.told = up_to(&frame);
                reader.ever_told = reader.ever_told.max(reader.told);
            }
            other => assert_eq!(other, "quota_snapshot"),
        }
        true
    }

    fn cut(&mut self) {
        let at = self.reader();
        self.readers[at].socket = None;
    }

    /// Waits until all expired messages are removed.
    async fn expire(&mut self) {
        let last_ms = self
            .sent
            .iter()
            .map(|mail| mail.expires_at_ms)
            .max()
            .unwrap_or_default();
        eventually("a sweep of what expired", async || {
            let services = self.cluster.services(self.cluster.leader().await);
            let sweep = Operation {
                principal: None,
                op: Some(Op::Sweep(Sweep::default())),
            };
            services.proposer.propose(sweep).await.ok()?;
            let state = services.fresh_state().await?;
            let wall_ms = query::applied(&*state).unwrap().wall_ms;
            let is_left = |mail: &Mail| {
                mail.expires_at_ms != 0
                    && query::inbox::message_at(&*state, self.team.id, mail.seq)
                        .unwrap()
                        .is_some()
            };
            (wall_ms > last_ms && !self.sent.iter().any(is_left)).then_some(())
        })
        .await;
    }

    /// Stops or kills a node, restarts the one that is down, or transfers leadership.
    async fn fault(&mut self) {
        if let Some(node) = self.down.take() {
            return self.cluster.restart(node).await;
        }
        let leader = self.cluster.leader().await;
        let node = self.rng.random_range(0..3);
        match self.rng.random_range(0..3) {
            0 => {
                let _ = self.cluster.services(leader).cluster.transfer(node as u64 + 1).await;
                return;
            }
            1 => self.cluster.stop_node(node).await,
            _ => self.cluster.kill(node).await,
        }
        self.down = Some(node);
    }

    /// Restarts the node that is down and lets every reader read to the end.
    async fn finish(&mut self) {
        if let Some(node) = self.down.take() {
            self.cluster.restart(node).await;
        }
        self.expire().await;
        for at in 0..self.readers.len() {
            self.readers[at].socket = None;
            for turn in 0.. {
                let reader = &self.readers[at];
                let wanted = |mail: &&Mail| mail.expires_at_ms == 0 && reader.wants(mail);
                let after = reader.origin.unwrap_or_default();
                let missing = self
                    .sent
                    .iter()
                    .filter(wanted)
                    .any(|mail| mail.seq > after && !reader.have.contains(&mail.seq));
                if !missing && reader.origin.is_some() {
                    break;
                }
                assert!(turn < 1_000, "{} does not get its mail", reader.scope);
                self.connect(at, turn % 3).await;
                if !self.take(at, PAUSE).await {
                    sleep(PAUSE).await;
                }
            }
        }
        let (sent, losses) = (self.sent.len(), self.losses);
        eprintln!("{sent} messages, {losses} losses told");
        assert!(sent > 20 && losses > 0);
    }
}

impl Reader {
    fn wants(&self, mail: &Mail) -> bool {
        self.agent.is_none_or(|agent| agent == mail.to)
    }

    fn event(&mut self, sent: &[Mail], frame: &Value) {
        let seq = frame["seq"].as_u64().unwrap();
        assert!(seq > self.last, "{} got {seq} after {}", self.scope, self.last);
        let number: usize = frame["event"]["data"]["body"].as_str().unwrap().parse().unwrap();
        let mail = &sent[number];
        assert_eq!((mail.seq, Some(mail.to)), (seq, frame["event"]["data"]["to"].as_str()));
        assert!(self.wants(mail), "{} got mail of {}", self.scope, mail.to);
        for passed in sent.iter().filter(|mail| self.last < mail.seq && mail.seq < seq) {
            let lost = passed.expires_at_ms != 0 && passed.seq <= self.told;
            assert!(lost || !self.wants(passed), "{} missed {passed:?}", self.scope);
        }
        self.last = seq;
        self.have.insert(seq);
    }
}

/// The seq up to which events may be gone, according to a `cursor_expired`.
fn up_to(frame: &Value) -> u64 {
    let message = frame["message"].as_str().unwrap();
    let number = message.trim_start_matches("events up to ").split(' ').next();
    number.unwrap().parse().unwrap()
}
