//! The preview of a command: what applying it answers, if that changes nothing.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use agentpost_proto::command::operation::Op;
use agentpost_proto::command::reply::Reply as R;
use agentpost_proto::command::{Command, Permission, SendBatch};
use agentpost_proto::record::Applied;
use agentpost_raft_store::core::apply::preview::preview;
use agentpost_raft_store::core::keys;
use agentpost_raft_store::core::kv::{Fatal, Kv, Lookup, Memory, Order, Rows};
use agentpost_raft_store::core::view;
use agentpost_testkit::commands::{create_key, create_team, encode, principal, send, unlimited};
use bytes::Bytes;
use proptest::prelude::*;
use prost::Message as _;

use crate::common::core::Core;
use crate::common::random::{beginning, log, step};

/// All rows but the one that every entry changes.
fn rows(memory: &Memory) -> Vec<(&Bytes, &Bytes)> {
    memory.rows().filter(|(key, _)| **key != keys::applied()).collect()
}

/// A command as a node previews it: its leader has not stamped it with cluster time. With it, the same command with the
/// cluster time of the state, as a leader would stamp it now.
fn unstamped(core: &Core, command: &Bytes) -> (Bytes, Bytes) {
    let applied: Applied = view::load(&core.memory, &keys::applied()).unwrap().unwrap();
    let Command { wall_ms, operation, .. } = Command::decode(command.clone()).unwrap();
    let stamped = Command {
        wall_ms,
        operation: operation.clone(),
        ct_epoch: applied.epoch,
        cluster_ms: applied.cluster_ms,
    };
    let unstamped = Command {
        wall_ms,
        operation,
        ..Command::default()
    };
    (unstamped.encode_to_vec().into(), stamped.encode_to_vec().into())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn a_preview_is_the_answer_of_a_command_that_changes_nothing(steps in prop::collection::vec(step(), 0..160)) {
        let mut core = beginning();
        for command in log(&steps).iter().skip(core.index as usize) {
            if command.is_empty() {
                core.blank();
                continue;
            }
            let (unstamped, stamped) = unstamped(&core, command);
            let previewed = preview(&core.memory, &unstamped).unwrap();
            let mut now = Core {
                memory: core.memory.clone(),
                index: core.index,
                ..Core::default()
            };
            let (reply, effects) = now.play(&stamped);
            if let Some(answer) = previewed {
                prop_assert_eq!(answer, reply);
                prop_assert!(effects.is_empty());
                prop_assert_eq!(rows(&core.memory), rows(&now.memory));
            } else {
                prop_assert!(!matches!(reply.reply, Some(R::Rejection(_))), "a rejection changes nothing");
            }
            core.play(command);
        }
    }
}

/// A state that counts how often it is read.
struct Counted<'a>(&'a Memory, AtomicUsize);

impl Lookup for Counted<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Fatal> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.get(key)
    }
}

impl Kv for Counted<'_> {
    fn range(&self, range: Range<Vec<u8>>, order: Order) -> Rows<'_> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.range(range, order)
    }

    fn frozen(&self) -> Box<dyn Kv + '_> {
        self.0.frozen()
    }
}

#[test]
fn a_preview_ends_at_the_first_message_that_writes() {
    let mut core = Core::begun(1_000_000);
    let root = || Some(principal("system", "root"));
    core.apply(root(), create_team("t", Some(unlimited())));
    core.apply(root(), Op::CreateKey(create_key("t", "k", Permission::Write, "")));
    let reads = |count: usize| {
        let sends = (0..count).map(|n| send(&format!("m{n}"), "alice", &format!("agent{n}")));
        let op = Op::SendBatch(SendBatch { sends: sends.collect() });
        let command = encode(core.wall_ms, 0, 0, Some(principal("t", "k")), op);
        let state = Counted(&core.memory, AtomicUsize::new(0));
        assert_eq!(preview(&state, &command).unwrap(), None, "it would be stored");
        state.1.load(Ordering::Relaxed)
    };
    assert_eq!(reads(100), reads(1));
}
