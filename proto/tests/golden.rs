//! The bytes of the log and of the stored values, as earlier versions wrote them. A change here breaks
//! every existing data directory: add fields, never change them. `UPDATE_GOLDENFILES=1` appends new rows;
//! an existing row must not differ.
#![allow(clippy::unwrap_used)]

#[path = "golden/deliveries.rs"]
mod deliveries;
#[path = "golden/members.rs"]
mod members;

use agentpost_proto::command::operation::Op;
use agentpost_proto::command::{self, Command, Operation, Principal, Reply, Send, SendReply, TeamLimits};
use agentpost_proto::peer;
use agentpost_proto::record::{self, LogId};
use bytes::Bytes;
use prost::Message;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden.txt");

fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

fn a_send() -> Send {
    Send {
        message_id: bytes("0123456789abcdef"),
        face: command::Face::Abbababa as i32,
        from: "alice".to_owned(),
        to: "bob".to_owned(),
        r#type: "price.quote".to_owned(),
        body_kind: command::BodyKind::Object as i32,
        body: bytes("{\"price\":5}"),
        thread_id: "t1".to_owned(),
        reply_to_id: "r1".to_owned(),
        expires_at_ms: 9,
        idempotency_key: "k1".to_owned(),
        extras: bytes("{\"subject\":\"s\"}"),
        topic: String::new(),
    }
}

fn a_reply() -> SendReply {
    SendReply {
        message_id: bytes("0123456789abcdef"),
        seq: 7,
        created_at_ms: 1,
        events_used: 2,
        events_limit: 3,
        amount_charged_atomic: 4,
        sends_used: 5,
        sends_limit: 6,
        fanout_job: false,
    }
}

type Samples = Vec<(&'static str, Vec<u8>)>;

fn log_id() -> LogId {
    LogId {
        term: 3,
        node: 1,
        index: 42,
    }
}

fn limits() -> TeamLimits {
    TeamLimits {
        daily_sends: 1,
        daily_reads: 2,
        daily_webhook_registrations: 3,
        monthly_events: 4,
        overage_price_atomic: Some(5),
    }
}

/// What Raft orders and what apply answers.
fn commands() -> Samples {
    let limits = limits();
    let principal = Principal {
        team_id: bytes("team............"),
        key_id: bytes("key............."),
    };
    let op = |op| {
        Operation {
            principal: Some(principal.clone()),
            op: Some(op),
        }
        .encode_to_vec()
    };
    vec![
        (
            "command",
            Command {
                wall_ms: 1,
                ct_epoch: 2,
                cluster_ms: 3,
                operation: bytes("op"),
            }
            .encode_to_vec(),
        ),
        (
            "op.begin_epoch",
            op(Op::BeginEpoch(command::BeginEpoch { node: 1, term: 2 })),
        ),
        (
            "op.create_team",
            op(Op::CreateTeam(command::CreateTeam {
                team_id: bytes("t"),
                name: "n".to_owned(),
                limits: Some(limits),
            })),
        ),
        (
            "op.revoke_key",
            op(Op::RevokeKey(command::RevokeKey { key_id: bytes("k") })),
        ),
        ("op.send", op(Op::Send(a_send()))),
        (
            "op.send_batch",
            op(Op::SendBatch(command::SendBatch { sends: vec![a_send()] })),
        ),
        (
            "op.mark_read",
            op(Op::MarkRead(command::MarkRead {
                agent: "bob".to_owned(),
                message_id: bytes("m"),
                read: true,
            })),
        ),
        (
            "op.ack_cursors",
            op(Op::AckCursors(command::AckCursors {
                acks: vec![command::CursorAck {
                    team_id: bytes("t"),
                    agent: "a".to_owned(),
                    client_id: "c".to_owned(),
                    seq: 1,
                    implied: true,
                }],
            })),
        ),
        ("op.sweep", op(Op::Sweep(command::Sweep {}))),
        (
            "reply.send",
            Reply {
                reply: Some(command::reply::Reply::Send(a_reply())),
            }
            .encode_to_vec(),
        ),
    ]
}

/// Rows that change seldom.
fn settings() -> Samples {
    let id = log_id();
    let limits = limits();
    let applied = record::Applied {
        last: Some(id),
        cluster_ms: 1,
        wall_ms: 2,
        epoch: 3,
        epoch_node: 4,
        state_hash: 5,
    };
    let key = record::Key {
        id: bytes("key............."),
        team_id: bytes("team............"),
        name: "n".to_owned(),
        prefix: "p".to_owned(),
        hash: bytes("hash"),
        permissions: vec![1, 3],
        scopes: vec!["*".to_owned()],
        agent_id: "alice".to_owned(),
        expires_at_ms: 1,
        revoked_at_ms: 2,
        created_at_ms: 3,
    };
    vec![
        ("record.applied", applied.encode_to_vec()),
        (
            "record.team",
            record::Team {
                id: bytes("t"),
                name: "n".to_owned(),
                limits: Some(limits),
                strict_recipients: true,
                created_at_ms: 1,
                signing_generation: 0,
            }
            .encode_to_vec(),
        ),
        ("record.key", key.encode_to_vec()),
        (
            "record.agent",
            record::Agent {
                id: "a".to_owned(),
                name: "n".to_owned(),
                created_at_ms: 1,
            }
            .encode_to_vec(),
        ),
    ]
}

/// Rows of mail and its counters.
fn mail() -> Samples {
    let message = record::Message {
        id: bytes("0123456789abcdef"),
        seq: 7,
        from: "alice".to_owned(),
        to: "bob".to_owned(),
        r#type: "note".to_owned(),
        body_kind: command::BodyKind::Text as i32,
        body: bytes("hi"),
        thread_id: "t".to_owned(),
        reply_to_id: "r".to_owned(),
        created_at_ms: 1,
        created_ct_ms: 2,
        expires_at_ms: 3,
        extras: bytes("{}"),
        topic: String::new(),
    };
    vec![
        (
            "record.team_head",
            record::TeamHead {
                last_seq: 1,
                month: 202_601,
                events_used: 2,
                max_removed_seq: 3,
                ..record::TeamHead::default()
            }
            .encode_to_vec(),
        ),
        (
            "record.send_count",
            record::DayCount { day: 1, used: 2 }.encode_to_vec(),
        ),
        (
            "record.inbox_head",
            record::InboxHead {
                last_position: 1,
                entries: 2,
                unread: 3,
                max_removed_seq: 4,
                unread_floor: 5,
                read_floor: 6,
            }
            .encode_to_vec(),
        ),
        (
            "record.inbox_entry",
            record::InboxEntry {
                position: 1,
                message_seq: 2,
                read_at_ms: 3,
                from: "a".into(),
                topic: "t".into(),
                expires_at_ms: 0,
            }
            .encode_to_vec(),
        ),
        ("record.message", message.encode_to_vec()),
        (
            "record.idempotency",
            record::Idempotency {
                operation_hash: bytes("h"),
                created_ct_ms: 1,
                reply: bytes("r"),
            }
            .encode_to_vec(),
        ),
        (
            "record.cursor",
            record::Cursor {
                seq: 1,
                acked: true,
                ..record::Cursor::default()
            }
            .encode_to_vec(),
        ),
    ]
}

/// What the log store keeps.
fn peers() -> Samples {
    let id = log_id();
    let membership = peer::Membership {
        configs: vec![peer::membership::Config { voters: vec![1, 2, 3] }],
        members: vec![peer::Member {
            id: 1,
            peer_addr: "a:1".to_owned(),
            url: "http://a".to_owned(),
        }],
    };
    vec![
        (
            "peer.entry.command",
            peer::Entry {
                id: Some(id),
                command: bytes("c"),
                membership: None,
            }
            .encode_to_vec(),
        ),
        (
            "peer.entry.membership",
            peer::Entry {
                id: Some(id),
                command: Bytes::new(),
                membership: Some(membership),
            }
            .encode_to_vec(),
        ),
        (
            "peer.vote",
            peer::Vote {
                term: 1,
                node: 2,
                committed: true,
            }
            .encode_to_vec(),
        ),
    ]
}

#[test]
fn bytes_are_as_they_were() {
    let stored = std::fs::read_to_string(FILE).unwrap_or_default();
    let mut missing = String::new();
    let samples = [
        commands(),
        settings(),
        mail(),
        peers(),
        deliveries::requests(),
        deliveries::work(),
        deliveries::replies(),
        deliveries::topics(),
        deliveries::deliveries(),
        members::requests(),
        members::logins(),
        members::rows(),
    ];
    for (name, value) in samples.concat() {
        let row = format!("{name} {}", hex::encode(value));
        match stored.lines().find(|line| line.split(' ').next() == Some(name)) {
            Some(line) => assert_eq!(
                line, row,
                "the bytes of {name} changed: old data directories become unreadable"
            ),
            None => missing += &format!("{row}\n"),
        }
    }
    if std::env::var_os("UPDATE_GOLDENFILES").is_some() {
        std::fs::write(FILE, stored + &missing).unwrap();
    } else {
        assert_eq!(missing, "", "rows are missing in tests/golden.txt");
    }
}
