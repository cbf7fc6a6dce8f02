//! The cluster of the model: one log, three replicas that lag, and the acknowledgements that wait on each replica.

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

/// One node.
#[derive(Default)]
pub struct Replica {
    /// The state.
    pub memory: Memory,
    /// The number of log entries that the state contains.
    pub applied: usize,
    /// Acknowledgements that are not in the log yet.
    pub acks: Table,
}

pub struct Cluster {
    /// The state after the whole log.
    pub memory: Memory,
    cache: HotCache,
    log: Vec<Writes>,
    pub replicas: [Replica; 3],
    pub wall_ms: u64,
    pub cluster_ms: u64,
}

impl Cluster {
    /// Creates a cluster with a team that has nearly all its cursors, a topic with the first agents as subscribers, and an
    /// inbox that is nearly full.
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

    /// Commits a command and returns its reply, which must not be a refusal.
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

    /// The number of log entries.
    pub fn len(&self) -> usize {
        self.log.len()
    }

    /// Applies up to `count` more entries on a replica.
    pub fn catch_up(&mut self, node: usize, count: usize) {
        let replica = &mut self.replicas[node];
        let until = self.log.len().min(replica.applied.saturating_add(count));
        for writes in &self.log[replica.applied..until] {
            replica.memory.write(writes.clone());
        }
        replica.applied = until;
    }

    /// Restarts a node with a state that is `behind` entries older.
    pub fn kill(&mut self, node: usize, behind: usize) {
        let applied = self.replicas[node].applied.saturating_sub(behind);
        self.replicas[node] = Replica::default();
        self.catch_up(node, applied);
    }
}
