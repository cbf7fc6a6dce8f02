//! D8 and D11: the arrival times of calls, on the monotonic clock of the receiver.

use crate::record::deliveries::{DeliveryEvidence, LATER_PREFIX, ReceivedCall};
use crate::record::faults::Fault;

/// Delays before the steps 1, 2 and 3.
const DELAYS_US: [u64; 3] = [1_000_000, 10_000_000, 100_000_000];
/// An attempt with an unknown outcome is closed 33 s after its claim; its call may have begun up to 2 s after the
/// claim.
const UNKNOWN_US: u64 = 31_000_000;
/// The longest call to a webhook that is deleted meanwhile.
const DELETED_US: u64 = 30_000_000;
/// Upper bound on the time for which a fault delays calls after its end: an election and a tick.
const AFTERMATH_US: u64 = 3_000_000;
/// Cluster time counts whole milliseconds.
const ROUNDING_US: u64 = 5_000;

/// Checks the time between the calls of each delivery, and the calls to deleted webhooks.
pub fn check(evidence: &DeliveryEvidence) -> Vec<String> {
    let mut violations = Vec::new();
    for (id, calls) in evidence.by_delivery() {
        for (before, call, least_us) in successors(evidence, &calls) {
            let apart_us = call.at_us.saturating_sub(before.at_us);
            if apart_us + ROUNDING_US < least_us {
                violations.push(format!(
                    "D8: attempt {} of {id} arrived {apart_us} µs after attempt {}, but must wait {least_us} µs",
                    call.attempt, before.attempt
                ));
            }
        }
    }
    for deletion in evidence.deletions.iter().filter(|_| evidence.disruptions.pauses == 0) {
        let after = |call: &&ReceivedCall| call.path == deletion.path && call.at_us > deletion.at_us + DELETED_US;
        for call in evidence.calls.iter().filter(after) {
            violations.push(format!(
                "D11: attempt {} of {} arrived at {} long after the webhook was deleted",
                call.attempt, call.delivery, call.path
            ));
        }
    }
    violations
}

/// Each call with the one before it, and the required time between them in microseconds.
fn successors<'a>(
    evidence: &DeliveryEvidence,
    calls: &[&'a ReceivedCall],
) -> Vec<(&'a ReceivedCall, &'a ReceivedCall, u64)> {
    let pairs = calls.windows(2).map(|pair| (pair[0], pair[1]));
    let least = |(before, call): (&'a ReceivedCall, &'a ReceivedCall)| {
        let least_us = match call.step.checked_sub(before.step) {
            Some(0) => UNKNOWN_US,
            Some(_) => DELAYS_US.get(call.step as usize - 1).copied().unwrap_or(0),
            None => 0, // reported by D5
        };
        (before, call, least_us)
    };
    // A process that was stopped may send an old attempt late; the time between such calls proves nothing.
    let in_order = |(before, call): &(&ReceivedCall, &ReceivedCall)| {
        call.at_us >= before.at_us || evidence.disruptions.pauses == 0
    };
    pairs.filter(in_order).map(least).collect()
}

/// The lateness of each retry with no fault nearby, in milliseconds and sorted. It includes the duration of the
/// failed call. Retries at a time that the receiver asked for are left out.
pub fn lateness_ms(evidence: &DeliveryEvidence, faults: &[Fault]) -> Vec<u64> {
    let by_delivery = evidence.by_delivery();
    let near = |from_us: u64, to_us: u64| {
        let mut faults = faults.iter();
        faults.any(|fault| fault.began / 1000 < to_us && from_us < fault.ended / 1000 + AFTERMATH_US)
    };
    let mut late: Vec<u64> = by_delivery
        .values()
        .flat_map(|calls| successors(evidence, calls))
        .filter(|(before, call, _)| before.step + 1 == call.step && !before.path.starts_with(LATER_PREFIX))
        .filter(|(before, call, _)| !near(before.at_us, call.at_us))
        .map(|(before, call, least_us)| (call.at_us - before.at_us).saturating_sub(least_us) / 1000)
        .collect();
    late.sort_unstable();
    late
}

#[cfg(test)]
mod tests {
    use super::super::delivery_builders::{dead, delivered, evidence, violates};
    use crate::record::deliveries::Deletion;

    #[test]
    fn a_call_before_its_time_violates_d8() {
        let good = evidence(dead("d", &["failed"; 4]));
        assert!(super::check(&good).is_empty());
        assert_eq!(super::lateness_ms(&good, &[]), [0, 0, 0]);
        for n in 1..4 {
            let mut bad = good.clone();
            bad.calls[n].at_us -= 100_000;
            violates(&bad, &super::check, "D8");
        }
        let mut early = evidence(delivered("d", &["unknown", "delivered"]));
        assert!(super::check(&early).is_empty());
        early.calls[1].at_us = early.calls[0].at_us + 30_000_000;
        violates(&early, &super::check, "D8");
    }

    #[test]
    fn a_call_long_after_the_deletion_violates_d11() {
        let mut bad = evidence(delivered("d", &["failed", "delivered"]));
        bad.calls[1].at_us += 40_000_000;
        let (path, at_us) = (bad.calls[1].path.clone(), bad.calls[1].at_us - 30_000_001);
        bad.deletions = vec![Deletion { path, at_us }];
        violates(&bad, &super::check, "D11");
        bad.deletions[0].at_us += 1;
        assert!(super::check(&bad).is_empty());
        bad.deletions[0].at_us = 0;
        bad.disruptions.pauses = 1;
        assert!(super::check(&bad).is_empty());
    }
}
