//! Random command lists over a small world: few teams, agents and keys, so that everything collides.
#![allow(dead_code, clippy::unwrap_used)]

use agentpost_proto::command::operation::Op;
use agentpost_proto::command::{
    AckCursors, BeginEpoch, CursorAck, MarkRead, Permission, Principal, RevokeKey, SendBatch, Sweep, TeamLimits,
    UpdateTeam,
};
use agentpost_proto::id::KeyId;
use bytes::Bytes;
use proptest::prelude::*;

use crate::common::{bootstrap, create_key, create_team, encode, id_of, message_id, principal, send, team_id};

pub const TEAMS: [&str; 2] = ["acme", "other"];
pub const AGENTS: [&str; 3] = ["alice", "bob", "carol"];
pub const DAILY_SENDS: u64 = 6;
const DAY_MS: u64 = 24 * 3600 * 1000;

/// One step of a random history: who asks, what, and how far the clocks went since the last step.
#[derive(Debug, Clone)]
pub struct Step {
    pub wall_forward_ms: u64,
    pub cluster_forward_ms: u64,
    pub principal: Option<Principal>,
    pub op: Op,
}

fn agent() -> impl Strategy<Value = String> {
    prop::sample::select(&AGENTS[..]).prop_map(str::to_owned)
}

fn team() -> impl Strategy<Value = &'static str> {
    prop::sample::select(&TEAMS[..])
}

/// A key of the team: free to act as anyone, bound to alice, read only, or unknown.
fn key() -> impl Strategy<Value = &'static str> {
    prop::sample::select(&["w", "w", "w", "alice", "reader", "nokey"][..])
}

fn message_name() -> impl Strategy<Value = String> {
    (0..60u32).prop_map(|n| format!("m{n}"))
}

fn one_send() -> impl Strategy<Value = agentpost_proto::command::Send> {
    (
        message_name(),
        agent(),
        agent(),
        0..4u8,
        0..3u8,
        prop::bool::weighted(0.1),
    )
        .prop_map(|(id, from, to, idem, body, expires)| {
            let mut op = send(&id, &from, &to);
            op.body = Bytes::from(format!("{{\"n\":{body}}}"));
            op.idempotency_key = if idem == 0 { format!("k{body}") } else { String::new() };
            op.expires_at_ms = if expires { 3 * DAY_MS } else { 0 };
            op
        })
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
            team_id: team_id(team).to_bytes(),
            agent,
            client_id,
            seq,
            implied,
        };
        Op::AckCursors(AckCursors { acks: vec![ack] })
    });
    prop_oneof![
        12 => one_send().prop_map(Op::Send),
        4 => prop::collection::vec(one_send(), 0..6).prop_map(|sends| Op::SendBatch(SendBatch { sends })),
        6 => mark,
        2 => ack,
        1 => Just(Op::RevokeKey(RevokeKey { key_id: KeyId(id_of("reader")).to_bytes() })),
        1 => (team(), any::<bool>()).prop_map(|(team, strict)| Op::UpdateTeam(UpdateTeam {
            team_id: team_id(team).to_bytes(),
            strict_recipients: Some(strict),
            ..UpdateTeam::default()
        })),
        1 => prop::option::of(team()).prop_map(|team| Op::Sweep(Sweep {
            team_id: team.map(|t| team_id(t).to_bytes()).unwrap_or_default(),
        })),
    ]
}

pub fn step() -> impl Strategy<Value = Step> {
    let forward = prop_oneof![8 => 0..1000u64, 1 => Just(DAY_MS / 3), 1 => Just(9 * DAY_MS)];
    (
        forward.clone(),
        forward,
        team(),
        key(),
        prop::bool::weighted(0.05),
        op(),
    )
        .prop_map(|(wall, cluster, team, key, root, op)| {
            let internal = matches!(op, Op::AckCursors(_) | Op::Sweep(_));
            let principal = if root {
                principal("system", "root")
            } else {
                principal(team, key)
            };
            Step {
                wall_forward_ms: wall,
                cluster_forward_ms: cluster,
                principal: (!internal).then_some(principal),
                op,
            }
        })
}

/// The commands that make the small world, then the steps, encoded as log entries from index 1 on.
pub fn log(steps: &[Step]) -> Vec<Bytes> {
    let root = || Some(principal("system", "root"));
    let limits = TeamLimits {
        daily_sends: DAILY_SENDS,
        ..TeamLimits::default()
    };
    let mut world = vec![
        (None, Op::BeginEpoch(BeginEpoch { node: 1, term: 1 })),
        (None, bootstrap("root")),
    ];
    for team in TEAMS {
        world.push((root(), create_team(team, Some(limits))));
        for (key, permission, agent) in [
            ("w", Permission::Write, ""),
            ("alice", Permission::Write, "alice"),
            ("reader", Permission::Read, ""),
        ] {
            let mut op = create_key(team, key, permission, agent);
            // Key ids and hashes are unique in the shard; the other team's keys carry its name.
            if team == "other" {
                let name = format!("{key}-o");
                op.key_id = KeyId(id_of(&name)).to_bytes();
                op.key_hash = crate::common::key_hash(&name);
            }
            world.push((root(), Op::CreateKey(op)));
        }
    }
    let (mut wall_ms, mut cluster_ms) = (1_000, 1_000);
    let mut log: Vec<Bytes> = world
        .into_iter()
        .map(|(by, op)| encode(wall_ms, 1, cluster_ms, by, op))
        .collect();
    for step in steps {
        wall_ms += step.wall_forward_ms;
        cluster_ms += step.cluster_forward_ms;
        log.push(encode(wall_ms, 1, cluster_ms, step.principal.clone(), step.op.clone()));
    }
    log
}
