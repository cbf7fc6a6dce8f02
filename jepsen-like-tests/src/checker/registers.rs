//! Each key is a register: created, usable, and revoked for ever. Every answered use, whether accepted or rejected,
//! must fit one linear order of all operations on the key.
//!
//! Keys that expire are left out, because each node judges by its own knowledge of the voters' clocks; so are local
//! reads. [`super::revocation`] checks bounds for both.

use std::collections::{BTreeMap, HashSet};

use super::evidence::Evidence;
use super::wgl::{self, SearchResult, TimedOperation};
use crate::record::history::{Op, Operation, Outcome};
use crate::record::verdict::Check;

/// The state of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum KeyState {
    Unborn,
    Usable,
    Revoked,
}

/// An operation on a key, with its result.
#[derive(Debug, Clone, Copy)]
enum KeyEvent {
    Created,
    Revoked,
    LetIn,
    TurnedAway,
}

fn step(state: &KeyState, what: &KeyEvent) -> Option<KeyState> {
    match (what, state) {
        (KeyEvent::Created, KeyState::Unborn) => Some(KeyState::Usable),
        (KeyEvent::Revoked, KeyState::Usable | KeyState::Revoked) => Some(KeyState::Revoked),
        (KeyEvent::LetIn, KeyState::Usable) => Some(KeyState::Usable),
        (KeyEvent::TurnedAway, KeyState::Unborn | KeyState::Revoked) => Some(*state),
        _ => None,
    }
}

/// Searches for a linear order of each key's history.
pub fn check(evidence: &Evidence) -> Check {
    let mut keys: BTreeMap<&str, Vec<TimedOperation<KeyEvent>>> = BTreeMap::new();
    let mut created: HashSet<&str> = HashSet::new();
    for operation in &evidence.operations {
        if operation.op == Op::KeyCreate && operation.answered().is_some() && operation.asked.n.is_none() {
            created.insert(&operation.k);
        }
        if let Some(call) = call(operation) {
            keys.entry(&operation.k).or_default().push(call);
        }
    }
    let mut looked_at = 0;
    let mut violations = Vec::new();
    for (name, calls) in keys.iter().filter(|(name, _)| created.contains(*name)) {
        match wgl::search(KeyState::Unborn, calls, step) {
            SearchResult::Order => looked_at += calls.len(),
            SearchResult::None => {
                looked_at += calls.len();
                violations.push(format!(
                    "no linear order explains the {} responses about the key {name}",
                    calls.len()
                ));
            }
            SearchResult::GaveUp => {}
        }
    }
    Check::new("registers", looked_at, violations)
}

/// The operation on the state of a key, if it is one.
fn call(operation: &Operation) -> Option<TimedOperation<KeyEvent>> {
    let local = operation.asked.name.as_deref() == Some("local");
    let what = match (operation.op, &operation.outcome) {
        (Op::KeyCreate, Outcome::Ok(_)) => KeyEvent::Created,
        (Op::KeyRevoke, Outcome::Ok(_) | Outcome::Info(_)) => KeyEvent::Revoked,
        (Op::KeyUse, Outcome::Ok(_)) if !local => KeyEvent::LetIn,
        (Op::KeyUse, Outcome::Fail(why)) if !local && why.starts_with("401") => KeyEvent::TurnedAway,
        _ => return None,
    };
    let known = !matches!(operation.outcome, Outcome::Info(_));
    Some(TimedOperation {
        began: operation.began,
        ended: operation.ended.filter(|_| known),
        what,
    })
}

#[cfg(test)]
mod tests {
    use super::super::operation_builders::{did, evidence, name, number, refused, unknown};
    use super::*;
    use crate::record::history::Fields;

    const KEY: &str = "t/1";

    fn create() -> Operation {
        did(Op::KeyCreate, KEY, Fields::default(), 1..2, Fields::default())
    }

    fn revoke(times: std::ops::Range<u64>) -> Operation {
        did(Op::KeyRevoke, KEY, Fields::default(), times, Fields::default())
    }

    fn used(way: &str, times: std::ops::Range<u64>) -> Operation {
        did(Op::KeyUse, KEY, name(way), times, Fields::default())
    }

    fn away(way: &str, times: std::ops::Range<u64>) -> Operation {
        refused(Op::KeyUse, KEY, name(way), times, "401 invalid API key")
    }

    fn violated(operations: Vec<Operation>) -> bool {
        check(&evidence(operations)).violated > 0
    }

    #[test]
    fn a_key_is_usable_until_it_is_revoked() {
        assert!(!violated(vec![
            create(),
            used("read", 3..4),
            revoke(5..6),
            away("write", 7..8)
        ]));
        assert!(violated(vec![create(), away("read", 3..4)]));
        assert!(violated(vec![create(), revoke(5..6), used("read", 7..8)]));
    }

    #[test]
    fn once_turned_away_it_is_never_let_in_again() {
        let history = |first: Operation, second: Operation| vec![create(), revoke(5..20), first, second];
        assert!(!violated(history(used("read", 6..7), away("write", 8..9))));
        assert!(violated(history(away("read", 6..7), used("write", 8..9))));
        // Even if the revocation has an unknown outcome.
        let doubt = unknown(Op::KeyRevoke, KEY, Fields::default(), 5..6);
        assert!(!violated(vec![
            create(),
            doubt.clone(),
            used("read", 7..8),
            away("read", 9..10)
        ]));
        assert!(violated(vec![create(), doubt, away("read", 7..8), used("read", 9..10)]));
    }

    #[test]
    fn other_failures_and_reads_of_what_a_node_has_say_nothing() {
        let failed = refused(Op::KeyUse, KEY, name("read"), 3..4, "503 no leader");
        assert!(!violated(vec![
            create(),
            failed,
            away("local", 5..6),
            used("read", 7..8)
        ]));
        assert!(!violated(vec![create(), revoke(5..6), used("local", 7..8)]));
    }

    #[test]
    fn a_key_that_expires_is_left_out() {
        let create = did(Op::KeyCreate, KEY, number(5), 1..2, Fields::default());
        let check = check(&evidence(vec![create, away("read", 3..4), used("read", 5..6)]));
        assert_eq!((check.looked_at, check.violated), (0, 0));
    }
}
