//! A message that was marked as read is in no later list of unread messages, and every other message is.

use std::collections::{BTreeSet, HashMap};

use super::evidence::{Evidence, seconds};
use super::interner::Symbol;
use super::mail::{MailHistory, Page};
use super::order::{InboxOrders, KnownPrefixes};
use crate::record::history::{NEVER, OutcomeKind};
use crate::record::mailbox::PageView;
use crate::record::verdict::Check;

/// Compares every unread list with the marks.
pub fn check(evidence: &Evidence) -> Check {
    let Evidence { mail, order, known, .. } = evidence;
    let marks = Marks::of(mail);
    let mut inboxes: HashMap<Symbol, Unmarked> = HashMap::new();
    let mut violations = Vec::new();
    let mut looked_at = 0;
    for page in mail
        .pages
        .iter()
        .filter(|page| page.view == PageView::Unread && page.from == 0)
    {
        let Some(length) = order.length(page.inbox) else {
            continue;
        };
        looked_at += 1;
        for id in mail.items(page) {
            if !page.local && marks.marked(*id) < page.began {
                violations.push(said(
                    mail,
                    page,
                    format!("shows {}, which was marked as read", mail.text(*id)),
                ));
            }
        }
        let unmarked = inboxes
            .entry(page.inbox)
            .or_insert_with(|| marks.unmarked(order, page.inbox, length));
        if let Some(place) = unmarked.missing(mail, order, known, page) {
            violations.push(said(mail, page, format!("lacks message {place}, which nobody marked")));
        }
    }
    Check::new("read-marks", looked_at, violations)
}

fn said(mail: &MailHistory, page: &Page, what: String) -> String {
    format!(
        "at {} the unread list of {} at node {} {what}",
        seconds(page.began),
        mail.text(page.inbox),
        page.node
    )
}

struct Marks {
    /// By message id: when it was certainly marked.
    marked: HashMap<Symbol, u64>,
    /// By inbox: when each mark began, and its message; only marks that may have taken effect.
    begun: HashMap<Symbol, Vec<(u64, Symbol)>>,
}

impl Marks {
    fn of(mail: &MailHistory) -> Self {
        let mut marked = HashMap::new();
        let mut begun: HashMap<Symbol, Vec<(u64, Symbol)>> = HashMap::new();
        for mark in mail.marks.iter().filter(|mark| mark.outcome != OutcomeKind::Fail) {
            begun.entry(mark.inbox).or_default().push((mark.began, mark.id));
            if mark.outcome == OutcomeKind::Ok {
                marked.entry(mark.id).or_insert(mark.ended);
            }
        }
        Marks { marked, begun }
    }

    fn marked(&self, id: Symbol) -> u64 {
        self.marked.get(&id).copied().unwrap_or(NEVER)
    }

    fn unmarked(&self, order: &InboxOrders, inbox: Symbol, length: u32) -> Unmarked {
        let begun = self.begun.get(&inbox).map_or(&[][..], Vec::as_slice);
        let coming = begun
            .iter()
            .filter_map(|(at, id)| Some((*at, order.place(inbox, *id)?)));
        let mut coming: Vec<(u64, u32)> = coming.collect();
        coming.sort_unstable_by(|a, b| b.cmp(a));
        Unmarked {
            places: (1..=length).collect(),
            coming,
        }
    }
}

/// The positions of an inbox that nobody has begun to mark yet; pages are checked in the order of their arrival.
struct Unmarked {
    places: BTreeSet<u32>,
    /// When each mark began and its position, sorted so that the next one is last.
    coming: Vec<(u64, u32)>,
}

impl Unmarked {
    /// The first position that the page should show and does not.
    fn missing(&mut self, mail: &MailHistory, order: &InboxOrders, known: &KnownPrefixes, page: &Page) -> Option<u32> {
        while let Some((_, place)) = self.coming.pop_if(|(began, _)| *began < page.ended) {
            self.places.remove(&place);
        }
        let shown: Option<Vec<u32>> = mail.items(page).iter().map(|id| order.place(page.inbox, *id)).collect();
        let shown = shown?;
        let last = shown.last().copied().unwrap_or(0);
        let room = shown.len() < page.limit && !page.local;
        let covered = if room {
            last.max(known.before(page.inbox, page.began))
        } else {
            last
        };
        let mut shown = shown.into_iter().peekable();
        for place in self.places.range(..=covered) {
            while shown.next_if(|there| there < place).is_some() {}
            if shown.next_if_eq(place).is_none() {
                return Some(*place);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::run_builder::{RunBuilder, listed};
    use crate::record::history::{Fields, Op};

    /// Messages 1 to 4; the first two are acknowledged at 10 and 20 ms.
    fn story() -> RunBuilder {
        let story = (1..=2).fold(RunBuilder::default(), |story, n: u64| {
            let (key, id) = (Fields::key(format!("k{n}")), Fields::id(format!("m{n}")));
            story.ok(n * 10 - 5..n * 10, Op::Send, "a", key, id)
        });
        story.audit("a", &[("m1", "k1"), ("m2", "k2"), ("m3", "k3"), ("m4", "k4")])
    }

    fn unread(story: RunBuilder, began: u64, ids: &[&str]) -> RunBuilder {
        let asked = Fields {
            name: Some("unread".to_owned()),
            n: Some(2),
            ..Fields::default()
        };
        let items: Vec<(&str, &str)> = ids.iter().map(|id| (*id, "")).collect();
        story.ok(began..began + 10, Op::Read, "a", asked, listed(&items))
    }

    fn mark(story: RunBuilder, began: u64, id: &str) -> RunBuilder {
        story.ok(began..began + 10, Op::Ack, "a", Fields::id(id), Fields::default())
    }

    fn violations(story: RunBuilder) -> Vec<String> {
        check(&story.evidence()).violations
    }

    #[test]
    fn marks_under_way_may_show_or_not() {
        let story = mark(unread(story(), 30, &["m1", "m2"]), 50, "m1");
        let story = unread(unread(story, 55, &["m1", "m2"]), 56, &["m2", "m3"]);
        let story = story.info(70..71, Op::Ack, "a", Fields::id("m2"));
        let story = unread(unread(story, 80, &["m2", "m3"]), 95, &["m3"]);
        let check = check(&story.evidence());
        assert_eq!((check.violations, check.looked_at), (vec![], 5));
    }

    #[test]
    fn marked_messages_must_be_absent_and_unmarked_ones_present() {
        let list = "the unread list of a at node 1";
        assert_eq!(
            violations(unread(mark(story(), 30, "m1"), 50, &["m1", "m2"])),
            [format!("at 0.050 s {list} shows m1, which was marked as read")]
        );
        assert_eq!(
            violations(unread(story(), 30, &["m1", "m3"])),
            [format!("at 0.030 s {list} lacks message 2, which nobody marked")]
        );
        assert_eq!(
            violations(unread(story(), 30, &["m1"])),
            [format!("at 0.030 s {list} lacks message 2, which nobody marked")]
        );
        // A mark that was refused had no effect.
        let refused = story().fail(30..31, Op::Ack, "a", Fields::id("m1"));
        assert_eq!(
            violations(unread(refused, 50, &["m2"])),
            [format!("at 0.050 s {list} lacks message 1, which nobody marked")]
        );
    }
}
