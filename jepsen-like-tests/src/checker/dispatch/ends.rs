//! D7 and D10: every delivery ends, and its end agrees with dead letters and notices.

use std::collections::BTreeMap;

use crate::record::deliveries::{DeliveryEvidence, Notice, is_over};

/// Compares the final states with dead letters and notices.
pub fn check(evidence: &DeliveryEvidence) -> Vec<String> {
    let mut violations = Vec::new();
    let mut letters: BTreeMap<&str, usize> = BTreeMap::new();
    let mut notices: BTreeMap<&str, Vec<&Notice>> = BTreeMap::new();
    for id in &evidence.dead {
        *letters.entry(id).or_default() += 1;
    }
    for notice in &evidence.notices {
        notices.entry(&notice.delivery).or_default().push(notice);
    }
    for (id, delivery) in &evidence.deliveries {
        if !is_over(delivery) {
            violations.push(format!("D10: {id} is still {}", delivery.state));
        }
        let dead = usize::from(delivery.state == "dead");
        let letters = letters.get(id.as_str()).copied().unwrap_or(0);
        let notices = notices.remove(id.as_str()).unwrap_or_default();
        if letters != dead {
            violations.push(format!("D7: {id} is {} and has {letters} dead letters", delivery.state));
        }
        if notices.len() != dead {
            violations.push(format!(
                "D7: {id} is {} and has {} notices",
                delivery.state,
                notices.len()
            ));
        }
        for notice in notices {
            if notice.to != delivery.from_agent_id || notice.attempts != delivery.attempt_count {
                violations.push(format!(
                    "D7: the notice of {id} does not match the delivery: {notice:?}"
                ));
            }
        }
    }
    let unknown = |id: &&String| !evidence.deliveries.contains_key(*id);
    let noticed = evidence.notices.iter().map(|notice| &notice.delivery);
    for id in evidence.dead.iter().chain(noticed).filter(unknown) {
        violations.push(format!(
            "D7: a dead letter or notice exists for {id}, which does not exist"
        ));
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::super::delivery_builders::{dead, delivered, evidence, violates};

    const FAILURES: [&str; 4] = ["failed"; 4];

    #[test]
    fn dead_ones_have_one_letter_and_one_notice_or_d7() {
        let good = || evidence(dead("d", &FAILURES));
        assert!(super::check(&good()).is_empty());
        let mut bad = good();
        bad.dead.clear();
        violates(&bad, &super::check, "D7");
        let mut bad = good();
        bad.notices.clear();
        violates(&bad, &super::check, "D7");
        let mut bad = good();
        bad.notices.push(bad.notices[0].clone());
        violates(&bad, &super::check, "D7");
        let mut bad = good();
        bad.notices[0].to = "somebody".to_owned();
        violates(&bad, &super::check, "D7");
        let mut bad = good();
        bad.deliveries.clear();
        violates(&bad, &super::check, "D7");
    }

    #[test]
    fn delivered_ones_have_none_or_d7() {
        let mut bad = evidence(delivered("d", &["delivered"]));
        bad.dead.push("d".to_owned());
        violates(&bad, &super::check, "D7");
    }

    #[test]
    fn an_open_delivery_violates_d10() {
        for state in ["scheduled", "claimed"] {
            let mut bad = evidence(delivered("d", &["delivered"]));
            bad.deliveries.get_mut("d").unwrap().state = state.to_owned();
            violates(&bad, &super::check, "D10");
        }
    }
}
