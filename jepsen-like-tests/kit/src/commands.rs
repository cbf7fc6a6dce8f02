//! Commands of the log by short names, for tests that apply them without a cluster. A name stands for the 16 bytes of an
//! id, so that a test can say `team_id("acme")`.

use agentpost_proto::command::operation::Op;
use agentpost_proto::command::{
    BodyKind, BootstrapAdmin, ClaimLogin, Command, CreateKey, CreateTeam, CursorAck, DecideLogin, Face, Operation,
    Permission, Principal, Send, StartLogin, Subscribe, TeamLimits,
};
use agentpost_proto::id::{KeyId, MessageId, TeamId};
use bytes::Bytes;
use prost::Message;

/// The first 16 bytes of a name, filled up with dots.
pub fn id_of(name: &str) -> [u8; 16] {
    let mut id = [b'.'; 16];
    let length = name.len().min(16);
    id[..length].copy_from_slice(&name.as_bytes()[..length]);
    id
}

/// The id of a team; `system` is the operators' team.
pub fn team_id(name: &str) -> TeamId {
    if name == "system" {
        TeamId::SYSTEM
    } else {
        TeamId(id_of(name))
    }
}

/// The id of a message.
pub fn message_id(name: &str) -> MessageId {
    MessageId::from_slice(&id_of(name)).expect("16 bytes")
}

/// The holder of a key.
pub fn principal(team: &str, key: &str) -> Principal {
    Principal {
        team_id: team_id(team).to_bytes(),
        key_id: KeyId(id_of(key)).to_bytes(),
    }
}

/// The limits of a team without limits.
pub fn unlimited() -> TeamLimits {
    TeamLimits::default()
}

/// Creates the first operator's key.
pub fn bootstrap(key: &str) -> Op {
    Op::BootstrapAdmin(BootstrapAdmin {
        key_id: KeyId(id_of(key)).to_bytes(),
        key_hash: key_hash(key),
        key_prefix: key.to_owned(),
    })
}

/// The stored hash of a key or of a device code.
pub fn key_hash(key: &str) -> Bytes {
    Bytes::from([id_of(key), id_of(key)].concat())
}

/// Creates a team.
pub fn create_team(name: &str, limits: Option<TeamLimits>) -> Op {
    Op::CreateTeam(CreateTeam {
        team_id: team_id(name).to_bytes(),
        name: name.to_owned(),
        limits,
    })
}

/// Creates a key for all scopes; the empty `agent` binds it to no agent.
pub fn create_key(team: &str, key: &str, permission: Permission, agent: &str) -> CreateKey {
    CreateKey {
        team_id: team_id(team).to_bytes(),
        key_id: KeyId(id_of(key)).to_bytes(),
        key_hash: key_hash(key),
        key_prefix: key.to_owned(),
        name: key.to_owned(),
        permissions: vec![permission as i32],
        scopes: vec!["*".to_owned()],
        agent_id: agent.to_owned(),
        expires_at_ms: 0,
    }
}

/// A device asks for the key `key`.
pub fn start_login(user_code: &str, device: &str, key: &str) -> StartLogin {
    StartLogin {
        device_hash: key_hash(device),
        user_code: user_code.to_owned(),
        key_id: KeyId(id_of(key)).to_bytes(),
        key_hash: key_hash(key),
        key_prefix: key.to_owned(),
        client: String::new(),
    }
}

/// Approves a device for a team, with the permission to write.
pub fn approve_login(user_code: &str, team: &str) -> DecideLogin {
    DecideLogin {
        user_code: user_code.to_owned(),
        approve: true,
        team_id: team_id(team).to_bytes(),
        permissions: vec![Permission::Write as i32],
    }
}

/// Denies a device.
pub fn deny_login(user_code: &str) -> DecideLogin {
    DecideLogin {
        user_code: user_code.to_owned(),
        ..DecideLogin::default()
    }
}

/// Fetches the key of an approved device.
pub fn claim_login(device: &str) -> ClaimLogin {
    ClaimLogin {
        device_hash: key_hash(device),
    }
}

/// Moves a cursor; the empty `agent` and the empty `client_id` stand for none.
pub fn ack(team: &str, agent: &str, client_id: &str, seq: u64) -> CursorAck {
    CursorAck {
        team_id: team_id(team).to_bytes(),
        agent: agent.to_owned(),
        client_id: client_id.to_owned(),
        seq,
        implied: false,
    }
}

/// Sends a direct message with an empty body.
pub fn send(id: &str, from: &str, to: &str) -> Send {
    Send {
        message_id: message_id(id).to_bytes(),
        face: Face::Abbababa as i32,
        from: from.to_owned(),
        to: to.to_owned(),
        r#type: "note".to_owned(),
        body_kind: BodyKind::Object as i32,
        body: Bytes::from_static(b"{}"),
        ..Send::default()
    }
}

/// Publishes to a topic with an empty body.
pub fn publish(id: &str, from: &str, topic: &str) -> Send {
    Send {
        topic: topic.to_owned(),
        ..send(id, from, "")
    }
}

/// Subscribes an agent to a topic without a webhook.
pub fn subscribe(agent: &str, topic: &str) -> Subscribe {
    Subscribe {
        agent: agent.to_owned(),
        topic: topic.to_owned(),
        subscription_id: Bytes::copy_from_slice(&id_of(&format!("{agent}-{topic}"))),
        url: None,
    }
}

/// Encodes a command as it is stored in the log. `None` is the cluster itself.
pub fn encode(wall_ms: u64, ct_epoch: u64, cluster_ms: u64, principal: Option<Principal>, op: Op) -> Bytes {
    let operation = Operation {
        principal,
        op: Some(op),
    };
    let command = Command {
        wall_ms,
        ct_epoch,
        cluster_ms,
        operation: Bytes::from(operation.encode_to_vec()),
    };
    Bytes::from(command.encode_to_vec())
}
