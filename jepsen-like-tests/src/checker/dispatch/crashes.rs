//! The crash points of the dispatcher: scenario X1 names an agent after the point at which the leader of its delivery
//! died.

use crate::record::deliveries::{CRASH_POINTS, DeliveryEvidence, ended};

/// The agents of a crash point are named after it and a round.
pub fn check(evidence: &DeliveryEvidence) -> Vec<String> {
    let by_delivery = evidence.by_delivery();
    let mut violations = Vec::new();
    for (place, calls, unknown) in CRASH_POINTS {
        let of_place = |agent: &str| agent.strip_prefix(place).is_some_and(|round| round.starts_with('-'));
        for delivery in evidence.deliveries.values().filter(|d| of_place(&d.to_agent_id)) {
            let seen = (
                by_delivery.get(delivery.id.as_str()).map_or(0, Vec::len),
                ended(delivery, "unknown"),
            );
            if seen != (calls, unknown) || delivery.state != "delivered" {
                violations.push(format!(
                    "crash points: a leader died at {place}: {} is {} after {} calls and {} unknown attempts; expected are {calls} and {unknown}",
                    delivery.id, delivery.state, seen.0, seen.1
                ));
            }
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::super::delivery_builders::{delivered, evidence, violates};

    #[test]
    fn a_place_costs_what_the_table_says() {
        let at = |place: &str| {
            let mut delivery = delivered("d", &["unknown", "delivered"]);
            delivery.to_agent_id = format!("{place}-0");
            evidence(delivery)
        };
        assert!(super::check(&at("after-call")).is_empty());
        assert!(super::check(&at("another-place")).is_empty());
        violates(&at("before-claim"), &super::check, "crash points");
        violates(&at("before-call"), &super::check, "crash points");
    }
}
