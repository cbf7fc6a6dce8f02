//! Nothing acknowledged is lost, nothing unasked appears, nothing is there twice, nothing refused is there, a repeat
//! makes nothing new, and what somebody saw stays.

use super::mail::{End, Listed, Mail, Sent};
use super::names::Name;
use super::order::Order;
use super::{Evidence, seconds};
use crate::verdict::Check;

/// Compares what was sent, and what was answered to repeats, with what every node shows in the end.
pub fn check(evidence: &Evidence) -> Check {
    let Evidence { mail, order, .. } = evidence;
    let mut violations = repeats(mail);
    for node in 1..=evidence.run.nodes {
        violations.extend(of_node(mail, node));
    }
    violations.extend(seen_before(mail, order));
    Check::new("lost", mail.sent.len(), violations)
}

/// What a node shows under a key.
#[derive(Clone, Copy, Default)]
struct Seen {
    times: u32,
    id: Name,
    inbox: Name,
}

fn of_node(mail: &Mail, node: usize) -> Vec<String> {
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
                // Notices have no key.
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

fn of_message(mail: &Mail, node: usize, sent: &Sent, there: Seen) -> Option<String> {
    let key = mail.text(sent.key);
    match (sent.end, there.times) {
        (End::Ok, 0) => Some(format!(
            "node {node} lost {key}, acknowledged as {}",
            mail.text(sent.id)
        )),
        (_, 2..) => Some(format!("node {node} has {key} {} times", there.times)),
        (End::Fail, 1) => Some(format!("node {node} has {key}, which was refused")),
        (_, 1) if there.inbox != sent.inbox || (sent.end == End::Ok && there.id != sent.id) => Some(format!(
            "node {node} has {key} as {} in {} instead of {} in {}",
            mail.text(there.id),
            mail.text(there.inbox),
            mail.text(sent.id),
            mail.text(sent.inbox)
        )),
        _ => None,
    }
}

fn repeats(mail: &Mail) -> Vec<String> {
    let wrong = mail.repeats.iter().filter_map(|repeat| {
        let first = &mail.sent[repeat.first];
        let (key, id) = (mail.text(first.key), mail.text(repeat.id));
        match (repeat.end, repeat.changed, first.end) {
            (End::Ok, true, _) => Some(format!("another body under the key {key} was acknowledged as {id}")),
            (End::Ok, false, End::Ok) if repeat.id != first.id => Some(format!(
                "{key} was acknowledged as {} and its repeat as {id}",
                mail.text(first.id)
            )),
            (End::Fail, false, End::Ok) => Some(format!("a repeat of {key} was refused")),
            _ => None,
        }
    });
    wrong.collect()
}

/// A page shows only what is decided: it must be there in the end.
fn seen_before<'a>(mail: &'a Mail, order: &'a Order) -> impl Iterator<Item = String> + 'a {
    let pages = mail.pages.iter().filter(|page| order.length(page.inbox).is_some());
    pages.filter_map(|page| {
        let gone = mail
            .items(page)
            .iter()
            .find(|id| order.place(page.inbox, **id).is_none())?;
        Some(format!(
            "node {} showed {} of {} at {}, and it is not there in the end",
            page.node,
            mail.text(*gone),
            mail.text(page.inbox),
            seconds(page.began)
        ))
    })
}
