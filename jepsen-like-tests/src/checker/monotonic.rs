//! Pages join without gap or overlap, whichever nodes they come from, and no cursor goes back. This holds for local
//! reads, too: what a node has is a beginning of the inbox.

use super::mail::{Mail, Page, View};
use super::order::Order;
use super::{Evidence, seconds};
use crate::verdict::Check;

/// Compares every page with the part of the inbox that it must be.
pub fn check(evidence: &Evidence) -> Check {
    let Evidence { mail, order, .. } = evidence;
    let mut violations = Vec::new();
    let mut looked_at = 0;
    for page in mail.pages.iter().filter(|page| order.length(page.inbox).is_some()) {
        looked_at += 1;
        if let Some(what) = wrong(mail, order, page) {
            violations.push(format!(
                "at {} node {} answered client {} with a page of {} {what}",
                seconds(page.began),
                page.node,
                page.lane,
                mail.text(page.inbox)
            ));
        }
    }
    for number in &order.moved {
        let page = &mail.pages[*number];
        violations.push(format!(
            "at {} node {} gave a cursor of {} that stood elsewhere before: {}",
            seconds(page.began),
            page.node,
            mail.text(page.inbox),
            mail.text(page.cursor)
        ));
    }
    Check::new("monotonic", looked_at, violations)
}

/// What is wrong with a page. Messages that are nowhere in the end are the business of `lost`.
fn wrong(mail: &Mail, order: &Order, page: &Page) -> Option<String> {
    let items = mail.items(page);
    let places: Option<Vec<u32>> = items.iter().map(|id| order.place(page.inbox, *id)).collect();
    let places = places?;
    if page.limit > 0 && places.len() > page.limit {
        return Some(format!("with {} messages instead of {}", places.len(), page.limit));
    }
    match page.view {
        View::Onward => {
            let from = order.cursor(page.from)?;
            let hole = (from + 1..).zip(&places).find(|(expected, place)| expected != *place);
            hole.map(|(expected, place)| format!("behind message {from} that has {place} instead of {expected}"))
        }
        View::Newest => {
            let first = *places.first()?;
            let hole = (1..=first)
                .rev()
                .zip(&places)
                .find(|(expected, place)| expected != *place);
            if let Some((expected, place)) = hole {
                return Some(format!("of the newest that has {place} instead of {expected}"));
            }
            let short = places.len() < page.limit && places.len() < first as usize;
            short.then(|| format!("of the newest that ends after {} of {first}", places.len()))
        }
        View::Unread => {
            let back = places.windows(2).find(|pair| pair[0] >= pair[1]);
            back.map(|pair| format!("of the unread that has {} before {}", pair[0], pair[1]))
        }
    }
}
