//! Samples of logins, keys, the directory, cursors and presence.

use agentpost_proto::command::operation::Op;
use agentpost_proto::command::reply::Reply as R;
use agentpost_proto::command::{self, Operation, Principal, Reply};
use agentpost_proto::peer::change_members_request::Change;
use agentpost_proto::{peer, record};
use prost::Message;

use super::{Samples, bytes};

fn admin() -> Principal {
    Principal {
        team_id: bytes("team............"),
        key_id: bytes("key............."),
    }
}

fn encoded(principal: Option<Principal>, op: Op) -> Vec<u8> {
    let op = Some(op);
    Operation { principal, op }.encode_to_vec()
}

/// Keys and agents.
pub fn requests() -> Samples {
    let bootstrap = command::BootstrapAdmin {
        key_id: bytes("k"),
        key_hash: bytes("h"),
        key_prefix: "p".to_owned(),
    };
    let create = command::CreateKey {
        team_id: bytes("t"),
        key_id: bytes("k"),
        key_hash: bytes("h"),
        key_prefix: "p".to_owned(),
        name: "n".to_owned(),
        permissions: vec![1, 3],
        scopes: vec!["*".to_owned()],
        agent_id: "alice".to_owned(),
        expires_at_ms: 1,
    };
    let register = command::RegisterAgent {
        agent: "bob".to_owned(),
        name: "Bob".to_owned(),
    };
    vec![
        ("op.bootstrap_admin", encoded(None, Op::BootstrapAdmin(bootstrap))),
        ("op.create_key", encoded(Some(admin()), Op::CreateKey(create))),
        ("op.register_agent", encoded(Some(admin()), Op::RegisterAgent(register))),
    ]
}

/// Logins, and the answer to the device.
pub fn logins() -> Samples {
    let start = command::StartLogin {
        device_hash: bytes("d"),
        user_code: "BCDFGHJK".to_owned(),
        key_id: bytes("k"),
        key_hash: bytes("h"),
        key_prefix: "p".to_owned(),
        client: "c".to_owned(),
    };
    let decide = |approve| {
        Op::DecideLogin(command::DecideLogin {
            user_code: "BCDFGHJK".to_owned(),
            approve,
            team_id: bytes("t"),
            permissions: vec![1, 2],
        })
    };
    let claim = command::ClaimLogin {
        device_hash: bytes("d"),
    };
    let answer = R::Login(command::LoginReply {
        team_id: bytes("t"),
        key_id: bytes("k"),
    });
    vec![
        ("op.start_login", encoded(None, Op::StartLogin(start))),
        ("op.decide_login.approve", encoded(Some(admin()), decide(true))),
        ("op.decide_login.deny", encoded(Some(admin()), decide(false))),
        ("op.claim_login", encoded(None, Op::ClaimLogin(claim))),
        ("reply.login", Reply { reply: Some(answer) }.encode_to_vec()),
    ]
}

/// What is stored of it, and what nodes ask each other.
pub fn rows() -> Samples {
    let login = record::Login {
        user_code: "BCDFGHJK".to_owned(),
        device_hash: bytes("d"),
        key_id: bytes("k"),
        key_hash: bytes("h"),
        key_prefix: "p".to_owned(),
        client: "c".to_owned(),
        created_at_ms: 1,
        expires_ct_ms: 2,
        state: record::LoginState::Approved as i32,
        decided_by: Some(admin()),
        team_id: bytes("t"),
        permissions: vec![1, 2],
    };
    let denied = record::Login {
        state: record::LoginState::Denied as i32,
        ..record::Login::default()
    };
    let head = record::TeamHead {
        last_seq: 1,
        keys: 2,
        agents: 3,
        cursors: 4,
        day: 5,
        events_today: 6,
        ..record::TeamHead::default()
    };
    let cursor = record::Cursor {
        seq: 1,
        acked: true,
        used_ct_ms: 2,
    };
    let presence = peer::PresenceRequest {
        team_id: bytes("t"),
        agents: vec!["alice".to_owned(), "bob".to_owned()],
    };
    vec![
        ("record.login", login.encode_to_vec()),
        ("record.login.denied", denied.encode_to_vec()),
        ("record.login_head", record::LoginHead { open: 1 }.encode_to_vec()),
        ("record.team_head.members", head.encode_to_vec()),
        ("record.cursor.used", cursor.encode_to_vec()),
        ("peer.presence_request", presence.encode_to_vec()),
        (
            "peer.presence_reply",
            peer::PresenceReply { sessions: vec![0, 2] }.encode_to_vec(),
        ),
        ("peer.delegated_call", delegated_call().encode_to_vec()),
        ("peer.caller_report", caller_report().encode_to_vec()),
        (
            "record.node_ids",
            record::NodeIds { used: vec![1, 300] }.encode_to_vec(),
        ),
        ("peer.change_members.add", change_members(Change::Add(member()))),
        ("peer.change_members.promote", change_members(Change::Promote(2))),
        ("peer.change_members.remove", change_members(Change::Remove(3))),
        (
            "peer.change_members_reply",
            peer::ChangeMembersReply {
                outcome: Some(peer::change_members_reply::Outcome::Done(member())),
            }
            .encode_to_vec(),
        ),
    ]
}

fn delegated_call() -> peer::DelegatedCall {
    peer::DelegatedCall {
        shard: 1,
        team_id: bytes("t"),
        delivery: Some(record::Delivery {
            number: 2,
            ..record::Delivery::default()
        }),
        message: Some(record::Message {
            id: bytes("m"),
            ..record::Message::default()
        }),
        signing_generation: 3,
        begin_before_ms: 4,
        wait_ms: 5,
        late_ms: 6,
    }
}

fn caller_report() -> peer::CallerReport {
    peer::CallerReport {
        clock_ms: 1,
        leaving: true,
        recorded: vec![peer::RecordedCall {
            attempt: Some(command::AttemptRef {
                team_id: bytes("t"),
                number: 2,
                attempt_no: 3,
            }),
            reachability: peer::Reachability::Unreachable as i32,
            host_is_exempt: Some(false),
        }],
    }
}

fn member() -> peer::Member {
    peer::Member {
        id: 1,
        peer_addr: "p".to_owned(),
        url: "u".to_owned(),
    }
}

fn change_members(change: Change) -> Vec<u8> {
    let request = peer::ChangeMembersRequest {
        shard: 0,
        change: Some(change),
    };
    request.encode_to_vec()
}
