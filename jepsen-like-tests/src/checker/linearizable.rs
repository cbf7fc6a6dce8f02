//! A linearizable read shows everything that was acknowledged or seen before it began.
//!
//! A page proves this only for the part of the inbox that it covers: a page from a cursor that was not full, and a
//! page of the newest messages. Local reads may be arbitrarily stale.

use super::evidence::{Evidence, seconds};
use crate::record::mailbox::PageView;
use crate::record::verdict::Check;

/// Compares the end of every linearizable page with what was known to exist.
pub fn check(evidence: &Evidence) -> Check {
    let Evidence { mail, order, known, .. } = evidence;
    let mut violations = Vec::new();
    let mut looked_at = 0;
    for page in mail
        .pages
        .iter()
        .filter(|page| !page.local && page.view != PageView::Unread)
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
                "at {} node {} showed {} only up to message {covered}, although {there} existed",
                seconds(page.began),
                page.node,
                mail.text(page.inbox)
            ));
        }
    }
    Check::new("linearizable", looked_at, violations)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::run_builder::{RunBuilder, listed};
    use crate::record::history::{Fields, Item, Op};

    /// Messages 1 to 3, acknowledged at 10, 20 and 30 ms.
    fn story() -> RunBuilder {
        let story = (1..=3).fold(RunBuilder::default(), |story, n: u64| {
            let (key, id) = (Fields::key(format!("k{n}")), Fields::id(format!("m{n}")));
            story.ok(n * 10 - 5..n * 10, Op::Send, "a", key, id)
        });
        story.audit("a", &[("m1", "k1"), ("m2", "k2"), ("m3", "k3"), ("m4", "k4")])
    }

    fn read(story: RunBuilder, began: u64, name: Option<&str>, limit: u64, ids: &[&str]) -> RunBuilder {
        let asked = Fields {
            name: name.map(str::to_owned),
            n: Some(limit),
            ..Fields::default()
        };
        let items: Vec<(&str, &str)> = ids.iter().map(|id| (*id, "")).collect();
        story.ok(began..began + 1, Op::Read, "a", asked, listed(&items)).at(2)
    }

    fn looked(story: RunBuilder) -> (u64, Vec<String>) {
        let check = check(&story.evidence());
        (check.looked_at, check.violations)
    }

    #[test]
    fn a_read_may_show_more_than_was_acknowledged_and_a_full_or_local_page_may_lack_something() {
        let story = read(story(), 10, None, 5, &["m1", "m2"]);
        let story = read(story, 31, None, 2, &["m1", "m2"]);
        let story = read(story, 32, Some("local"), 5, &["m1"]);
        let story = read(story, 33, Some("newest local"), 1, &["m1"]);
        let story = read(story, 34, Some("newest"), 1, &["m3"]);
        assert_eq!(looked(story), (2, vec![]));
    }

    #[test]
    fn a_read_that_lacks_what_was_acknowledged_before_it_is_stale() {
        let stale = "at 0.021 s node 2 showed a only up to message 1, although 2 existed";
        assert_eq!(looked(read(story(), 21, None, 5, &["m1"])).1, [stale]);
        assert_eq!(looked(read(story(), 21, Some("newest"), 1, &["m1"])).1, [stale]);
        let nothing = "at 0.021 s node 2 showed a only up to message 0, although 2 existed";
        assert_eq!(looked(read(story(), 21, None, 5, &[])).1, [nothing]);
        assert_eq!(looked(read(story(), 21, Some("newest"), 1, &[])).1, [nothing]);
    }

    #[test]
    fn a_read_that_lacks_what_another_one_saw_before_it_is_stale() {
        let seen = read(story(), 31, Some("local"), 5, &["m1", "m2", "m3", "m4"]);
        let stale = read(seen, 40, None, 5, &["m1", "m2", "m3"]);
        assert_eq!(
            looked(stale).1,
            ["at 0.040 s node 2 showed a only up to message 3, although 4 existed"]
        );
    }

    #[test]
    fn a_page_from_a_cursor_covers_what_is_before_it() {
        let page = |cursor: &str, from: Option<&str>, ids: &[&str]| {
            let items = ids.iter().map(|id| Item {
                id: (*id).to_owned(),
                key: String::new(),
                seq: None,
            });
            Fields {
                cursor: Some(cursor.to_owned()),
                from: from.map(str::to_owned),
                n: Some(2),
                items: items.collect(),
                ..Fields::default()
            }
        };
        let asked = |from| Fields {
            items: Vec::new(),
            cursor: None,
            ..page("", from, &[])
        };
        let story = story().ok(31..32, Op::Read, "a", asked(None), page("c2", None, &["m1", "m2"]));
        let good = story.ok(33..34, Op::Read, "a", asked(Some("c2")), page("c3", None, &["m3"]));
        assert_eq!(looked(good), (1, vec![]));
        let bad = self::story().ok(31..32, Op::Read, "a", asked(None), page("c2", None, &["m1", "m2"]));
        let bad = bad.ok(33..34, Op::Read, "a", asked(Some("c2")), page("c2", None, &[]));
        assert_eq!(
            looked(bad).1,
            ["at 0.033 s node 1 showed a only up to message 2, although 3 existed"]
        );
    }
}
