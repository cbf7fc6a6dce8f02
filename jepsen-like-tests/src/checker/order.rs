//! The final order of the messages in each inbox, and which of them were known to exist at what time.
//!
//! With a known order, whether a read was linearizable is a comparison of two positions; no search is needed.

use super::interner::Symbol;
use super::mail::{MailHistory, Page};
use crate::record::history::{NEVER, OutcomeKind};
use crate::record::mailbox::PageView;

/// The order of every inbox, from the first node that was audited.
pub struct InboxOrders {
    /// By message id: its inbox and its position there, from 1; 0 if it is in no inbox.
    places: Vec<(Symbol, u32)>,
    /// By inbox: the number of its messages; `None` if it was not audited or contains copies of publishes.
    lengths: Vec<Option<u32>>,
    /// By cursor: the position after which it points + 1; 0 if unknown.
    cursors: Vec<u32>,
    /// The indexes of pages whose cursor pointed elsewhere in another response.
    pub moved: Vec<usize>,
}

impl InboxOrders {
    /// Derives the orders from the audits and pages of a run.
    pub fn of(mail: &MailHistory) -> Self {
        let mut order = InboxOrders {
            places: vec![(0, 0); mail.names.count()],
            lengths: vec![None; mail.names.count()],
            cursors: vec![0; mail.names.count()],
            moved: Vec::new(),
        };
        order.cursors[0] = 1;
        for audit in mail.audits.iter().filter(|audit| audit.failed.is_none()) {
            let listed = mail.listed(audit);
            if order.lengths[audit.inbox as usize].is_some() || listed.iter().any(|m| mail.is_published(m.key)) {
                continue;
            }
            order.lengths[audit.inbox as usize] = Some(listed.len() as u32);
            for (place, message) in (1..).zip(listed) {
                order.places[message.id as usize] = (audit.inbox, place);
            }
        }
        for number in 0..mail.pages.len() {
            order.learn_cursor(mail, number);
        }
        order
    }

    /// The position of a message in an inbox.
    pub fn place(&self, inbox: Symbol, id: Symbol) -> Option<u32> {
        let (there, place) = self.places[id as usize];
        (there == inbox && place > 0).then_some(place)
    }

    /// The final number of messages in an inbox, if its order is known.
    pub fn length(&self, inbox: Symbol) -> Option<u32> {
        self.lengths[inbox as usize]
    }

    /// The position after which a cursor points.
    pub fn cursor(&self, cursor: Symbol) -> Option<u32> {
        self.cursors[cursor as usize].checked_sub(1)
    }

    /// The last position up to which a page is complete: `None` if it was full, so that more may follow.
    pub fn covered(&self, mail: &MailHistory, page: &Page) -> Option<u32> {
        let items = mail.items(page);
        let at = |id: Option<&Symbol>| id.map_or(Some(0), |id| self.place(page.inbox, *id));
        match page.view {
            PageView::Newest => at(items.first()),
            _ if items.len() >= page.limit => None,
            PageView::Unread => at(items.last()),
            PageView::Onward if items.is_empty() => self.cursor(page.from),
            PageView::Onward => at(items.last()),
        }
    }

    fn learn_cursor(&mut self, mail: &MailHistory, number: usize) {
        let page = &mail.pages[number];
        if page.view != PageView::Onward || page.cursor == 0 || self.length(page.inbox).is_none() {
            return;
        }
        let place = match mail.items(page).last() {
            Some(last) => self.place(page.inbox, *last),
            None => self.cursor(page.from),
        };
        let Some(place) = place else { return };
        match &mut self.cursors[page.cursor as usize] {
            known @ 0 => *known = place + 1,
            known if *known == place + 1 => {}
            _ => self.moved.push(number),
        }
    }
}

/// Which messages were known to exist at what time: a read that begins after an acknowledgement, or after someone saw
/// a message, must show everything up to that position.
pub struct KnownPrefixes {
    /// The inbox, a time, and the greatest position known by then.
    steps: Vec<(Symbol, u64, u32)>,
}

impl KnownPrefixes {
    /// Derives it from everything that was acknowledged or shown.
    pub fn of(mail: &MailHistory, order: &InboxOrders) -> Self {
        let sent = mail.sent.iter().filter(|sent| sent.outcome == OutcomeKind::Ok);
        let sent = sent.filter_map(|sent| Some((sent.inbox, sent.ended, order.place(sent.inbox, sent.id)?)));
        let shown = mail.pages.iter().filter_map(|page| {
            let items = mail.items(page);
            let last = if page.view == PageView::Newest {
                items.first()
            } else {
                items.last()
            };
            Some((page.inbox, page.ended, order.place(page.inbox, *last?)?))
        });
        let mut steps: Vec<(Symbol, u64, u32)> = sent.chain(shown).filter(|step| step.1 != NEVER).collect();
        steps.sort_unstable();
        for after in 1..steps.len() {
            let (inbox, _, place) = steps[after - 1];
            let step = &mut steps[after];
            if step.0 == inbox {
                step.2 = step.2.max(place);
            }
        }
        KnownPrefixes { steps }
    }

    /// The position up to which everything was known to exist before `time`.
    pub fn before(&self, inbox: Symbol, time: u64) -> u32 {
        let after = self.steps.partition_point(|step| (step.0, step.1) < (inbox, time));
        let last = after.checked_sub(1).map(|last| self.steps[last]);
        last.filter(|step| step.0 == inbox).map_or(0, |step| step.2)
    }
}
