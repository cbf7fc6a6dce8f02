//! A revoked key is rejected: by every write and linearizable read that begins after the revocation was acknowledged,
//! and nothing that such a write sent is ever found. Local reads and sessions end within a second on a connected
//! node. An expired key is rejected, too.

use std::collections::{HashMap, HashSet};

use super::evidence::Evidence;
use crate::record::faults::Fault;
use crate::record::history::{Op, Operation};
use crate::record::verdict::Check;

const SECOND: u64 = 1_000_000_000;
/// How long a connected node may go on with a revoked key.
const LOCAL: u64 = SECOND;
/// How long after a fault a node may still be disconnected.
const QUIET: u64 = 3 * SECOND;
/// How long after its expiry a key may count as valid: wall time stops while no majority reports its clocks.
const EXPIRY: u64 = 5 * SECOND;

/// Checks every use of every key.
pub fn check(evidence: &Evidence) -> Check {
    let revoked = revocations(&evidence.operations);
    let expired = if clocks_were_touched(&evidence.faults) {
        HashMap::new()
    } else {
        expiries(&evidence.operations)
    };
    let found: HashSet<&str> = evidence
        .operations
        .iter()
        .filter(|o| o.op == Op::Inbox)
        .filter_map(Operation::answered)
        .flat_map(|answered| answered.items.iter().map(|item| item.key.as_str()))
        .collect();
    let mut looked_at = 0;
    let mut violations = Vec::new();
    for used in evidence.operations.iter().filter(|o| o.op == Op::KeyUse) {
        let written = used.asked.key.as_deref().is_some_and(|key| found.contains(key));
        let accepted = used.answered().is_some() || written;
        let way = used.asked.name.as_deref().unwrap_or_default();
        let ends = [(&revoked, 0, "revoked"), (&expired, EXPIRY, "expired")];
        for (ends, bound, how) in ends {
            let Some(end) = ends.get(used.k.as_str()).copied() else {
                continue;
            };
            // A session is one use that lasts until it ends.
            let until = if way == "listen" {
                used.ended.unwrap_or(0)
            } else {
                used.began
            };
            let slow = way == "local" || (way == "listen" && used.began <= end);
            if until <= end || (slow && !is_quiet(&evidence.faults, end, used)) {
                continue;
            }
            looked_at += 1;
            let since = until - end;
            if accepted && since > bound.max(if slow { LOCAL } else { 0 }) {
                violations.push(format!(
                    "the key {} was accepted ({way}) by node {} {} ms after it was {how}",
                    used.k,
                    used.node.unwrap_or(0),
                    since / 1_000_000
                ));
            }
        }
    }
    Check::new("revocation", looked_at, violations)
}

/// When each key was certainly revoked.
fn revocations(operations: &[Operation]) -> HashMap<&str, u64> {
    let mut revoked: HashMap<&str, u64> = HashMap::new();
    for revoke in operations
        .iter()
        .filter(|o| o.op == Op::KeyRevoke && o.answered().is_some())
    {
        let ended = revoke.ended.unwrap_or(u64::MAX);
        let first = revoked.entry(&revoke.k).or_insert(ended);
        *first = ended.min(*first);
    }
    revoked
}

/// When each key expires that has a lifetime. The expiry was computed before the request to create the key was sent.
fn expiries(operations: &[Operation]) -> HashMap<&str, u64> {
    let created = operations.iter().filter(|o| o.op == Op::KeyCreate);
    created
        .filter_map(|o| Some((o.k.as_str(), o.began + o.asked.n?)))
        .collect()
}

fn clocks_were_touched(faults: &[Fault]) -> bool {
    faults.iter().any(|fault| fault.kind == "clock")
}

/// Whether no fault was near between the end of a key and its use.
fn is_quiet(faults: &[Fault], end: u64, used: &Operation) -> bool {
    let over = used.ended.unwrap_or(u64::MAX);
    !faults
        .iter()
        .any(|fault| fault.began <= over && fault.ended + QUIET >= end)
}

#[cfg(test)]
mod tests {
    use super::super::operation_builders::{did, evidence, items, name, number, refused, unknown};
    use super::*;
    use crate::record::faults::FaultState;
    use crate::record::history::Fields;

    const KEY: &str = "t/1";

    fn revoke(times: std::ops::Range<u64>) -> Operation {
        did(Op::KeyRevoke, KEY, Fields::default(), times, Fields::default())
    }

    fn used(way: &str, began: u64) -> Operation {
        did(Op::KeyUse, KEY, name(way), began..began + 5, Fields::default())
    }

    fn write(began: u64) -> Operation {
        let asked = Fields {
            key: Some("t/1-1".to_owned()),
            ..name("write")
        };
        unknown(Op::KeyUse, KEY, asked, began..began + 5)
    }

    fn inbox(keys: &[&str]) -> Operation {
        did(
            Op::Inbox,
            "t/sink",
            Fields::default(),
            900..910,
            Fields::items(items(keys, None)),
        )
    }

    fn violated(operations: Vec<Operation>) -> u64 {
        check(&evidence(operations)).violated
    }

    #[test]
    fn nobody_is_let_in_who_comes_after_the_revocation() {
        for way in ["read", "write"] {
            assert_eq!(violated(vec![revoke(10..20), used(way, 19)]), 0);
            assert_eq!(violated(vec![revoke(10..20), used(way, 21)]), 1);
        }
        let away = refused(Op::KeyUse, KEY, name("read"), 21..25, "401");
        assert_eq!(violated(vec![revoke(10..20), away]), 0);
        let doubt = unknown(Op::KeyRevoke, KEY, Fields::default(), 10..20);
        assert_eq!(violated(vec![doubt, used("read", 21)]), 0);
    }

    #[test]
    fn later_writes_of_a_revoked_key_must_not_be_found() {
        assert_eq!(violated(vec![revoke(10..20), write(21), inbox(&[])]), 0);
        assert_eq!(violated(vec![revoke(10..20), write(19), inbox(&["t/1-1"])]), 0);
        assert_eq!(violated(vec![revoke(10..20), write(21), inbox(&["t/1-1"])]), 1);
    }

    #[test]
    fn a_node_must_refuse_a_revoked_key_within_a_second_unless_it_is_cut_off() {
        assert_eq!(violated(vec![revoke(10..20), used("local", 20 + LOCAL)]), 0);
        assert_eq!(violated(vec![revoke(10..20), used("local", 21 + LOCAL)]), 1);
        let mut cut = evidence(vec![revoke(10..20), used("local", 21 + LOCAL)]);
        cut.faults.push(Fault {
            kind: "pause".to_owned(),
            nodes: vec![1],
            note: String::new(),
            cut_links: Vec::new(),
            members: None,
            began: 3,
            ended: 30,
            state: FaultState::Installed,
        });
        assert_eq!(check(&cut).violated, 0);
        cut.faults[0].kind = "clock".to_owned();
        cut.operations.push(used("read", 21 + LOCAL));
        assert_eq!(check(&cut).violated, 1);
    }

    #[test]
    fn a_session_ends_a_second_after_its_key() {
        let session = |began, ended| did(Op::KeyUse, KEY, name("listen"), began..ended, Fields::default());
        assert_eq!(violated(vec![revoke(10..20), session(5, 20 + LOCAL)]), 0);
        assert_eq!(violated(vec![revoke(10..20), session(5, 21 + LOCAL)]), 1);
        assert_eq!(violated(vec![revoke(10..20), session(5, 15)]), 0);
        // No new session begins.
        assert_eq!(violated(vec![revoke(10..20), session(21, 22)]), 1);
    }

    #[test]
    fn a_key_ends_with_its_time() {
        let create = did(Op::KeyCreate, KEY, number(100), 1..2, Fields::default());
        assert_eq!(violated(vec![create.clone(), used("read", 101 + EXPIRY)]), 0);
        assert_eq!(violated(vec![create, used("read", 102 + EXPIRY)]), 1);
    }
}
