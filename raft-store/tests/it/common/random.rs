//! Random histories of commands. There are few teams, agents and keys, so that commands collide, and topics with many
//! subscribers, so that publishes become fan-out jobs.
//!
//! The cluster's own commands (claims, chunks, takeovers) are useful only if they fit the state. So a step describes
//! such a command vaguely, and [`log`] turns it into one that fits the state at that point, or just misses it.

use std::sync::OnceLock;

use agentpost_proto::command::operation::Op;
use agentpost_proto::command::{
    AckCursors, BeginEpoch, CreateKey, CursorAck, DeleteWebhook, LeaseReads, LeaseReturn, MarkRead, Permission,
    Principal, RegisterAgent, RegisterWebhook, ReturnLeases, RevokeKey, RotateSigningKeys, SendBatch, Subscribe, Sweep,
    TeamLimits, Unsubscribe, UpdateTeam,
};
use agentpost_proto::id::KeyId;
use agentpost_testkit::commands::{
    ack, approve_login, bootstrap, claim_login, create_key, create_team, deny_login, encode, id_of, message_id,
    principal, send, start_login, subscribe, team_id,
};
use bytes::Bytes;
use parking_lot::Mutex;
use proptest::prelude::*;

use crate::common::core::Core;
use crate::common::dispatcher;

pub const TEAMS: [&str; 2] = ["acme", "other"];
pub const AGENTS: [&str; 3] = ["alice", "bob", "carol"];
pub const TOPICS: [&str; 3] = ["big", "middling", "small"];
const URLS: [&str; 2] = ["https://a.example/", "https://b.example/"];
const USER_CODES: [&str; 3] = ["BCDFGHJK", "CDFGHJKL", "DFGHJKLM"];
const DEVICES: [&str; 3] = ["d0", "d1", "d2"];
/// Keys that are created and revoked, in any team.
const PASSING_KEYS: [&str; 5] = ["p0", "p1", "p2", "p3", "p4"];
pub const DAILY_SENDS: u64 = 8;
pub const DAILY_REGISTRATIONS: u64 = 6;
/// The agents of acme that subscribe to the topic "big", slightly more than one chunk.
const CROWD: usize = 258;
/// How many of them subscribe to "middling": one publish fits into a command, the second one of a batch does not.
const HALF_CROWD: usize = 130;
const DAY_MS: u64 = 24 * 3600 * 1000;

/// One step of a random history: the caller, the command, and how far the clocks advance before it.
#[derive(Debug, Clone)]
pub struct Step {
    pub wall_forward_ms: u64,
    pub cluster_forward_ms: u64,
    pub principal: Option<Principal>,
    pub act: Act,
}

/// The action of a step.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "a few hundred live at a time")]
pub enum Act {
    /// A fixed command.
    Op(Op),
    /// A blank entry.
    Blank,
    /// A new leader.
    Epoch,
    /// A command of the dispatcher, resolved against the state.
    Dispatch(dispatcher::Act),
}

impl Act {
    /// Whether the cluster itself proposes it, without a key.
    pub fn is_internal(&self) -> bool {
        match self {
            Act::Op(op) => matches!(
                op,
                Op::AckCursors(_) | Op::Sweep(_) | Op::ReturnLeases(_) | Op::StartLogin(_) | Op::ClaimLogin(_)
            ),
            Act::Blank | Act::Epoch => true,
            Act::Dispatch(act) => act.is_internal(),
        }
    }
}

fn agent() -> impl Strategy<Value = String> {
    prop::sample::select(&AGENTS[..]).prop_map(str::to_owned)
}

fn team() -> impl Strategy<Value = &'static str> {
    prop::sample::select(&TEAMS[..])
}

fn topic() -> impl Strategy<Value = String> {
    prop::sample::select(&TOPICS[..]).prop_map(str::to_owned)
}

fn url() -> impl Strategy<Value = String> {
    prop::sample::select(&URLS[..]).prop_map(str::to_owned)
}

/// A key of the team: unbound, bound to alice, read only, an administrator's, or unknown.
fn key() -> impl Strategy<Value = &'static str> {
    const KEYS: [&str; 10] = [
        "w", "w", "w", "w", "boss", "boss", "steward", "alice", "reader", "nokey",
    ];
    prop::sample::select(&KEYS[..])
}

/// The name of a key. Key ids are unique in the shard, so the keys of the team "other" end in "-o".
pub fn key_of(team: &str, key: &str) -> String {
    if team == "other" {
        format!("{key}-o")
    } else {
        key.to_owned()
    }
}

fn message_name() -> impl Strategy<Value = String> {
    (0..70u32).prop_map(|n| format!("m{n}"))
}

fn one_send() -> impl Strategy<Value = agentpost_proto::command::Send> {
    (
        message_name(),
        agent(),
        agent(),
        prop::option::weighted(0.5, topic()),
        0..4u8,
        0..3u8,
        prop::bool::weighted(0.1),
    )
        .prop_map(|(id, from, to, topic, idem, body, expires)| {
            let mut op = send(&id, &from, &to);
            if let Some(topic) = topic {
                op.to.clear();
                op.topic = topic;
            }
            op.body = Bytes::from(format!("{{\"n\":{body}}}"));
            op.idempotency_key = if idem == 0 { format!("k{body}") } else { String::new() };
            op.expires_at_ms = if expires { 3 * DAY_MS } else { 0 };
            op
        })
}

/// Subscriptions and webhooks.
fn registration() -> impl Strategy<Value = Op> {
    let subscribed = (agent(), topic(), 0..5u8, url()).prop_map(|(agent, topic, how, url)| {
        let url = match how {
            0 => None,
            1 => Some(String::new()),
            _ => Some(url),
        };
        Op::Subscribe(Subscribe {
            url,
            ..subscribe(&agent, &topic)
        })
    });
    let unsubscribed = (agent(), topic()).prop_map(|(agent, topic)| Op::Unsubscribe(Unsubscribe { agent, topic }));
    let registered = (agent(), url(), 1..4i32).prop_map(|(agent, url, events)| {
        Op::RegisterWebhook(RegisterWebhook {
            webhook_id: Bytes::copy_from_slice(&id_of(&agent)),
            agent,
            url,
            events: [1, 2].into_iter().filter(|event| events & event != 0).collect(),
        })
    });
    let deleted = agent().prop_map(|agent| Op::DeleteWebhook(DeleteWebhook { agent }));
    prop_oneof![
        6 => subscribed,
        3 => unsubscribed,
        3 => registered,
        1 => deleted,
    ]
}

/// Leased reads, and signing keys.
fn counted() -> impl Strategy<Value = Op> {
    let lease_id = |n: u8| Bytes::copy_from_slice(&id_of(&format!("lease{n}")));
    let leased = (agent(), 0..6u8, 1..3u64).prop_map(move |(agent, n, node)| {
        Op::LeaseReads(LeaseReads {
            agent,
            lease_id: lease_id(n),
            node,
            nodes: 3,
        })
    });
    let returned = (team(), 0..12u32, 0..6u8, 0..70u64).prop_map(move |(team, day, n, unused)| {
        let lease = LeaseReturn {
            team_id: team_id(team).to_bytes(),
            day,
            lease_id: lease_id(n),
            unused,
        };
        Op::ReturnLeases(ReturnLeases { leases: vec![lease] })
    });
    let rotated = (team(), 0..3u64).prop_map(|(team, from_generation)| {
        Op::RotateSigningKeys(RotateSigningKeys {
            team_id: team_id(team).to_bytes(),
            from_generation,
        })
    });
    prop_oneof![2 => leased, 1 => returned, 1 => rotated]
}

fn named(names: &'static [&'static str]) -> impl Strategy<Value = &'static str> {
    prop::sample::select(names)
}

/// Logins and keys, and who is in the directory.
pub fn membership() -> impl Strategy<Value = Op> {
    let started = (named(&USER_CODES), named(&DEVICES), named(&PASSING_KEYS))
        .prop_map(|(code, device, key)| Op::StartLogin(start_login(code, device, key)));
    let approved = (named(&USER_CODES), team()).prop_map(|(code, team)| Op::DecideLogin(approve_login(code, team)));
    let denied = named(&USER_CODES).prop_map(|code| Op::DecideLogin(deny_login(code)));
    let claimed = named(&DEVICES).prop_map(|device| Op::ClaimLogin(claim_login(device)));
    let created = (
        team(),
        named(&PASSING_KEYS),
        prop::option::weighted(0.3, agent()),
        0..3u64,
    )
        .prop_map(|(team, key, agent, days)| {
            Op::CreateKey(CreateKey {
                expires_at_ms: days * DAY_MS,
                ..create_key(team, key, Permission::Write, &agent.unwrap_or_default())
            })
        });
    let revoked = prop_oneof![
        8 => named(&PASSING_KEYS),
        2 => Just("reader"),
        1 => Just("boss"),
    ]
    .prop_map(|key| {
        let key_id = KeyId(id_of(key)).to_bytes();
        Op::RevokeKey(RevokeKey { key_id })
    });
    let registered = (agent(), any::<bool>()).prop_map(|(agent, has_name)| {
        let name = if has_name { "A name".to_owned() } else { String::new() };
        Op::RegisterAgent(RegisterAgent { agent, name })
    });
    prop_oneof![
        4 => started,
        6 => approved,
        1 => denied,
        5 => claimed,
        2 => created,
        2 => revoked,
        2 => registered,
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let mark = (agent(), message_name(), any::<bool>()).prop_map(|(agent, id, read)| {
        Op::MarkRead(MarkRead {
            agent,
            message_id: message_id(&id).to_bytes(),
            read,
        })
    });
    let ack = (team(), agent(), 0..3u8, 0..80u64, any::<bool>()).prop_map(|(team, agent, client, seq, implied)| {
        let client_id = if client == 0 {
            String::new()
        } else {
            format!("c{client}")
        };
        let ack = CursorAck {
            implied,
            ..ack(team, &agent, &client_id, seq)
        };
        Op::AckCursors(AckCursors { acks: vec![ack] })
    });
    prop_oneof![
        14 => one_send().prop_map(Op::Send),
        4 => prop::collection::vec(one_send(), 0..6).prop_map(|sends| Op::SendBatch(SendBatch { sends })),
        8 => registration(),
        2 => counted(),
        4 => mark,
        2 => ack,
        6 => membership(),
        1 => (team(), any::<bool>()).prop_map(|(team, strict)| Op::UpdateTeam(UpdateTeam {
            team_id: team_id(team).to_bytes(),
            strict_recipients: Some(strict),
            ..UpdateTeam::default()
        })),
        1 => Just(Op::Sweep(Sweep {})),
    ]
}

pub fn step() -> impl Strategy<Value = Step> {
    let forward = prop_oneof![
        8 => 0..1000u64,
        4 => 1000..40_000u64,
        1 => Just(100_000),
        1 => Just(DAY_MS / 3),
        1 => Just(20 * DAY_MS)
    ];
    let act = prop_oneof![
        30 => op().prop_map(Act::Op),
        20 => dispatcher::act().prop_map(Act::Dispatch),
        1 => Just(Act::Epoch),
        1 => Just(Act::Blank),
    ];
    (forward.clone(), forward, team(), key(), prop::bool::weighted(0.05), act).prop_map(
        |(wall, cluster, team, key, root, act)| {
            let principal = if root {
                principal("system", "root")
            } else {
                principal(team, &key_of(team, key))
            };
            Step {
                wall_forward_ms: wall,
                cluster_forward_ms: cluster,
                principal: (!act.is_internal()).then_some(principal),
                act,
            }
        },
    )
}

/// Builds a log while applying it.
#[derive(Clone, Default)]
struct Writer {
    core: Core,
    log: Vec<Bytes>,
}

impl Writer {
    fn push(&mut self, by: Option<Principal>, op: Op) {
        let core = &mut self.core;
        self.log.push(encode(
            core.wall_ms,
            core.epoch,
            core.cluster_ms,
            by.clone(),
            op.clone(),
        ));
        core.apply(by, op);
    }

    fn epoch(&mut self) {
        self.push(None, Op::BeginEpoch(BeginEpoch { node: 1, term: 1 }));
        self.core.epoch = self.core.index;
    }

    fn step(&mut self, step: &Step) {
        self.core.wall_ms += step.wall_forward_ms;
        self.core.cluster_ms += step.cluster_forward_ms;
        let op = match &step.act {
            Act::Op(op) => Some(op.clone()),
            Act::Dispatch(act) => dispatcher::resolve(&self.core, act),
            Act::Epoch => return self.epoch(),
            Act::Blank => None,
        };
        match op {
            Some(op) => self.push(step.principal.clone(), op),
            None => {
                self.log.push(Bytes::new());
                self.core.blank();
            }
        }
    }

    /// Creates the teams, the keys and the subscribers.
    fn world() -> Self {
        let mut writer = Writer::default();
        (writer.core.wall_ms, writer.core.cluster_ms) = (1_000, 1_000);
        let root = || Some(principal("system", "root"));
        let limits = TeamLimits {
            daily_sends: DAILY_SENDS,
            daily_reads: 500,
            daily_webhook_registrations: DAILY_REGISTRATIONS,
            ..TeamLimits::default()
        };
        writer.epoch();
        writer.push(None, bootstrap("root"));
        for team in TEAMS {
            writer.push(root(), create_team(team, Some(limits)));
            for (key, permission, agent) in [
                ("w", Permission::Write, ""),
                ("alice", Permission::Write, "alice"),
                ("reader", Permission::Read, ""),
                ("boss", Permission::Admin, ""),
                ("steward", Permission::Admin, "alice"),
            ] {
                let op = create_key(team, &key_of(team, key), permission, agent);
                writer.push(root(), Op::CreateKey(op));
            }
        }
        for (team, topic, agent) in subscribed_at_first() {
            // These subscribers have no URLs, so that a history does not consist mostly of deliveries.
            let url = AGENTS.contains(&agent.as_str()).then(|| URLS[0].to_owned());
            let op = Subscribe {
                url,
                ..subscribe(&agent, topic)
            };
            writer.push(Some(principal(team, &key_of(team, "w"))), Op::Subscribe(op));
        }
        for team in TEAMS {
            let op = RegisterWebhook {
                agent: "bob".to_owned(),
                webhook_id: Bytes::copy_from_slice(&id_of("bob")),
                url: URLS[1].to_owned(),
                events: vec![1, 2],
            };
            writer.push(Some(principal(team, &key_of(team, "w"))), Op::RegisterWebhook(op));
        }
        writer
    }
}

/// The subscriptions at the beginning of every history: team, topic, agent.
pub fn subscribed_at_first() -> Vec<(&'static str, &'static str, String)> {
    let crowd = (0..CROWD).map(|n| ("acme", "big", format!("x{n}")));
    let few = TEAMS
        .iter()
        .flat_map(|team| AGENTS.map(|agent| (*team, "small", agent.to_owned())));
    let half = (0..HALF_CROWD).map(|n| ("acme", "middling", format!("x{n}")));
    crowd.chain(half).chain(few).collect()
}

/// A copy of the initial state, which is computed once.
fn world() -> Writer {
    static WORLD: OnceLock<Mutex<Writer>> = OnceLock::new();
    let world = WORLD.get_or_init(|| Mutex::new(Writer::world()));
    world.lock().clone()
}

/// The state at the beginning of every history, after the first `index` entries.
pub fn beginning() -> Core {
    world().core
}

/// The log entries from index 1 on: the commands that create the initial state, then the steps. An empty one is a blank
/// entry.
pub fn log(steps: &[Step]) -> Vec<Bytes> {
    write(steps).log
}

fn write(steps: &[Step]) -> Writer {
    let mut writer = world();
    for step in steps {
        writer.step(step);
    }
    writer
}

/// The same log, followed by the chunks that finish every fan-out job.
pub fn finished_log(steps: &[Step]) -> Vec<Bytes> {
    let mut writer = write(steps);
    while let Some(op) = dispatcher::next_chunk(&writer.core) {
        writer.push(None, op);
    }
    writer.log
}
