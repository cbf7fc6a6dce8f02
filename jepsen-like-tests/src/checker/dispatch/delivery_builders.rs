//! Builders of dispatcher evidence for the tests of its checkers.

use agentpost::api::abbababa::{Attempt, DeliveryDetail};

use crate::record::deliveries::{DeliveryEvidence, Disruptions, Notice, ReceivedCall};

const DELAYS_US: [u64; 3] = [1_000_000, 10_000_000, 100_000_000];

pub fn call(delivery: &str, attempt: u32, step: u32, epoch: u64, at_us: u64) -> ReceivedCall {
    ReceivedCall {
        delivery: delivery.to_owned(),
        one_id: true,
        attempt,
        step,
        epoch,
        redelivery: true,
        path: "/hook".to_owned(),
        at_us,
    }
}

/// A delivered delivery whose attempts ended like this.
pub fn delivered(id: &str, ends: &[&str]) -> DeliveryDetail {
    made("delivered", id, ends)
}

/// A dead delivery whose attempts ended like this.
pub fn dead(id: &str, ends: &[&str]) -> DeliveryDetail {
    made("dead", id, ends)
}

fn made(state: &str, id: &str, ends: &[&str]) -> DeliveryDetail {
    let mut step = 0;
    let attempts = (1..).zip(ends).map(|(number, end)| {
        let attempt = Attempt {
            number,
            step,
            end: (*end).to_owned(),
            status: None,
            error: None,
            response: None,
            started_at: None,
            took_ms: None,
        };
        step += u32::from(*end == "failed");
        attempt
    });
    let attempts: Vec<Attempt> = attempts.collect();
    DeliveryDetail {
        id: id.to_owned(),
        state: state.to_owned(),
        end: None,
        message_id: "msg_1".to_owned(),
        from_agent_id: "alice".to_owned(),
        to_agent_id: "bob".to_owned(),
        topic: None,
        subscription_id: None,
        attempt_count: attempts.len() as u32,
        step: step.min(3),
        attempts,
        due: None,
        due_in_ms: None,
        url: None,
        created_at: String::new(),
        ended_at: None,
        redriven_as: None,
        redrive_of: None,
    }
}

/// The evidence of one correct delivery in a run that lost one leader.
pub fn evidence(delivery: DeliveryDetail) -> DeliveryEvidence {
    let mut evidence = DeliveryEvidence {
        disruptions: Disruptions {
            node_losses: Some(1),
            pauses: 0,
        },
        ..DeliveryEvidence::default()
    };
    let mut at_us = 500;
    for attempt in &delivery.attempts {
        if attempt.end != "not_sent" {
            evidence
                .calls
                .push(call(&delivery.id, attempt.number, attempt.step, 1, at_us));
        }
        at_us += match attempt.end.as_str() {
            "unknown" => 33_000_000,
            "failed" => DELAYS_US.get(attempt.step as usize).copied().unwrap_or(0),
            _ => 1_000_000,
        };
    }
    if delivery.state == "dead" {
        evidence.dead.push(delivery.id.clone());
        evidence.notices.push(Notice {
            to: delivery.from_agent_id.clone(),
            delivery: delivery.id.clone(),
            attempts: delivery.attempt_count,
        });
    }
    evidence.deliveries.insert(delivery.id.clone(), delivery);
    evidence
}

/// Asserts that the checker reports a violation of the rule.
pub fn violates(evidence: &DeliveryEvidence, check: &dyn Fn(&DeliveryEvidence) -> Vec<String>, rule: &str) {
    let violations = check(evidence);
    assert!(
        violations.iter().any(|v| v.starts_with(rule)),
        "no {rule} in {violations:?}"
    );
}
