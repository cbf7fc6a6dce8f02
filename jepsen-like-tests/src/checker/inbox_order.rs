//! An inbox is one total order, the same on every node.

use crate::history::History;

/// Compares every inbox of every node with the first node's.
pub fn check(history: &History) -> Vec<String> {
    let mut nodes = history.reads.iter();
    let Some((first, expected)) = nodes.next() else {
        return Vec::new();
    };
    let mut violations = Vec::new();
    for (node, inboxes) in nodes {
        if inboxes.keys().ne(expected.keys()) {
            violations.push(format!("nodes {first} and {node} do not show the same inboxes"));
        }
        for (inbox, read) in inboxes {
            if expected.get(inbox).is_some_and(|other| other != read) {
                violations.push(format!("nodes {first} and {node} show different orders of {inbox}"));
            }
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::InboxRead;

    fn history(orders: &[&[&str]]) -> History {
        let mut history = History::default();
        for (i, order) in orders.iter().enumerate() {
            let messages = order.iter().map(|id| ((*id).to_owned(), (*id).to_owned())).collect();
            history
                .reads
                .entry(i + 1)
                .or_default()
                .insert("bob".to_owned(), InboxRead { messages });
        }
        history
    }

    #[test]
    fn the_same_order_everywhere_passes() {
        assert!(check(&history(&[&["a", "b"], &["a", "b"], &["a", "b"]])).is_empty());
    }

    #[test]
    fn another_order_or_another_length_is_named() {
        assert_eq!(check(&history(&[&["a", "b"], &["b", "a"]])).len(), 1);
        assert_eq!(check(&history(&[&["a", "b"], &["a", "b"], &["a"]])).len(), 1);
        let mut missing = history(&[&["a"], &["a"]]);
        missing.reads.entry(2).or_default().clear();
        assert_eq!(check(&missing).len(), 1);
    }
}
