//! An inbox has one total order, the same on every node, and no message precedes one that was acknowledged before it
//! was sent.

use std::collections::HashMap;

use super::evidence::{Evidence, seconds};
use super::interner::Symbol;
use super::mail::{Audit, MailHistory};
use super::order::InboxOrders;
use crate::record::history::NEVER;
use crate::record::verdict::Check;

/// Compares every inbox on every node with the first node's, and that one with the send times.
pub fn check(evidence: &Evidence) -> Check {
    let Evidence { mail, order, .. } = evidence;
    let mut first: HashMap<Symbol, &Audit> = HashMap::new();
    let mut violations = Vec::new();
    let mut looked_at = 0;
    for audit in mail.audits.iter().filter(|audit| audit.failed.is_none()) {
        let listed = mail.listed(audit);
        looked_at += listed.len();
        match first.get(&audit.inbox) {
            Some(other) => {
                let expected = mail.listed(other);
                let place = expected.iter().zip(listed).take_while(|(a, b)| a == b).count();
                if expected.len() != listed.len() || place < listed.len() {
                    violations.push(format!(
                        "nodes {} and {} show different orders of {}, from message {} of {} and {} on",
                        other.node,
                        audit.node,
                        mail.text(audit.inbox),
                        place + 1,
                        expected.len(),
                        listed.len()
                    ));
                }
            }
            None => {
                first.insert(audit.inbox, audit);
                violations.extend(of_inbox(mail, order, audit));
            }
        }
    }
    Check::new("inbox-order", looked_at, violations)
}

/// Every message must have been sent before any message that follows it was acknowledged.
fn of_inbox<'a>(mail: &'a MailHistory, order: &'a InboxOrders, audit: &'a Audit) -> impl Iterator<Item = String> + 'a {
    // The message with the latest send time among those before this position.
    let (mut latest, mut began) = (0, 0);
    (1..).zip(mail.listed(audit)).filter_map(move |(place, message)| {
        if order.place(audit.inbox, message.id).is_some_and(|there| there != place) {
            return Some(format!(
                "{} appears twice in {}",
                mail.text(message.id),
                mail.text(audit.inbox)
            ));
        }
        let sent = &mail.sent[mail.sent_as(message.key)?];
        let wrong = sent.ended != NEVER && sent.ended < began;
        let wrong = wrong.then(|| {
            format!(
                "{key} follows {later} in {}, although {later} was sent at {}, {} after {key} was acknowledged",
                mail.text(audit.inbox),
                seconds(began),
                seconds(began - sent.ended),
                key = mail.text(sent.key),
                later = mail.text(latest),
            )
        });
        if sent.began > began {
            (latest, began) = (sent.key, sent.began);
        }
        wrong
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::run_builder::{RunBuilder, listed};
    use crate::record::history::{Fields, Op};

    fn violations(story: RunBuilder) -> Vec<String> {
        check(&story.evidence()).violations
    }

    fn sent(messages: &[(u64, u64)]) -> RunBuilder {
        (1..)
            .zip(messages)
            .fold(RunBuilder::default(), |story, (number, (began, ended))| {
                let (key, id) = (Fields::key(format!("k{number}")), Fields::id(format!("m{number}")));
                story.ok(*began..*ended, Op::Send, "a", key, id)
            })
    }

    #[test]
    fn messages_under_way_at_the_same_time_may_stand_in_any_order() {
        let story = sent(&[(1, 4), (2, 6), (5, 7)]);
        assert_eq!(
            violations(story.audit("a", &[("m2", "k2"), ("m1", "k1"), ("m3", "k3")])),
            [""; 0]
        );
    }

    #[test]
    fn an_earlier_acknowledged_message_must_come_first() {
        let story = sent(&[(1, 4), (2, 6), (5, 7)]);
        assert_eq!(
            violations(story.audit("a", &[("m3", "k3"), ("m2", "k2"), ("m1", "k1")])),
            ["k1 follows k3 in a, although k3 was sent at 0.005 s, 0.001 s after k1 was acknowledged"]
        );
    }

    #[test]
    fn nodes_show_the_same() {
        let story = sent(&[(1, 4), (2, 6)]).audit("a", &[("m1", "k1"), ("m2", "k2")]);
        let other = listed(&[("m2", "k2"), ("m1", "k1")]);
        let story = story.ok(3_000..3_001, Op::Audit, "a", Fields::default(), other).at(3);
        let less = story.ok(3_000..3_001, Op::Audit, "a", Fields::default(), listed(&[("m1", "k1")]));
        assert_eq!(
            violations(less.at(2)),
            [
                "nodes 1 and 3 show different orders of a, from message 1 of 2 and 2 on",
                "nodes 1 and 2 show different orders of a, from message 2 of 2 and 1 on"
            ]
        );
    }

    #[test]
    fn a_message_is_there_once() {
        let story = sent(&[(1, 4)]).audit("a", &[("m1", "k1"), ("m1", "k1")]);
        assert_eq!(violations(story), ["m1 appears twice in a"]);
    }
}
