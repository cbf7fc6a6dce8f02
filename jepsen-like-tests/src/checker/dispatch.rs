//! The rules of the webhook dispatcher, checked with what is visible from outside: the calls that the receiver got,
//! and the state of the deliveries that the cluster reports.
//!
//! | rule | checked here | invisible from outside, and where it is checked |
//! |---|---|---|
//! | D1 | an attempt arrives at most once | |
//! | D2 | a call belongs to an attempt that was granted and is not recorded as not sent | its claim was committed first: the model |
//! | D3 | every granted attempt is accounted for | counters beyond the kept history: core properties |
//! | D4 | an attempt is recorded once | |
//! | D5 | a step fails once, steps increase by one | |
//! | D6, G4 | calls ≤ 4 + unknown; a delivery has at most one unknown attempt for each lost node | |
//! | D7 | dead ⇔ one dead letter ⇔ one notice, never also delivered | |
//! | D8 | no call before its due time; lateness is measured | |
//! | D9 | epochs of calls never decrease | claims that led to no call: the model |
//! | D10 | no delivery stays open; the replicas checker compares the state hashes | empty indexes: core properties |
//! | D11 | no call to a deleted URL after 30 s | |
//! | D12 | unless a node was lost, no attempt is unknown and none arrives twice | |
//! | G4 | an acknowledged message has exactly one delivery, however it ends | |
//! | G6 | without a fault, a receiver that answers at once is called within seconds, whatever other receivers do | |
//! | crash points | a leader that died at a known point causes the calls and unknown attempts listed in `crashes.rs` | |

mod attempts;
mod calls;
mod crashes;
#[cfg(test)]
mod delivery_builders;
mod ends;
mod sends;
mod times;

use std::collections::{BTreeMap, BTreeSet};

use self::times::lateness_ms;
use super::evidence::Evidence;
use crate::record::deliveries::{self, ended};
use crate::record::verdict::{Check, Coverage};

/// Reports every violation of the rules above.
pub fn check(evidence: &Evidence) -> Check {
    let dispatch = &evidence.dispatch;
    let mut violations = rules(dispatch);
    violations.extend(sends::check(dispatch, &evidence.operations, &evidence.faults));
    Check::new("dispatch", dispatch.calls.len() + dispatch.deliveries.len(), violations)
}

/// The rules that need only the final state of the deliveries.
fn rules(evidence: &deliveries::DeliveryEvidence) -> Vec<String> {
    [
        calls::check(evidence),
        attempts::check(evidence),
        ends::check(evidence),
        times::check(evidence),
        crashes::check(evidence),
    ]
    .concat()
}

/// Counts; empty in a run without webhooks.
pub fn figures(evidence: &Evidence) -> BTreeMap<String, f64> {
    let dispatch = &evidence.dispatch;
    if dispatch.agents.is_empty() {
        return BTreeMap::new();
    }
    let unknown: usize = dispatch.deliveries.values().map(|d| ended(d, "unknown")).sum();
    let redelivered = dispatch.calls.iter().filter(|call| call.redelivery).count();
    let counts = [
        ("webhook calls", dispatch.calls.len()),
        ("deliveries", dispatch.deliveries.len()),
        ("dead letters", dispatch.dead.len()),
        ("notices", dispatch.notices.len()),
        ("unknown attempts", unknown),
        ("calls after an unknown attempt", redelivered),
        ("dispatch epochs with calls", epochs(dispatch)),
    ];
    counts
        .into_iter()
        .map(|(name, count)| (name.to_owned(), count as f64))
        .collect()
}

pub fn samples(evidence: &Evidence) -> BTreeMap<String, Vec<f64>> {
    let dispatch = &evidence.dispatch;
    let measured = [
        ("retry lateness ms", lateness_ms(dispatch, &evidence.faults)),
        (
            "first call of a prompt receiver ms",
            sends::first_calls_ms(dispatch, &evidence.operations),
        ),
    ];
    let some = measured.into_iter().filter(|(_, ms)| !ms.is_empty());
    some.map(|(name, ms)| (name.to_owned(), ms.into_iter().map(|ms| ms as f64).collect()))
        .collect()
}

/// The coverage that a run with webhooks must reach.
pub fn coverage(evidence: &Evidence) -> Vec<Coverage> {
    let dispatch = &evidence.dispatch;
    if dispatch.agents.is_empty() {
        return Vec::new();
    }
    let least = |what: &str, got: usize| Coverage {
        what: what.to_owned(),
        wanted: 3,
        got: got as u64,
    };
    vec![
        least("webhook calls", dispatch.calls.len()),
        least("deliveries", dispatch.deliveries.len()),
    ]
}

fn epochs(evidence: &deliveries::DeliveryEvidence) -> usize {
    let epochs: BTreeSet<u64> = evidence.calls.iter().map(|call| call.epoch).collect();
    epochs.len()
}
