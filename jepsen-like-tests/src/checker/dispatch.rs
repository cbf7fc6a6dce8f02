//! The rules of the dispatcher, over what can be seen from outside: what the receiver was sent, and what the cluster
//! says became of it.
//!
//! | rule | checked here | what cannot be seen, and where it is checked |
//! |---|---|---|
//! | D1 | an attempt arrives at most once | |
//! | D2 | a call belongs to an attempt that was granted and was not recorded as unsent | that its claim was committed first: the model |
//! | D3 | every granted attempt is accounted for | counters beyond the history that is kept: core properties |
//! | D4 | an attempt is recorded once | |
//! | D5 | a step fails once, steps rise by one | |
//! | D6, G4 | calls ≤ 4 + unknown; a delivery has at most one unknown attempt for each lost leader | |
//! | D7 | dead ⇔ one dead letter ⇔ one notice, never also delivered | |
//! | D8 | no call before its time; lateness is measured | |
//! | D9 | epochs of calls never go back | claims that led to no call: the model |
//! | D10 | nothing is left open; equal state hashes are asked of the cluster | empty indexes: core properties |
//! | D11 | no call to a deleted URL after 30 s | |
//! | D12 | without an unclean change nothing is unknown and nothing arrives twice | |
//! | G4 | what was acknowledged has exactly one delivery, of whatever end | |
//! | G6 | without a fault a prompt receiver is called within seconds, whatever the others do | |
//! | crash table | a leader that died at a known place cost what `dispatch.md` 4 says | |

mod attempts;
mod calls;
mod crashes;
mod ends;
#[cfg(test)]
mod made_up;
mod sends;
mod times;

use std::collections::{BTreeMap, BTreeSet};

pub use self::crashes::PLACES;
use self::times::lateness_ms;
use super::Evidence;
use crate::deliveries::{self, ended};
use crate::verdict::{Check, Coverage};

/// Every violation of the rules above.
pub fn check(evidence: &Evidence) -> Check {
    let dispatch = &evidence.dispatch;
    let mut violations = rules(dispatch);
    violations.extend(sends::check(dispatch, &evidence.operations, &evidence.faults));
    Check::new("dispatch", dispatch.calls.len() + dispatch.deliveries.len(), violations)
}

/// Those that need nothing but what the dispatcher left behind.
fn rules(evidence: &deliveries::Evidence) -> Vec<String> {
    [
        calls::check(evidence),
        attempts::check(evidence),
        ends::check(evidence),
        times::check(evidence),
        crashes::check(evidence),
    ]
    .concat()
}

/// What was counted; nothing in a run without webhooks.
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

/// What was measured.
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

/// What a run with webhooks must have met.
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

fn epochs(evidence: &deliveries::Evidence) -> usize {
    let epochs: BTreeSet<u64> = evidence.calls.iter().map(|call| call.epoch).collect();
    epochs.len()
}
