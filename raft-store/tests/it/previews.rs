//! The preview of a command: what applying it answers, if that changes nothing.

use agentpost_proto::command::reply::Reply as R;
use agentpost_raft_store::core::apply::preview::preview;
use agentpost_raft_store::core::keys;
use agentpost_raft_store::core::kv::Memory;
use bytes::Bytes;
use proptest::prelude::*;

use crate::common::random::{beginning, log, step};

/// All rows but the one that every entry changes.
fn rows(memory: &Memory) -> Vec<(&Bytes, &Bytes)> {
    memory.rows().filter(|(key, _)| **key != keys::applied()).collect()
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
            let previewed = preview(&core.memory, command).unwrap();
            let before = core.memory.clone();
            let (reply, effects) = core.play(command);
            if let Some(answer) = previewed {
                prop_assert_eq!(answer, reply);
                prop_assert!(effects.is_empty());
                prop_assert_eq!(rows(&before), rows(&core.memory));
            } else {
                prop_assert!(!matches!(reply.reply, Some(R::Rejection(_))), "a rejection changes nothing");
            }
        }
    }
}
