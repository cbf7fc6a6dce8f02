//! A linearizable read shows everything that was acknowledged, or that anybody saw, before it began.
//!
//! A page says so only as far as it covers the inbox: one from a cursor that has room left, and one of the newest
//! messages. What a local read may lack is not bounded.

use super::mail::View;
use super::{Evidence, seconds};
use crate::verdict::Check;

/// Compares where every linearizable page ends with what was there.
pub fn check(evidence: &Evidence) -> Check {
    let Evidence { mail, order, known, .. } = evidence;
    let mut violations = Vec::new();
    let mut looked_at = 0;
    for page in mail
        .pages
        .iter()
        .filter(|page| !page.local && page.view != View::Unread)
    {
        if order.length(page.inbox).is_none() {
            continue;
        }
        let Some(covered) = order.covered(mail, page) else {
            continue;
        };
        looked_at += 1;
        let there = known.before(page.inbox, page.began);
        if covered < there {
            violations.push(format!(
                "at {} node {} showed {} up to message {covered}, when {there} were there",
                seconds(page.began),
                page.node,
                mail.text(page.inbox)
            ));
        }
    }
    Check::new("linearizable", looked_at, violations)
}
