//! D3 to D6, D12 and G4: the recorded attempts of each delivery.

use agentpost::api::abbababa::DeliveryDetail;

use crate::record::deliveries::{DeliveryEvidence, ReceivedCall, ended};

/// The number of failed attempts that end a delivery.
const STEPS: usize = 4;
/// An attempt is closed as unknown 33 s after its claim, and its call begins at most 2 s after it; less a second for the
/// way to the receiver.
const CLOSED_AFTER_US: u64 = 30_000_000;
/// The number of unknown and unsent attempts in the history of a delivery.
const OTHERS_KEPT: usize = 8;

/// Checks each delivery.
pub fn check(evidence: &DeliveryEvidence) -> Vec<String> {
    let mut violations = Vec::new();
    let by_delivery = evidence.by_delivery();
    for (id, delivery) in &evidence.deliveries {
        violations.extend(numbers(id, delivery));
        violations.extend(steps(id, delivery));
        let calls = by_delivery.get(id.as_str()).map_or(0, Vec::len);
        let unknown = ended(delivery, "unknown");
        if calls > STEPS + unknown {
            violations.push(format!("D6: {calls} calls of {id} with {unknown} unknown attempts"));
        }
        violations.extend(unknowns(evidence, delivery, by_delivery.get(id.as_str())));
        let recorded = ended(delivery, "failed") + ended(delivery, "delivered");
        if evidence.disruptions.is_clean()
            && delivery.state != "cancelled"
            && calls > recorded + usize::from(delivery.state == "claimed")
        {
            violations.push(format!(
                "D12: {id} was called {calls} times for {recorded} recorded outcomes, although no node was lost"
            ));
        }
    }
    violations
}

/// A lost node leaves at most one attempt per delivery without an outcome. The next one is made only when the one before
/// is so old that its call has ended, which only a process that was stopped before its call can upset.
fn unknowns(evidence: &DeliveryEvidence, delivery: &DeliveryDetail, calls: Option<&Vec<&ReceivedCall>>) -> Vec<String> {
    let mut violations = Vec::new();
    let (id, unknown) = (&delivery.id, ended(delivery, "unknown"));
    if let Some(lost) = evidence.disruptions.node_losses.filter(|lost| unknown > *lost as usize) {
        let rule = if lost == 0 { "D12" } else { "G4" };
        violations.push(format!(
            "{rule}: {unknown} attempts of {id} are unknown, but only {lost} nodes were lost"
        ));
    }
    let is_unknown = |call: &&&ReceivedCall| {
        let mut attempts = delivery.attempts.iter();
        attempts.any(|a| a.number == call.attempt && a.end == "unknown")
    };
    let unknown: Vec<&ReceivedCall> = calls.into_iter().flatten().filter(is_unknown).copied().collect();
    let soon = |pair: &&[&ReceivedCall]| {
        pair[0].epoch == pair[1].epoch && pair[1].at_us.abs_diff(pair[0].at_us) < CLOSED_AFTER_US
    };
    if evidence.disruptions.pauses == 0
        && let Some(pair) = unknown.windows(2).find(soon)
    {
        violations.push(format!(
            "G4: two attempts of {id} are unknown in epoch {}, and the second one came too early",
            pair[0].epoch
        ));
    }
    violations
}

fn numbers(id: &str, delivery: &DeliveryDetail) -> Vec<String> {
    let mut violations = Vec::new();
    let numbers: Vec<u32> = delivery.attempts.iter().map(|a| a.number).collect();
    if !numbers.is_sorted_by(|a, b| a < b) {
        violations.push(format!("D4: the attempt numbers of {id} do not increase: {numbers:?}"));
    }
    let known = ["delivered", "failed", "unknown", "not_sent"];
    for attempt in delivery.attempts.iter().filter(|a| !known.contains(&a.end.as_str())) {
        violations.push(format!(
            "D4: attempt {} of {id} ended as {:?}",
            attempt.number, attempt.end
        ));
    }
    let claimed = usize::from(delivery.state == "claimed");
    let granted = delivery.attempt_count as usize;
    let others = ended(delivery, "unknown") + ended(delivery, "not_sent");
    let accounted = numbers.len() + claimed;
    if accounted > granted || accounted < granted && others < OTHERS_KEPT {
        violations.push(format!(
            "D3: {accounted} attempts of {id} are accounted for, but {granted} were granted"
        ));
    }
    violations
}

fn steps(id: &str, delivery: &DeliveryDetail) -> Vec<String> {
    let mut violations = Vec::new();
    let failed = delivery.attempts.iter().filter(|a| a.end == "failed");
    let failed: Vec<u32> = failed.map(|a| a.step).collect();
    if !failed.iter().copied().eq(0..failed.len() as u32) {
        violations.push(format!("D5: the failed steps of {id} are not consecutive: {failed:?}"));
    }
    if !delivery.attempts.iter().map(|a| a.step).is_sorted() {
        violations.push(format!("D5: the steps of {id} decrease"));
    }
    if delivery.step as usize > failed.len() || failed.len() > STEPS {
        violations.push(format!(
            "D5: {id} is on step {} after the failed steps {failed:?}",
            delivery.step
        ));
    }
    if delivery.end.as_deref() == Some("exhausted") && failed.len() != STEPS {
        violations.push(format!("D6: {id} is exhausted after the failed steps {failed:?}"));
    }
    let successes = ended(delivery, "delivered");
    if successes != usize::from(delivery.state == "delivered") {
        violations.push(format!("D4: {id} is {} after {successes} successes", delivery.state));
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::super::delivery_builders::{call, dead, delivered, evidence, violates};

    #[test]
    fn an_attempt_that_is_not_accounted_for_violates_d3() {
        let mut bad = evidence(delivered("d", &["failed", "delivered"]));
        bad.deliveries.get_mut("d").unwrap().attempt_count = 3;
        violates(&bad, &super::check, "D3");
        bad.deliveries.get_mut("d").unwrap().attempt_count = 1;
        violates(&bad, &super::check, "D3");
    }

    #[test]
    fn an_attempt_that_is_recorded_twice_violates_d4() {
        let mut bad = evidence(delivered("d", &["failed", "delivered"]));
        bad.deliveries.get_mut("d").unwrap().attempts[1].number = 1;
        violates(&bad, &super::check, "D4");
        let mut twice = evidence(delivered("d", &["failed", "delivered"]));
        twice.deliveries.get_mut("d").unwrap().attempts[0].end = "delivered".to_owned();
        violates(&twice, &super::check, "D4");
    }

    #[test]
    fn a_step_that_fails_twice_or_is_left_out_violates_d5() {
        for steps in [[0, 0], [1, 0], [0, 2]] {
            let mut bad = evidence(delivered("d", &["failed", "failed", "delivered"]));
            let delivery = bad.deliveries.get_mut("d").unwrap();
            (delivery.attempts[0].step, delivery.attempts[1].step) = (steps[0], steps[1]);
            violates(&bad, &super::check, "D5");
        }
    }

    #[test]
    fn more_calls_than_steps_and_unknowns_violate_d6() {
        let mut bad = evidence(dead("d", &["failed", "failed", "unknown", "failed", "failed"]));
        assert!(super::check(&bad).is_empty());
        bad.calls.push(call("d", 6, 3, 1, 1_000_000));
        violates(&bad, &super::check, "D6");
    }

    #[test]
    fn an_unknown_attempt_needs_a_lost_node_and_the_next_one_waits_for_its_end() {
        let mut bad = evidence(dead(
            "d",
            &["failed", "failed", "unknown", "unknown", "failed", "failed"],
        ));
        violates(&bad, &super::check, "G4");
        // The same leader lost two nodes that it had asked to call, one after the other.
        bad.disruptions.node_losses = Some(2);
        assert!(super::check(&bad).is_empty());
        let second = bad.calls.iter_mut().find(|call| call.attempt == 4).unwrap();
        second.at_us -= 4_000_000;
        violates(&bad, &super::check, "G4");
        for (epoch, call) in (1..).zip(&mut bad.calls) {
            call.epoch = epoch;
        }
        assert!(super::check(&bad).is_empty());
    }

    #[test]
    fn a_retry_schedule_that_ends_early_violates_d6() {
        let mut bad = evidence(dead("d", &["failed"; 3]));
        assert!(super::check(&bad).is_empty());
        bad.deliveries.get_mut("d").unwrap().end = Some("exhausted".to_owned());
        violates(&bad, &super::check, "D6");
    }

    #[test]
    fn without_a_lost_node_an_unknown_attempt_or_an_extra_call_violates_d12() {
        let mut bad = evidence(delivered("d", &["unknown", "delivered"]));
        assert!(super::check(&bad).is_empty());
        bad.disruptions.node_losses = Some(0);
        violates(&bad, &super::check, "D12");
        let mut extra = evidence(delivered("d", &["delivered"]));
        extra.disruptions.node_losses = Some(0);
        assert!(super::check(&extra).is_empty());
        extra.calls.push(call("d", 2, 0, 1, 10));
        violates(&extra, &super::check, "D12");
    }
}
