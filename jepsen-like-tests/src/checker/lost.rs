//! Nothing acknowledged is lost, nothing unasked appears, nothing is there twice.

use std::collections::BTreeMap;

use crate::history::{History, Outcome};

/// Compares what was acknowledged with what every node shows.
pub fn check(history: &History) -> Vec<String> {
    let mut violations = Vec::new();
    for (node, inboxes) in &history.reads {
        let mut seen: BTreeMap<&str, Vec<(&str, &str)>> = BTreeMap::new();
        for (inbox, read) in inboxes {
            for (id, key) in &read.messages {
                seen.entry(key).or_default().push((inbox, id));
            }
        }
        for send in &history.sends {
            let places = seen.remove(send.key.as_str()).unwrap_or_default();
            let key = &send.key;
            match (&send.outcome, places.as_slice()) {
                (Outcome::Acknowledged(id), []) => {
                    violations.push(format!("node {node} lost {key}, acknowledged as {id}"))
                }
                (Outcome::Acknowledged(id), [(inbox, there)]) if *inbox != send.inbox || there != id => {
                    violations.push(format!(
                        "node {node} has {key} as {there} in {inbox} instead of {id} in {}",
                        send.inbox
                    ));
                }
                (Outcome::Refused(why), [_, ..]) => violations.push(format!("node {node} has {key}, refused: {why}")),
                (_, [_, _, ..]) => violations.push(format!("node {node} has {key} {} times", places.len())),
                _ => {}
            }
        }
        violations.extend(
            seen.into_keys()
                .map(|key| format!("node {node} has {key}, which nobody sent")),
        );
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{InboxRead, Send};

    fn history(outcome: Outcome, messages: &[(&str, &str)]) -> History {
        let mut history = History::default();
        history.sends.push(Send {
            key: "k".to_owned(),
            inbox: "bob".to_owned(),
            outcome,
        });
        let messages = messages
            .iter()
            .map(|(id, key)| ((*id).to_owned(), (*key).to_owned()))
            .collect();
        history
            .reads
            .entry(1)
            .or_default()
            .insert("bob".to_owned(), InboxRead { messages });
        history
    }

    fn acknowledged() -> Outcome {
        Outcome::Acknowledged("m".to_owned())
    }

    #[test]
    fn good_histories_pass() {
        let unknown = || Outcome::Unknown("timeout".to_owned());
        for good in [
            history(acknowledged(), &[("m", "k")]),
            history(unknown(), &[]),
            history(unknown(), &[("m", "k")]),
            history(Outcome::Refused("429".to_owned()), &[]),
        ] {
            assert_eq!(check(&good), Vec::<String>::new());
        }
    }

    #[test]
    fn each_way_to_be_wrong_is_named() {
        for (bad, word) in [
            (history(acknowledged(), &[]), "lost"),
            (history(acknowledged(), &[("other", "k")]), "instead of"),
            (history(acknowledged(), &[("m", "k"), ("m2", "k")]), "2 times"),
            (
                history(Outcome::Unknown(String::new()), &[("m", "k"), ("m2", "k")]),
                "2 times",
            ),
            (history(Outcome::Refused("400".to_owned()), &[("m", "k")]), "refused"),
            (history(acknowledged(), &[("m", "k"), ("x", "phantom")]), "nobody sent"),
        ] {
            let violations = check(&bad);
            assert_eq!(violations.len(), 1, "{violations:?}");
            assert!(violations[0].contains(word), "{violations:?}");
        }
    }
}
