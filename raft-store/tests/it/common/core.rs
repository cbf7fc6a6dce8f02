//! A core without Raft: commands in, replies and effects out.

use agentpost_proto::command::operation::Op;
use agentpost_proto::command::{BeginEpoch, Principal, Reply};
use agentpost_proto::record::LogId;
use agentpost_raft_store::core::apply::{apply_blank, apply_command};
use agentpost_raft_store::core::effect::Effect;
use agentpost_raft_store::core::kv::Memory;
use agentpost_raft_store::core::view::{HotCache, View};
use agentpost_testkit::commands::{bootstrap, encode};
use bytes::Bytes;

/// A single replica in memory, whose clocks the test sets.
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
    /// A core in its first epoch, with the operator's key "root". Both clocks show `now_ms`.
    pub fn begun(now_ms: u64) -> Self {
        let mut core = Core {
            wall_ms: now_ms,
            cluster_ms: now_ms,
            ..Core::default()
        };
        core.apply(None, Op::BeginEpoch(BeginEpoch { node: 1, term: 1 }));
        core.epoch = core.index;
        core.apply(None, bootstrap("root"));
        core
    }

    pub fn apply(&mut self, principal: Option<Principal>, op: Op) -> (Reply, Vec<Effect>) {
        let command = encode(self.wall_ms, self.epoch, self.cluster_ms, principal, op);
        self.play(&command)
    }

    /// Applies an encoded command.
    pub fn play(&mut self, command: &Bytes) -> (Reply, Vec<Effect>) {
        let mut effects = Vec::new();
        let (reply, _) = self.batch([command], &mut effects).remove(0);
        (reply, effects)
    }

    /// Applies encoded commands in one batch. Returns the reply of each, and the number of rows that it touched.
    pub fn batch<'a>(
        &mut self,
        commands: impl IntoIterator<Item = &'a Bytes>,
        effects: &mut Vec<Effect>,
    ) -> Vec<(Reply, u64)> {
        let mut view = View::new(&self.memory, &mut self.cache).unwrap();
        let mut answers = Vec::new();
        for command in commands {
            self.index += 1;
            let (term, node, index) = (1, 1, self.index);
            let before = view.touched();
            let reply = apply_command(&mut view, &LogId { term, node, index }, command, effects).unwrap();
            answers.push((reply, view.touched() - before));
        }
        let writes = view.into_writes();
        self.memory.write(writes);
        answers
    }

    /// Applies a blank entry.
    pub fn blank(&mut self) {
        self.index += 1;
        let mut view = View::new(&self.memory, &mut self.cache).unwrap();
        let (term, node, index) = (1, 1, self.index);
        apply_blank(&mut view, &LogId { term, node, index });
        let writes = view.into_writes();
        self.memory.write(writes);
    }
}

/// The clone begins with an empty cache, which only ever holds copies of rows.
impl Clone for Core {
    fn clone(&self) -> Self {
        Core {
            memory: self.memory.clone(),
            cache: HotCache::default(),
            ..*self
        }
    }
}
