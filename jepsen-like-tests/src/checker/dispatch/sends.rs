//! G4 and G6: an acknowledged message is delivered exactly once, and promptly if nothing is wrong.

use std::collections::{BTreeMap, HashMap, HashSet};

use agentpost::api::abbababa::DeliveryDetail;

use crate::record::deliveries::DeliveryEvidence;
use crate::record::faults::Fault;
use crate::record::history::{Op, Operation};

/// Time limit for the first call to a receiver that answers at once: far more than 250 ms, far less than a call to a
/// dead receiver.
const PROMPT_NS: u64 = 5_000_000_000;

/// Compares the responses that senders got with the deliveries.
pub fn check(dispatch: &DeliveryEvidence, operations: &[Operation], faults: &[Fault]) -> Vec<String> {
    let agents: HashMap<&str, bool> = dispatch.agents.iter().map(|a| (a.id.as_str(), a.prompt)).collect();
    let mut of_message: HashMap<(&str, &str), Vec<&DeliveryDetail>> = HashMap::new();
    for delivery in dispatch.deliveries.values().filter(|d| d.redrive_of.is_none()) {
        let key = (delivery.message_id.as_str(), delivery.to_agent_id.as_str());
        of_message.entry(key).or_default().push(delivery);
    }
    let first: BTreeMap<&str, u64> = dispatch
        .by_delivery()
        .into_iter()
        .map(|(id, calls)| (id, calls[0].at_us))
        .collect();
    let mut violations = Vec::new();
    for send in operations.iter().filter(|o| o.op == Op::Send) {
        let (Some(prompt), Some(answered)) = (agents.get(send.k.as_str()), send.answered()) else {
            continue;
        };
        for item in &answered.items {
            let found = of_message
                .get(&(item.id.as_str(), send.k.as_str()))
                .map_or(&[][..], Vec::as_slice);
            let [delivery] = found else {
                violations.push(format!("G4: {} to {} has {} deliveries", item.id, send.k, found.len()));
                continue;
            };
            let called_ns = first
                .get(delivery.id.as_str())
                .map_or(u64::MAX, |at_us| at_us.saturating_mul(1000));
            let latest = send.ended.unwrap_or(u64::MAX).saturating_add(PROMPT_NS);
            if *prompt && faults.is_empty() && called_ns > latest {
                violations.push(format!(
                    "G6: {} to {} was not called within {PROMPT_NS} ns",
                    delivery.id, send.k
                ));
            }
        }
    }
    violations
}

/// Milliseconds from the acknowledgement of each message to a prompt receiver until its first call.
pub fn first_calls_ms(dispatch: &DeliveryEvidence, operations: &[Operation]) -> Vec<u64> {
    let prompt: HashSet<&str> = dispatch
        .agents
        .iter()
        .filter(|a| a.prompt)
        .map(|a| a.id.as_str())
        .collect();
    let mut called_us: HashMap<&str, u64> = HashMap::new();
    for (id, calls) in dispatch.by_delivery() {
        if let Some(delivery) = dispatch.deliveries.get(id) {
            called_us.insert(&delivery.message_id, calls[0].at_us);
        }
    }
    let sends = operations
        .iter()
        .filter(|o| o.op == Op::Send && prompt.contains(o.k.as_str()));
    let items = sends.flat_map(|send| {
        send.answered()
            .into_iter()
            .flat_map(|a| &a.items)
            .map(|item| (send.ended, item))
    });
    let calls = items.filter_map(|(ended, item)| Some((ended?, called_us.get(item.id.as_str())?)));
    calls
        .map(|(ended, at_us)| at_us.saturating_sub(ended / 1000) / 1000)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::delivery_builders::{delivered, evidence};
    use super::*;
    use crate::record::deliveries::Agent;
    use crate::record::history::{Fields, Item, Outcome};

    fn sent() -> Vec<Operation> {
        let item = Item {
            id: "msg_1".to_owned(),
            key: "1-1".to_owned(),
            seq: None,
        };
        vec![Operation {
            lane: 1,
            node: None,
            op: Op::Send,
            k: "bob".to_owned(),
            asked: Fields::default(),
            began: 0,
            ended: Some(1_000_000),
            outcome: Outcome::Ok(Fields::items(vec![item])),
        }]
    }

    fn good() -> DeliveryEvidence {
        let mut evidence = evidence(delivered("d", &["delivered"]));
        evidence.agents.push(Agent {
            id: "bob".to_owned(),
            prompt: true,
        });
        evidence
    }

    fn violated(evidence: &DeliveryEvidence) -> String {
        super::check(evidence, &sent(), &[]).concat()
    }

    #[test]
    fn an_acknowledged_message_without_its_delivery_violates_g4() {
        assert_eq!(violated(&good()), "");
        let mut bad = good();
        bad.deliveries.clear();
        assert!(violated(&bad).starts_with("G4"));
        let mut bad = good();
        let twice = delivered("e", &["delivered"]);
        bad.deliveries.insert("e".to_owned(), twice);
        assert!(violated(&bad).starts_with("G4"));
        bad.agents.clear();
        assert_eq!(violated(&bad), "", "somebody without a webhook");
    }

    #[test]
    fn a_prompt_receiver_that_waits_violates_g6() {
        let mut bad = good();
        bad.calls[0].at_us += 6_000_000;
        assert!(violated(&bad).starts_with("G6"));
        bad.agents[0].prompt = false;
        assert_eq!(violated(&bad), "");
        assert_eq!(first_calls_ms(&bad, &sent()), Vec::<u64>::new());
        bad.agents[0].prompt = true;
        assert_eq!(first_calls_ms(&bad, &sent()), [5_999]);
    }
}
