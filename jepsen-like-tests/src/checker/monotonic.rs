//! Consecutive pages join without gap or overlap, whichever nodes they come from, and no cursor moves back. This
//! holds for local reads, too: every node has a prefix of the inbox.

use super::evidence::{Evidence, seconds};
use super::mail::{MailHistory, Page};
use super::order::InboxOrders;
use crate::record::mailbox::PageView;
use crate::record::verdict::Check;

/// Compares every page with the part of the inbox that it must show.
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
            "at {} node {} gave a cursor of {} that pointed elsewhere before: {}",
            seconds(page.began),
            page.node,
            mail.text(page.inbox),
            mail.text(page.cursor)
        ));
    }
    Check::new("monotonic", looked_at, violations)
}

/// The error in a page. Messages that are in no inbox at the end are reported by `lost`.
fn wrong(mail: &MailHistory, order: &InboxOrders, page: &Page) -> Option<String> {
    let items = mail.items(page);
    let places: Option<Vec<u32>> = items.iter().map(|id| order.place(page.inbox, *id)).collect();
    let places = places?;
    if page.limit > 0 && places.len() > page.limit {
        return Some(format!("with {} messages instead of {}", places.len(), page.limit));
    }
    match page.view {
        PageView::Onward => {
            let from = order.cursor(page.from)?;
            let hole = (from + 1..).zip(&places).find(|(expected, place)| expected != *place);
            hole.map(|(expected, place)| format!("after message {from} that has {place} instead of {expected}"))
        }
        PageView::Newest => {
            let first = *places.first()?;
            let hole = (1..=first)
                .rev()
                .zip(&places)
                .find(|(expected, place)| expected != *place);
            if let Some((expected, place)) = hole {
                return Some(format!("of the newest messages that has {place} instead of {expected}"));
            }
            let short = places.len() < page.limit && places.len() < first as usize;
            short.then(|| format!("of the newest messages that ends after {} of {first}", places.len()))
        }
        PageView::Unread => {
            let back = places.windows(2).find(|pair| pair[0] >= pair[1]);
            back.map(|pair| format!("of the unread messages that has {} before {}", pair[0], pair[1]))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::run_builder::{RunBuilder, listed};
    use crate::record::history::{Fields, Op};

    fn story() -> RunBuilder {
        RunBuilder::default().audit("a", &[("m1", "k1"), ("m2", "k2"), ("m3", "k3"), ("m4", "k4")])
    }

    fn read(story: RunBuilder, began: u64, name: Option<&str>, cursors: (&str, &str), ids: &[&str]) -> RunBuilder {
        let cursor = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let asked = Fields {
            name: name.map(str::to_owned),
            from: cursor(cursors.0),
            n: Some(2),
            ..Fields::default()
        };
        let items: Vec<(&str, &str)> = ids.iter().map(|id| (*id, "")).collect();
        let answered = Fields {
            cursor: cursor(cursors.1),
            ..listed(&items)
        };
        story.ok(began..began + 1, Op::Read, "a", asked, answered)
    }

    fn violations(story: RunBuilder) -> Vec<String> {
        check(&story.evidence()).violations
    }

    #[test]
    fn pages_join_and_may_be_read_again() {
        let story = read(story(), 1, None, ("", "c2"), &["m1", "m2"]);
        let story = read(story, 3, Some("local"), ("c2", "c2"), &[]);
        let story = read(story, 5, None, ("c2", "c4"), &["m3", "m4"]);
        let story = read(story, 7, Some("local"), ("c2", "c3"), &["m3"]);
        let story = read(story, 9, Some("newest"), ("", ""), &["m4", "m3"]);
        let story = read(story, 11, Some("unread"), ("", ""), &["m1", "m4"]);
        let check = check(&story.evidence());
        assert_eq!((check.violations, check.looked_at), (vec![], 6));
    }

    #[test]
    fn gaps_overlaps_and_cursors_that_move_are_seen() {
        let begun = || read(story(), 1, None, ("", "c2"), &["m1", "m2"]);
        let page = "node 1 answered client 0 with a page of a";
        assert_eq!(
            violations(read(begun(), 3, None, ("c2", "c4"), &["m4"])),
            [format!("at 0.003 s {page} after message 2 that has 4 instead of 3")]
        );
        assert_eq!(
            violations(read(begun(), 3, Some("local"), ("c2", "c3"), &["m2", "m3"])),
            [format!("at 0.003 s {page} after message 2 that has 2 instead of 3")]
        );
        assert_eq!(
            violations(read(begun(), 3, None, ("c2", "c2"), &["m3"])),
            ["at 0.003 s node 1 gave a cursor of a that pointed elsewhere before: c2"]
        );
        assert_eq!(
            violations(read(story(), 3, None, ("", "c3"), &["m1", "m2", "m3"])),
            [format!("at 0.003 s {page} with 3 messages instead of 2")]
        );
    }

    #[test]
    fn the_newest_and_the_unread_keep_the_order() {
        let page = "at 0.001 s node 1 answered client 0 with a page of a";
        assert_eq!(
            violations(read(story(), 1, Some("newest"), ("", ""), &["m4", "m2"])),
            [format!("{page} of the newest messages that has 2 instead of 3")]
        );
        assert_eq!(
            violations(read(story(), 1, Some("newest"), ("", ""), &["m4"])),
            [format!("{page} of the newest messages that ends after 1 of 4")]
        );
        assert_eq!(
            violations(read(story(), 1, Some("unread"), ("", ""), &["m4", "m2"])),
            [format!("{page} of the unread messages that has 4 before 2")]
        );
    }
}
