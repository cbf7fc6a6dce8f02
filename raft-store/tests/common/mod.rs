//! A core without Raft: commands in, replies and effects out, over any map.
#![allow(dead_code, clippy::unwrap_used)]

use agentpost_proto::command::operation::Op;
use agentpost_proto::command::{
    BodyKind, BootstrapAdmin, ClaimLogin, Command, CreateKey, CreateTeam, CursorAck, DecideLogin, Face, Operation,
    Permission, Principal, Reply, Send, StartLogin, Subscribe, TeamLimits,
};
use agentpost_proto::id::{KeyId, MessageId, TeamId};
use agentpost_proto::record::LogId;
use agentpost_raft_store::core::apply::{apply_blank, apply_command};
use agentpost_raft_store::core::effect::Effect;
use agentpost_raft_store::core::kv::Memory;
use agentpost_raft_store::core::view::{HotCache, View};
use bytes::Bytes;
use prost::Message;

/// 16 bytes of a name, so that scripts can use names where the system uses random ids.
pub fn id_of(name: &str) -> [u8; 16] {
    let mut id = [b'.'; 16];
    let length = name.len().min(16);
    id[..length].copy_from_slice(&name.as_bytes()[..length]);
    id
}

pub fn team_id(name: &str) -> TeamId {
    if name == "system" {
        TeamId::SYSTEM
    } else {
        TeamId(id_of(name))
    }
}

pub fn message_id(name: &str) -> MessageId {
    MessageId::from_slice(&id_of(name)).unwrap()
}

pub fn principal(team: &str, key: &str) -> Principal {
    Principal {
        team_id: team_id(team).to_bytes(),
        key_id: KeyId(id_of(key)).to_bytes(),
    }
}

pub fn unlimited() -> TeamLimits {
    TeamLimits::default()
}

pub fn bootstrap(key: &str) -> Op {
    Op::BootstrapAdmin(BootstrapAdmin {
        key_id: KeyId(id_of(key)).to_bytes(),
        key_hash: key_hash(key),
        key_prefix: key.to_owned(),
    })
}

pub fn key_hash(key: &str) -> Bytes {
    Bytes::from([id_of(key), id_of(key)].concat())
}

pub fn create_team(name: &str, limits: Option<TeamLimits>) -> Op {
    Op::CreateTeam(CreateTeam {
        team_id: team_id(name).to_bytes(),
        name: name.to_owned(),
        limits,
    })
}

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

/// A device that asks for the key `key`.
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

/// Lets a device into a team with the permission to write.
pub fn approve_login(user_code: &str, team: &str) -> DecideLogin {
    DecideLogin {
        user_code: user_code.to_owned(),
        approve: true,
        team_id: team_id(team).to_bytes(),
        permissions: vec![Permission::Write as i32],
    }
}

pub fn deny_login(user_code: &str) -> DecideLogin {
    DecideLogin {
        user_code: user_code.to_owned(),
        ..DecideLogin::default()
    }
}

pub fn claim_login(device: &str) -> ClaimLogin {
    ClaimLogin {
        device_hash: key_hash(device),
    }
}

pub fn ack(team: &str, agent: &str, client_id: &str, seq: u64) -> CursorAck {
    CursorAck {
        team_id: team_id(team).to_bytes(),
        agent: agent.to_owned(),
        client_id: client_id.to_owned(),
        seq,
        implied: false,
    }
}

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

pub fn publish(id: &str, from: &str, topic: &str) -> Send {
    Send {
        topic: topic.to_owned(),
        ..send(id, from, "")
    }
}

pub fn subscribe(agent: &str, topic: &str) -> Subscribe {
    Subscribe {
        agent: agent.to_owned(),
        topic: topic.to_owned(),
        subscription_id: Bytes::copy_from_slice(&id_of(&format!("{agent}-{topic}"))),
        url: None,
    }
}

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

/// A replica of one, in memory, with its clocks in the test's hands.
#[derive(Default)]
pub struct Core {
    pub memory: Memory,
    pub cache: HotCache,
    pub index: u64,
    pub wall_ms: u64,
    pub cluster_ms: u64,
    pub epoch: u64,
}

impl Core {
    pub fn apply(&mut self, principal: Option<Principal>, op: Op) -> (Reply, Vec<Effect>) {
        let command = encode(self.wall_ms, self.epoch, self.cluster_ms, principal, op);
        self.play(&command)
    }

    /// Applies an encoded command.
    pub fn play(&mut self, command: &Bytes) -> (Reply, Vec<Effect>) {
        self.index += 1;
        let mut effects = Vec::new();
        let mut view = View::new(&self.memory, &mut self.cache).unwrap();
        let log_id = LogId {
            term: 1,
            node: 1,
            index: self.index,
        };
        let reply = apply_command(&mut view, &log_id, command, &mut effects).unwrap();
        let writes = view.into_writes();
        self.memory.write(writes);
        (reply, effects)
    }

    /// An entry without a command.
    pub fn blank(&mut self) {
        self.index += 1;
        let mut view = View::new(&self.memory, &mut self.cache).unwrap();
        let (term, node, index) = (1, 1, self.index);
        apply_blank(&mut view, &LogId { term, node, index });
        let writes = view.into_writes();
        self.memory.write(writes);
    }
}

/// With an empty cache: it only ever holds what the rows say.
impl Clone for Core {
    fn clone(&self) -> Self {
        Core {
            memory: self.memory.clone(),
            cache: HotCache::default(),
            ..*self
        }
    }
}
