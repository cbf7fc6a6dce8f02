//! D1, D2, D9 and G5: the calls that the receiver got.

use std::collections::BTreeMap;

use crate::record::deliveries::{DeliveryEvidence, ReceivedCall};

/// How much later than the first call of a newer epoch a call of an older epoch may arrive: it starts at most 2 s
/// after its claim, plus its time on the network.
const STRAGGLER_US: u64 = 2_500_000;

/// Compares the calls with each other and with the attempts that the cluster recorded.
pub fn check(evidence: &DeliveryEvidence) -> Vec<String> {
    let mut violations = Vec::new();
    let mut first: BTreeMap<(&str, u32), &ReceivedCall> = BTreeMap::new();
    for call in &evidence.calls {
        let (id, attempt) = (call.delivery.as_str(), call.attempt);
        if first.insert((id, attempt), call).is_some() {
            violations.push(format!("D1: attempt {attempt} of {id} arrived twice"));
        }
        if !call.one_id {
            violations.push(format!("G5: a call of {id} carries different ids"));
        }
        violations.extend(granted(evidence, call));
    }
    for (id, delivery) in &evidence.deliveries {
        let answered = delivery
            .attempts
            .iter()
            .filter(|a| a.end == "delivered" || a.status.is_some());
        for attempt in answered.filter(|a| !first.contains_key(&(id.as_str(), a.number))) {
            violations.push(format!(
                "D2: attempt {} of {id} has a recorded response, but never arrived",
                attempt.number
            ));
        }
    }
    violations.extend(redeliveries(evidence));
    violations.extend(epochs(evidence));
    violations
}

fn granted(evidence: &DeliveryEvidence, call: &ReceivedCall) -> Option<String> {
    let (id, no) = (&call.delivery, call.attempt);
    let Some(delivery) = evidence.deliveries.get(id) else {
        return Some(format!("D2: the receiver was called for {id}, which does not exist"));
    };
    if no == 0 || no > delivery.attempt_count {
        return Some(format!(
            "D2: attempt {no} of {id} was called, but only {} were granted",
            delivery.attempt_count
        ));
    }
    let attempt = delivery.attempts.iter().find(|attempt| attempt.number == no)?;
    if attempt.end == "not_sent" {
        return Some(format!(
            "D2: attempt {no} of {id} was called, but is recorded as not sent"
        ));
    }
    (attempt.step != call.step).then(|| {
        format!(
            "D2: attempt {no} of {id} was called on step {}, but is recorded on step {}",
            call.step, attempt.step
        )
    })
}

/// A call must carry the redelivery header if an earlier attempt ended unknown.
fn redeliveries(evidence: &DeliveryEvidence) -> Vec<String> {
    let mut violations = Vec::new();
    for call in &evidence.calls {
        let Some(delivery) = evidence.deliveries.get(&call.delivery) else {
            continue;
        };
        let unknown = |a: &agentpost::api::abbababa::Attempt| a.end == "unknown" && a.number < call.attempt;
        if delivery.attempts.iter().any(unknown) && !call.redelivery {
            violations.push(format!(
                "G5: attempt {} of {} lacks the redelivery header after an unknown attempt",
                call.attempt, call.delivery
            ));
        }
    }
    violations
}

fn epochs(evidence: &DeliveryEvidence) -> Vec<String> {
    let mut violations = Vec::new();
    for (id, calls) in evidence.by_delivery() {
        for pair in calls.windows(2).filter(|pair| pair[1].epoch < pair[0].epoch) {
            violations.push(format!(
                "D9: attempt {} of {id} has epoch {}, but the attempt before it had {}",
                pair[1].attempt, pair[1].epoch, pair[0].epoch
            ));
        }
    }
    if evidence.disruptions.pauses > 0 {
        return violations; // a stopped process may finish an old call after it continues
    }
    let mut newest: Option<&ReceivedCall> = None;
    for call in &evidence.calls {
        match newest {
            Some(newer) if call.epoch < newer.epoch && call.at_us > newer.at_us + STRAGGLER_US => {
                violations.push(format!(
                    "D9: attempt {} of {} arrived with epoch {} long after a call of epoch {}",
                    call.attempt, call.delivery, call.epoch, newer.epoch
                ));
            }
            Some(newer) if call.epoch <= newer.epoch => {}
            _ => newest = Some(call),
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::super::delivery_builders::{call, delivered, evidence, violates};

    #[test]
    fn an_attempt_that_arrives_twice_violates_d1() {
        let mut bad = evidence(delivered("d", &["delivered"]));
        let again = call("d", 1, 0, 1, 10);
        bad.calls.push(again);
        violates(&bad, &super::check, "D1");
    }

    #[test]
    fn a_call_without_its_granted_attempt_violates_d2() {
        let mut unknown = evidence(delivered("d", &["delivered"]));
        unknown.calls.push(call("other", 1, 0, 1, 10));
        violates(&unknown, &super::check, "D2");
        let mut too_many = evidence(delivered("d", &["delivered"]));
        too_many.calls.push(call("d", 2, 0, 1, 10));
        violates(&too_many, &super::check, "D2");
        let mut unsent = evidence(delivered("d", &["not_sent", "delivered"]));
        unsent.calls.push(call("d", 1, 0, 1, 0));
        violates(&unsent, &super::check, "D2");
        let mut nobody = evidence(delivered("d", &["failed", "delivered"]));
        nobody.calls.pop();
        violates(&nobody, &super::check, "D2");
        let mut other_step = evidence(delivered("d", &["delivered"]));
        other_step.calls[0].step = 1;
        violates(&other_step, &super::check, "D2");
    }

    #[test]
    fn epochs_that_go_back_violate_d9() {
        let mut bad = evidence(delivered("d", &["failed", "delivered"]));
        bad.calls[0].epoch = 9;
        let mut straggler = evidence(delivered("d", &["failed", "delivered"]));
        assert!(super::check(&straggler).is_empty());
        violates(&bad, &super::check, "D9");
        let mut late = call("e", 1, 0, 0, 100_000);
        late.at_us = straggler.calls[1].at_us + 3_000_000;
        straggler.calls.push(late);
        let other = evidence(delivered("e", &["delivered"]));
        straggler.deliveries.extend(other.deliveries);
        violates(&straggler, &super::check, "D9");
        straggler.disruptions.pauses = 1;
        assert!(super::check(&straggler).is_empty());
    }

    #[test]
    fn ids_and_repetitions_are_told() {
        let mut bad = evidence(delivered("d", &["delivered"]));
        bad.calls[0].one_id = false;
        violates(&bad, &super::check, "G5");
        let mut hidden = evidence(delivered("d", &["unknown", "delivered"]));
        assert!(super::check(&hidden).is_empty());
        hidden.calls[1].redelivery = false;
        violates(&hidden, &super::check, "G5");
    }
}
