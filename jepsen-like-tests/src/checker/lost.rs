//! No acknowledged message is lost, no message appears that was not sent, none appears twice, none that was refused
//! appears, a repeat creates nothing new, and a message that was seen stays.

use super::evidence::{Evidence, seconds};
use super::interner::Symbol;
use super::mail::{Listed, MailHistory, Sent};
use super::order::InboxOrders;
use crate::record::history::OutcomeKind;
use crate::record::verdict::Check;

/// Compares what was sent, and the responses to repeats, with what every node shows at the end.
pub fn check(evidence: &Evidence) -> Check {
    let Evidence { mail, order, .. } = evidence;
    let mut violations = repeats(mail);
    // Nodes that joined later are included.
    for node in 1..=mail.audits.iter().map(|audit| audit.node).max().unwrap_or(0) {
        violations.extend(of_node(mail, node));
    }
    violations.extend(seen_before(mail, order));
    Check::new("lost", mail.sent.len(), violations)
}

/// The messages that a node shows under a key.
#[derive(Clone, Copy, Default)]
struct Seen {
    times: u32,
    id: Symbol,
    inbox: Symbol,
}

fn of_node(mail: &MailHistory, node: usize) -> Vec<String> {
    let mut seen = vec![Seen::default(); mail.sent.len()];
    let mut audited = vec![false; mail.names.count()];
    let mut violations = Vec::new();
    let audits = mail.audits.iter().filter(|a| a.node == node && a.failed.is_none());
    for audit in audits {
        audited[audit.inbox as usize] = true;
        for Listed { id, key } in mail.listed(audit) {
            match mail.sent_as(*key) {
                Some(number) => {
                    let there = &mut seen[number];
                    (there.times, there.id, there.inbox) = (there.times + 1, *id, audit.inbox);
                }
                // Failure notices have no key.
                None if *key == 0 || mail.is_published(*key) => {}
                None => violations.push(format!("node {node} has {}, which nobody sent", mail.text(*key))),
            }
        }
    }
    let sent = mail.sent.iter().zip(&seen);
    let sent = sent.filter(|(sent, there)| there.times > 0 || audited[sent.inbox as usize]);
    violations.extend(sent.filter_map(|(sent, there)| of_message(mail, node, sent, *there)));
    violations
}

fn of_message(mail: &MailHistory, node: usize, sent: &Sent, there: Seen) -> Option<String> {
    let key = mail.text(sent.key);
    match (sent.outcome, there.times) {
        (OutcomeKind::Ok, 0) => Some(format!(
            "node {node} lost {key}, acknowledged as {}",
            mail.text(sent.id)
        )),
        (_, 2..) => Some(format!("node {node} has {key} {} times", there.times)),
        (OutcomeKind::Fail, 1) => Some(format!("node {node} has {key}, which was refused")),
        (_, 1) if there.inbox != sent.inbox || (sent.outcome == OutcomeKind::Ok && there.id != sent.id) => {
            Some(format!(
                "node {node} has {key} as {} in {} instead of {} in {}",
                mail.text(there.id),
                mail.text(there.inbox),
                mail.text(sent.id),
                mail.text(sent.inbox)
            ))
        }
        _ => None,
    }
}

fn repeats(mail: &MailHistory) -> Vec<String> {
    let wrong = mail.repeats.iter().filter_map(|repeat| {
        let first = &mail.sent[repeat.first];
        let (key, id) = (mail.text(first.key), mail.text(repeat.id));
        match (repeat.outcome, repeat.changed, first.outcome) {
            (OutcomeKind::Ok, true, OutcomeKind::Ok) => {
                Some(format!("another body under the key {key} was acknowledged as {id}"))
            }
            (OutcomeKind::Ok, false, OutcomeKind::Ok) if repeat.id != first.id => Some(format!(
                "{key} was acknowledged as {} and its repeat as {id}",
                mail.text(first.id)
            )),
            (OutcomeKind::Fail, false, OutcomeKind::Ok) => Some(format!("a repeat of {key} was refused")),
            _ => None,
        }
    });
    wrong.collect()
}

/// A page shows only committed messages, so each must be there at the end.
fn seen_before<'a>(mail: &'a MailHistory, order: &'a InboxOrders) -> impl Iterator<Item = String> + 'a {
    let pages = mail.pages.iter().filter(|page| order.length(page.inbox).is_some());
    pages.filter_map(|page| {
        let gone = mail
            .items(page)
            .iter()
            .find(|id| order.place(page.inbox, **id).is_none())?;
        Some(format!(
            "node {} showed {} of {} at {}, but it is not there at the end",
            page.node,
            mail.text(*gone),
            mail.text(page.inbox),
            seconds(page.began)
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::run_builder::{RunBuilder, listed};
    use crate::record::history::{Fields, Op};
    use crate::record::mailbox::CHANGED;

    fn violations(story: RunBuilder) -> Vec<String> {
        check(&story.evidence()).violations
    }

    fn send(story: RunBuilder, key: &str, id: &str) -> RunBuilder {
        story.ok(1..2, Op::Send, "a", listed(&[("", key)]), listed(&[(id, key)]))
    }

    fn changed(key: &str) -> Fields {
        Fields {
            name: Some(CHANGED.to_owned()),
            ..listed(&[("", key)])
        }
    }

    #[test]
    fn unknown_messages_may_be_there_or_not_and_repeats_make_nothing_new() {
        let mut story = send(send(RunBuilder::default(), "k1", "m1"), "k1", "m1");
        story = story.fail(3..4, Op::Send, "a", changed("k1"));
        for key in ["k2", "k3"] {
            story = story.info(3..4, Op::Send, "a", listed(&[("", key)]));
        }
        story = story.fail(3..4, Op::Send, "a", listed(&[("", "k4")]));
        // One batch, and one message to an inbox that is never audited.
        let batch = listed(&[("m5", "k5"), ("m6", "k6")]);
        story = story.ok(3..4, Op::Send, "a", listed(&[("", "k5"), ("", "k6")]), batch);
        story = story.ok(3..4, Op::Send, "other", Fields::key("k7"), Fields::id("m7"));
        let story = story.audit(
            "a",
            &[("m1", "k1"), ("m2", "k2"), ("m5", "k5"), ("m6", "k6"), ("notice", "")],
        );
        let check = check(&story.evidence());
        assert_eq!((check.violations, check.looked_at), (Vec::<String>::new(), 7));
    }

    #[test]
    fn an_acknowledged_message_must_be_on_every_node_once_under_its_id() {
        let empty = RunBuilder::default().audit("a", &[]);
        let lost = violations(send(empty, "k1", "m1"));
        assert_eq!(lost.len(), 3);
        assert_eq!(lost[2], "node 3 lost k1, acknowledged as m1");
        let other = violations(send(RunBuilder::default().audit("a", &[("m2", "k1")]), "k1", "m1"));
        assert_eq!(other[0], "node 1 has k1 as m2 in a instead of m1 in a");
        let elsewhere = RunBuilder::default().audit("a", &[]).audit("b", &[("m1", "k1")]);
        assert_eq!(
            violations(send(elsewhere, "k1", "m1"))[0],
            "node 1 has k1 as m1 in b instead of m1 in a"
        );
        let twice = RunBuilder::default().audit("a", &[("m1", "k1"), ("m2", "k1")]);
        assert_eq!(violations(send(twice, "k1", "m1"))[0], "node 1 has k1 2 times");
    }

    #[test]
    fn unsent_and_refused_messages_must_be_absent() {
        let stranger = RunBuilder::default().audit("a", &[("m1", "k1")]);
        assert_eq!(violations(stranger)[0], "node 1 has k1, which nobody sent");
        let refused = RunBuilder::default().fail(1..2, Op::Send, "a", listed(&[("", "k1")]));
        assert_eq!(
            violations(refused.audit("a", &[("m1", "k1")]))[0],
            "node 1 has k1, which was refused"
        );
    }

    #[test]
    fn a_repeat_is_answered_as_the_first_and_another_body_never_is() {
        let first = || send(RunBuilder::default(), "k1", "m1");
        assert_eq!(
            violations(send(first(), "k1", "m2")),
            ["k1 was acknowledged as m1 and its repeat as m2"]
        );
        let refused = first().fail(3..4, Op::Send, "a", listed(&[("", "k1")]));
        assert_eq!(violations(refused), ["a repeat of k1 was refused"]);
        let taken = first().ok(3..4, Op::Send, "a", changed("k1"), listed(&[("m1", "k1")]));
        assert_eq!(
            violations(taken),
            ["another body under the key k1 was acknowledged as m1"]
        );
        // The first attempt was unknown, its repeat is acknowledged.
        let unknown = RunBuilder::default().info(0..1, Op::Send, "a", listed(&[("", "k1")]));
        let lost = violations(send(unknown, "k1", "m1").audit("a", &[]));
        assert_eq!(lost[0], "node 1 lost k1, acknowledged as m1");
    }

    #[test]
    fn a_message_that_was_seen_stays() {
        let story = RunBuilder::default().ok(1..2, Op::Read, "a", Fields::default(), listed(&[("m1", "")]));
        assert_eq!(
            violations(story.audit("a", &[])),
            ["node 1 showed m1 of a at 0.001 s, but it is not there at the end"]
        );
    }
}
