//! The servers without their sockets: one log, three replicas that lag as they like, the acks that wait on each.

use agentpost_node::server::ws::ack::Table;
use agentpost_proto::command::operation::Op;
use agentpost_proto::command::{BeginEpoch, Permission, Principal, Reply, Send, reply};
use agentpost_proto::id::TeamId;
use agentpost_proto::limits;
use agentpost_proto::record::{InboxHead, LogId};
use agentpost_raft_store::core::apply::apply_command;
use agentpost_raft_store::core::keys;
use agentpost_raft_store::core::kv::{Memory, Writes};
use agentpost_raft_store::core::query;
use agentpost_raft_store::core::view::{HotCache, View};
use prost::Message as _;

use super::steps::{AGENTS, BOUNDED, BOUNDED_ENTRIES, CURSORS_LEFT, TOPIC};
use agentpost_testkit::commands::{
    bootstrap, create_key, create_team, encode, principal, subscribe, team_id, unlimited,
};

/// The only team.
pub fn team() -> TeamId {
    team_id("acme")
}

/// A key of the team that may write.
pub fn member() -> Option<Principal> {
    Some(principal("acme", "w"))
}

/// What one node has.
#[derive(Default)]
pub struct Replica {
    /// Its state.
    pub memory: Memory,
    /// How much of the log is in it.
    pub applied: usize,
    /// The acks that wait there.
    pub acks: Table,
}

pub struct Cluster {
    /// With the whole log applied.
    pub memory: Memory,
    cache: HotCache,
    log: Vec<Writes>,
    pub replicas: [Replica; 3],
    pub wall_ms: u64,
    pub cluster_ms: u64,
}

impl Cluster {
    /// With a team that has nearly all its cursors, a topic to which the first agents are subscribed, and an inbox
    /// that is nearly full.
    pub fn new() -> Self {
        let mut cluster = Cluster {
            memory: Memory::default(),
            cache: HotCache::default(),
            log: Vec::new(),
            replicas: Default::default(),
            wall_ms: 1_000_000,
            cluster_ms: 0,
        };
        let root = || Some(principal("system", "root"));
        cluster.apply(None, Op::BeginEpoch(BeginEpoch { node: 1, term: 1 }));
        cluster.apply(None, bootstrap("root"));
        cluster.apply(root(), create_team("acme", Some(unlimited())));
        let key = create_key("acme", "w", Permission::Write, "");
        cluster.apply(root(), Op::CreateKey(key));
        for agent in &AGENTS[..2] {
            cluster.apply(member(), Op::Subscribe(subscribe(agent, TOPIC)));
        }
        let head = InboxHead {
            entries: limits::INBOX_ENTRIES_MAX - BOUNDED_ENTRIES,
            unread: limits::INBOX_ENTRIES_MAX - BOUNDED_ENTRIES,
            ..InboxHead::default()
        };
        let mut counts = query::team::head(&cluster.memory, team()).unwrap();
        counts.cursors = limits::CURSORS_MAX - CURSORS_LEFT;
        cluster.append(vec![
            (keys::inbox_head(team(), BOUNDED), Some(head.encode_to_vec().into())),
            (keys::team_head(team()), Some(counts.encode_to_vec().into())),
        ]);
        cluster.cache.clear();
        cluster
    }

    /// Commits a command and returns its reply, which is not a refusal.
    pub fn apply(&mut self, principal: Option<Principal>, op: Op) -> reply::Reply {
        let command = encode(self.wall_ms, 1, self.cluster_ms, principal, op);
        let mut view = View::new(&self.memory, &mut self.cache).unwrap();
        let log_id = LogId {
            term: 1,
            node: 1,
            index: self.log.len() as u64 + 1,
        };
        let Reply { reply } = apply_command(&mut view, &log_id, &command, &mut Vec::new()).unwrap();
        let writes = view.into_writes();
        self.append(writes);
        let reply = reply.unwrap();
        assert!(!matches!(reply, reply::Reply::Rejection(_)), "{reply:?}");
        reply
    }

    /// Commits a message and returns its seq.
    pub fn send(&mut self, send: Send) -> u64 {
        match self.apply(member(), Op::Send(send)) {
            reply::Reply::Send(sent) => sent.seq,
            other => panic!("instead of a send: {other:?}"),
        }
    }

    fn append(&mut self, writes: Writes) {
        self.memory.write(writes.clone());
        self.log.push(writes);
    }

    /// Entries of the log.
    pub fn len(&self) -> usize {
        self.log.len()
    }

    /// Has a replica apply up to `count` more entries.
    pub fn catch_up(&mut self, node: usize, count: usize) {
        let replica = &mut self.replicas[node];
        let until = self.log.len().min(replica.applied.saturating_add(count));
        for writes in &self.log[replica.applied..until] {
            replica.memory.write(writes.clone());
        }
        replica.applied = until;
    }

    /// Ends a node, which begins again with an older state.
    pub fn kill(&mut self, node: usize, behind: usize) {
        let applied = self.replicas[node].applied.saturating_sub(behind);
        self.replicas[node] = Replica::default();
        self.catch_up(node, applied);
    }
}
