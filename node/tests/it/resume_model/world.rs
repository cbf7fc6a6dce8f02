//! The sessions of the model, their clients, and the steps of a history.

use std::collections::VecDeque;
use std::time::Duration;

use agentpost_node::server::ws::ack::{Mark, Proof};
use agentpost_node::server::ws::feed::Feed;
use agentpost_node::server::ws::progress::Progress;
use agentpost_node::server::ws::resume::{CursorName, Request, Rows};
use agentpost_node::server::ws::scope::{narrow, parse_requested};
use agentpost_proto::command::operation::Op;
use agentpost_proto::command::{AckCursors, CursorAck, MarkRead, Send, Tick, Unsubscribe};
use agentpost_proto::id::AgentId;
use agentpost_proto::limits;
use agentpost_raft_store::core::query;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use serde_json::Value;
use tokio::time::Instant;

use super::cluster::{Cluster, member, team};
use super::oracle::{Oracle, Sent, agent, sender};
use super::steps::{BOUNDED, Manner, Proposal, SOURCE_PREFIX, SUBSCRIPTIONS, Stage, Step, Subscription, TOPIC};
use agentpost_testkit::commands::{message_id, publish, send, subscribe};

type Checked = Result<(), TestCaseError>;

/// Age from which an answered ping acknowledges an event.
const IMPLIED_AFTER: Duration = Duration::from_secs(60);
const TOUCH_EVERY: Duration = Duration::from_millis(limits::CURSOR_TOUCH_MS);
/// Lifetime of a message that expires.
const EXPIRES_MS: u64 = 30_000;

/// A frame on the way to the client.
enum Down {
    Event(u64),
    /// `cursor_expired`: events up to this seq may be gone.
    Expired(u64),
    Ping(Vec<u8>),
}

/// A frame on the way to the node.
enum Up {
    Ack(u64),
    Pong(Vec<u8>),
}

struct Session {
    subscription: &'static Subscription,
    node: usize,
    manner: Manner,
    cursor: Option<CursorName>,
    feed: Feed,
    progress: Progress,
    start: u64,
    /// Events written to the socket.
    written: Vec<u64>,
    /// The seq up to which losses were told.
    told: u64,
    down: VecDeque<Down>,
    up: VecDeque<Up>,
    /// Events that the client has read in this session.
    read: Vec<u64>,
}

pub struct World {
    stage: Stage,
    cluster: Cluster,
    oracle: Oracle,
    sessions: Vec<Session>,
    now: Instant,
}

impl World {
    pub fn new(stage: Stage) -> Self {
        let mut world = World {
            stage,
            cluster: Cluster::new(),
            oracle: Oracle::default(),
            sessions: Vec::new(),
            now: Instant::now(),
        };
        world.oracle.subscribed = [agent(0), agent(1)].into();
        world
    }

    pub fn step(&mut self, step: Step) -> Checked {
        let sessions = self.sessions.len();
        let of = |session: usize| (sessions > 0).then(|| session % sessions);
        let nodes = self.stage.nodes;
        match step {
            Step::Send { from, to, expires } => self.send(sender(from), Some(agent(to)), expires),
            Step::Publish { from, expires } => self.send(sender(from), None, expires),
            Step::Subscribe { agent: n, on } => self.subscribe(agent(n), on),
            Step::MarkRead { agent: n, nth } => self.mark_read(agent(n), nth),
            Step::Connect {
                subscription,
                node,
                manner,
                meanwhile,
            } => {
                let on = &self.stage.subscriptions;
                let subscription = &SUBSCRIPTIONS[on[subscription % on.len()]];
                self.connect(subscription, node % nodes, manner, meanwhile)
            }
            Step::Cut { session, heard } => match of(session) {
                Some(at) if heard => self.hear(at).map(|()| drop(self.sessions.remove(at))),
                Some(at) => {
                    self.sessions.remove(at);
                    Ok(())
                }
                None => Ok(()),
            },
            Step::Deliver { session } => of(session).map_or(Ok(()), |at| self.deliver(at).map(drop)),
            Step::Read { session, count } => {
                if let Some(at) = of(session) {
                    self.read(at, count);
                }
                Ok(())
            }
            Step::Ack { session, ago, number } => {
                if let Some(at) = of(session) {
                    self.sessions[at].ack(ago, number);
                }
                Ok(())
            }
            Step::Hear { session } => of(session).map_or(Ok(()), |at| self.hear(at)),
            Step::Ping { session } => {
                if let Some(at) = of(session) {
                    self.ping(at);
                }
                Ok(())
            }
            Step::Exchange { session } => of(session).map_or(Ok(()), |at| {
                while self.deliver(at)? {}
                self.ping(at);
                self.read(at, usize::MAX);
                self.hear(at)
            }),
            Step::Look { session } => {
                if let Some(at) = of(session) {
                    self.look(at);
                }
                Ok(())
            }
            Step::Propose { node, proposal } => self.propose(node % nodes, proposal),
            Step::CatchUp { node, count } => {
                self.cluster.catch_up(node % nodes, count);
                Ok(())
            }
            Step::Pass { ms } => self.pass(ms),
            Step::Sweep => self.sweep(),
            Step::Kill { node, behind } => {
                let node = node % nodes;
                self.sessions.retain(|session| session.node != node);
                self.oracle.forget_heard(node);
                self.cluster.kill(node, behind);
                Ok(())
            }
        }
    }

    /// Sends to one agent or to the topic.
    fn send(&mut self, from: &'static str, to: Option<&'static str>, expires: bool) -> Checked {
        let id = format!("m{}", self.oracle.sent.len());
        let message = match to {
            Some(to) => send(&id, from, to),
            None => publish(&id, from, TOPIC),
        };
        let expires_at_ms = if expires { self.cluster.wall_ms + EXPIRES_MS } else { 0 };
        let seq = self.cluster.send(Send {
            body: id.clone().into(),
            body_kind: agentpost_proto::command::BodyKind::Text as i32,
            expires_at_ms,
            ..message
        });
        let receivers = match to {
            Some(to) => [to].into(),
            None => self.oracle.subscribed.clone(),
        };
        let to = to.map_or_else(|| format!("topic:{TOPIC}"), str::to_owned);
        self.oracle.sent.push(Sent {
            seq,
            from,
            to,
            receivers,
            id,
        });
        self.appended(&[])
    }

    fn subscribe(&mut self, agent: &'static str, on: bool) -> Checked {
        if on == self.oracle.subscribed.contains(agent) {
            return Ok(());
        }
        if on {
            self.cluster.apply(member(), Op::Subscribe(subscribe(agent, TOPIC)));
            self.oracle.subscribed.insert(agent);
        } else {
            let op = Unsubscribe {
                agent: agent.to_owned(),
                topic: TOPIC.to_owned(),
            };
            self.cluster.apply(member(), Op::Unsubscribe(op));
            self.oracle.subscribed.remove(agent);
        }
        self.appended(&[])
    }

    /// A full inbox drops read messages first.
    fn mark_read(&mut self, agent: &'static str, nth: usize) -> Checked {
        let log = self.cluster.len();
        let sees = super::steps::Sees {
            from: None,
            inboxes: &["a", "b", "c"][..],
        };
        let is_there = |sent: &&Sent| sent.receivers.contains(agent) && self.oracle.shown(&sees, sent, log).is_some();
        let there: Vec<&str> = self.oracle.sent.iter().filter(is_there).map(|sent| &*sent.id).collect();
        let Some(id) = there.get(nth % there.len().max(1)) else {
            return Ok(());
        };
        let message_id = message_id(id);
        let received = query::inbox::received(&self.cluster.memory, team(), agent, message_id).unwrap();
        // An expired message counts as removed, although the sweep has not removed it yet.
        let has_expired = |ms| query::inbox::has_expired(ms, self.cluster.wall_ms);
        if received.is_none_or(|item| has_expired(item.message.expires_at_ms)) {
            return Ok(());
        }
        let op = MarkRead {
            agent: agent.to_owned(),
            message_id: message_id.to_bytes(),
            read: true,
        };
        self.cluster.apply(member(), Op::MarkRead(op));
        self.appended(&[])
    }

    /// The handshake: read the newest state, store the acknowledgements of this cursor that wait on this node, decide, and
    /// store a new cursor or a new use. Meanwhile others send, and old messages expire.
    fn connect(
        &mut self,
        subscription: &'static Subscription,
        node: usize,
        manner: Manner,
        meanwhile: usize,
    ) -> Checked {
        let texts: Vec<String> = subscription.scopes.iter().map(|s| (*s).to_owned()).collect();
        let requested = parse_requested(&texts).unwrap();
        let bound: Option<AgentId> = subscription.bound.parse().ok();
        let narrowed = narrow(&requested, &["*".to_owned()], bound.as_ref()).unwrap();
        let request = Request {
            team: team(),
            bound_agent: subscription.bound,
            scopes: &requested,
            client_id: subscription.client_id,
        };
        let cursor = request.cursor();
        self.cluster.catch_up(node, usize::MAX);
        while let Some(name) = &cursor
            && self.cluster.replicas[node].acks.holds(name)
        {
            self.propose(node, Proposal::Stored)?;
            self.cluster.catch_up(node, usize::MAX);
        }
        let state = &self.cluster.replicas[node].memory;
        let rows = Rows::read(state, &request).unwrap();
        let start = match request.start(&rows) {
            Ok(start) => start,
            Err(_) => return self.oracle.check_refusal(cursor.as_ref()),
        };
        self.oracle
            .check_start((node, subscription), cursor.as_ref(), &start, rows.last_seq)?;
        let mut feed = Feed::new(team(), narrowed, SOURCE_PREFIX.to_owned());
        feed.seek(start.after_seq);
        for n in 0..meanwhile {
            self.send(sender(n), Some(agent(n)), false)?;
        }
        if meanwhile == 2 {
            self.sweep()?;
        }
        if let (true, Some(name)) = (start.create || start.touch, &cursor) {
            let (seq, proof) = (start.after_seq, Proof::Implied);
            let table = &mut self.cluster.replicas[node].acks;
            table.put(name.clone(), Mark { seq, proof });
            self.propose(node, Proposal::Stored)?;
            self.cluster.catch_up(node, usize::MAX);
        }
        self.sessions.push(Session {
            subscription,
            node,
            manner,
            progress: Progress::new(cursor.clone(), &start, self.now),
            cursor,
            feed,
            start: start.after_seq,
            written: Vec::new(),
            told: 0,
            down: VecDeque::new(),
            up: VecDeque::new(),
            read: Vec::new(),
        });
        Ok(())
    }

    /// Writes one batch; returns whether there may be more already.
    fn deliver(&mut self, at: usize) -> Result<bool, TestCaseError> {
        let session = &mut self.sessions[at];
        let sees = session.subscription.sees;
        let replica = &self.cluster.replicas[session.node];
        let log = replica.applied;
        let batch = session.feed.batch(&replica.memory, 0).unwrap();
        for (seq, text) in batch.events {
            let frame: Value = serde_json::from_str(&text).unwrap();
            let last = session.last();
            if frame["type"] == "cursor_expired" {
                let told = told_of(&frame);
                prop_assert!(told > session.told && told > last, "told of the same twice");
                if let ([inbox], None) = (sees.inboxes, sees.from) {
                    let removed = query::inbox::head(&replica.memory, team(), inbox)
                        .unwrap()
                        .max_removed_seq;
                    prop_assert_eq!(told, removed, "told of what was not removed");
                }
                prop_assert_eq!(frame["oldest_available_seq"].as_u64(), Some(seq + 1));
                prop_assert!(seq >= last);
                session.told = told;
                session.down.push_back(Down::Expired(told));
            } else {
                prop_assert!(seq > last, "{seq} after {last}");
                self.oracle.check_event(&sees, seq, &frame, log)?;
                let span = (last, seq - 1);
                self.oracle
                    .check_nothing_missing(sees, span, |_| false, session.told, log)?;
                session.written.push(seq);
                session.down.push_back(Down::Event(seq));
            }
            session.progress.sent(seq, self.now);
        }
        if !batch.more {
            let head = query::team::head(&replica.memory, team()).unwrap().last_seq;
            let span = (session.last(), head);
            self.oracle
                .check_nothing_missing(sees, span, |_| false, session.told, log)?;
        }
        Ok(batch.more)
    }

    /// The client reads frames; its library answers pings.
    fn read(&mut self, at: usize, count: usize) {
        let session = &mut self.sessions[at];
        for _ in 0..count {
            let frame = session.down.pop_front();
            let cursor = session.cursor.as_ref();
            let mut known = cursor.map(|name| self.oracle.known(name, session.subscription.sees));
            match frame {
                Some(Down::Event(seq)) => {
                    session.read.push(seq);
                    if let Some(known) = &mut known {
                        known.seen.insert(seq);
                    }
                }
                Some(Down::Expired(told)) => {
                    if let Some(known) = &mut known {
                        known.told = known.told.max(told);
                    }
                }
                Some(Down::Ping(payload)) => session.up.push_back(Up::Pong(payload)),
                None => return,
            }
        }
    }

    /// The node reads the frames of the client.
    fn hear(&mut self, at: usize) -> Checked {
        let session = &mut self.sessions[at];
        while let Some(up) = session.up.pop_front() {
            let number = match up {
                Up::Ack(number) => number,
                Up::Pong(payload) => {
                    session.progress.pong(&payload);
                    continue;
                }
            };
            let note = session.progress.ack(number);
            let Some(name) = &session.cursor else {
                prop_assert!(note.is_none(), "a live session moves no cursor");
                continue;
            };
            let said = session.written.iter().copied().filter(|seq| *seq <= number);
            let said: Vec<u64> = said.collect();
            self.oracle
                .heard(name, session.node, said.last().copied().unwrap_or_default());
            if session.manner == Manner::Inventor {
                // A client that acknowledges events that it did not read counts as having them.
                let known = self.oracle.known(name, session.subscription.sees);
                known.seen.extend(said);
                known.told = known.told.max(session.told.min(number));
            }
            if let Some((name, mark)) = note {
                self.cluster.replicas[session.node].acks.put(name, mark);
            }
        }
        Ok(())
    }

    fn ping(&mut self, at: usize) {
        let session = &mut self.sessions[at];
        let ping = session.progress.ping().to_vec();
        session.down.push_back(Down::Ping(ping));
    }

    fn look(&mut self, at: usize) {
        let session = &mut self.sessions[at];
        let implied = session.progress.implied(self.now, IMPLIED_AFTER);
        let touched = session.progress.touch(self.now, TOUCH_EVERY);
        for (name, mark) in implied.into_iter().chain(touched) {
            self.cluster.replicas[session.node].acks.put(name, mark);
        }
    }

    fn propose(&mut self, node: usize, proposal: Proposal) -> Checked {
        let acks = self.cluster.replicas[node].acks.take();
        if acks.is_empty() {
            return Ok(());
        }
        if proposal != Proposal::Failed {
            self.cluster
                .apply(None, Op::AckCursors(AckCursors { acks: acks.clone() }));
            self.appended(&acks)?;
        }
        let table = &mut self.cluster.replicas[node].acks;
        if proposal == Proposal::Stored {
            table.stored();
            self.oracle.check_heard(node)
        } else {
            table.failed();
            Ok(())
        }
    }

    /// Open sessions check the clock, and nodes propose, far more often than this.
    fn pass(&mut self, ms: u64) -> Checked {
        let mut left = ms;
        while left > 0 {
            let step = left.min(limits::CURSOR_TOUCH_MS / 2);
            left -= step;
            self.cluster.wall_ms += step;
            self.cluster.cluster_ms += step;
            self.now += Duration::from_millis(step);
            if ms > limits::CURSOR_TOUCH_MS {
                (0..self.sessions.len()).for_each(|at| self.look(at));
                for node in 0..self.cluster.replicas.len() {
                    self.propose(node, Proposal::Stored)?;
                }
            }
        }
        self.cluster.apply(None, Op::Tick(Tick {}));
        self.appended(&[])
    }

    fn sweep(&mut self) -> Checked {
        let due = |cluster: &Cluster| query::due::sweep(&cluster.memory, cluster.cluster_ms, cluster.wall_ms).unwrap();
        while let Some(sweep) = due(&self.cluster) {
            self.cluster.apply(None, Op::Sweep(sweep));
            self.appended(&[])?;
        }
        Ok(())
    }

    /// Called after each new log entry.
    fn appended(&mut self, acks: &[CursorAck]) -> Checked {
        let (memory, log) = (&self.cluster.memory, self.cluster.len());
        self.oracle.note_removals(memory, log);
        let is_open = |name: &CursorName| {
            self.sessions
                .iter()
                .any(|session| session.cursor.as_ref() == Some(name))
        };
        self.oracle
            .check_cursors(memory, acks, self.cluster.cluster_ms, log, is_open)
    }

    /// The seq up to which the bounded inbox dropped messages.
    pub fn oldest_removed(&self) -> u64 {
        let head = query::inbox::head(&self.cluster.memory, team(), BOUNDED);
        head.unwrap().max_removed_seq
    }

    /// Every client connects once more and reads to the end.
    pub fn finish(&mut self) -> Checked {
        self.sessions.clear();
        for node in 0..self.cluster.replicas.len() {
            self.propose(node, Proposal::Stored)?;
        }
        for (n, subscription) in SUBSCRIPTIONS.iter().enumerate() {
            self.connect(subscription, n % 3, Manner::Honest, 0)?;
            let Some(at) = self.sessions.len().checked_sub(1) else {
                continue; // a name too many
            };
            while self.deliver(at)? {}
            self.read(at, usize::MAX);
            let session = self.sessions.remove(at);
            let Some(name) = &session.cursor else { continue };
            let (log, head) = (self.cluster.len(), self.oracle.sent.last().map_or(0, |sent| sent.seq));
            let known = self.oracle.cursors.get(name).map(|(_, known)| known);
            let known = known.expect("it was begun");
            let span = (known.origin, head);
            let has = |seq| known.seen.contains(&seq);
            self.oracle
                .check_nothing_missing(session.subscription.sees, span, has, known.told, log)?;
        }
        Ok(())
    }
}

impl Session {
    /// The newest event written to the socket, or the start of the session.
    fn last(&self) -> u64 {
        self.written.last().copied().unwrap_or(self.start)
    }

    fn ack(&mut self, ago: usize, number: u64) {
        match self.manner {
            Manner::Never => {}
            Manner::Inventor => self.up.push_back(Up::Ack(number)),
            Manner::Honest => {
                if let Some(seq) = self.read.iter().rev().nth(ago) {
                    self.up.push_back(Up::Ack(*seq));
                }
            }
        }
    }
}

/// The seq up to which events may be gone, according to a `cursor_expired`.
fn told_of(frame: &Value) -> u64 {
    let message = frame["message"].as_str().unwrap();
    let number = message.trim_start_matches("events up to ").split(' ').next();
    number.unwrap().parse().unwrap()
}
