//! The order in which the messages of each inbox stand in the end, and what is known to be there at what time.
//!
//! With the order known, whether a read was linearizable is a comparison of two places: nothing has to be searched.

use super::mail::{End, Mail, NEVER, Page, View};
use super::names::Name;

/// The order of every inbox, as the first node that was asked has it.
pub struct Order {
    /// By id: its inbox and its place there, from 1; 0 if it is in no inbox.
    places: Vec<(Name, u32)>,
    /// By the name of an inbox: how many messages it has; none if nobody looked, or if it has copies of a topic's.
    lengths: Vec<Option<u32>>,
    /// By cursor: the place it stands behind, + 1; 0 if unknown.
    cursors: Vec<u32>,
    /// Pages whose cursor stood elsewhere in another answer.
    pub moved: Vec<usize>,
}

impl Order {
    /// From the audits and pages of a run.
    pub fn of(mail: &Mail) -> Self {
        let mut order = Order {
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

    /// The place of a message in an inbox.
    pub fn place(&self, inbox: Name, id: Name) -> Option<u32> {
        let (there, place) = self.places[id as usize];
        (there == inbox && place > 0).then_some(place)
    }

    /// How many messages an inbox has in the end, if its order is known.
    pub fn length(&self, inbox: Name) -> Option<u32> {
        self.lengths[inbox as usize]
    }

    /// The place that a cursor stands behind.
    pub fn cursor(&self, cursor: Name) -> Option<u32> {
        self.cursors[cursor as usize].checked_sub(1)
    }

    /// Up to which place a page says everything: none if it was full, and more may follow.
    pub fn covered(&self, mail: &Mail, page: &Page) -> Option<u32> {
        let items = mail.items(page);
        let at = |id: Option<&Name>| id.map_or(Some(0), |id| self.place(page.inbox, *id));
        match page.view {
            View::Newest => at(items.first()),
            _ if items.len() >= page.limit => None,
            View::Unread => at(items.last()),
            View::Onward if items.is_empty() => self.cursor(page.from),
            View::Onward => at(items.last()),
        }
    }

    fn learn_cursor(&mut self, mail: &Mail, number: usize) {
        let page = &mail.pages[number];
        if page.view != View::Onward || page.cursor == 0 || self.length(page.inbox).is_none() {
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

/// What must be there, by time: whoever begins to read after an acknowledgement, or after somebody saw a message, sees
/// all that stands up to it.
pub struct Known {
    /// Inbox, since when, and up to which place; the place is the greatest until then.
    steps: Vec<(Name, u64, u32)>,
}

impl Known {
    /// From everything that was acknowledged or shown.
    pub fn of(mail: &Mail, order: &Order) -> Self {
        let sent = mail.sent.iter().filter(|sent| sent.end == End::Ok);
        let sent = sent.filter_map(|sent| Some((sent.inbox, sent.ended, order.place(sent.inbox, sent.id)?)));
        let shown = mail.pages.iter().filter_map(|page| {
            let items = mail.items(page);
            let last = if page.view == View::Newest {
                items.first()
            } else {
                items.last()
            };
            Some((page.inbox, page.ended, order.place(page.inbox, *last?)?))
        });
        let mut steps: Vec<(Name, u64, u32)> = sent.chain(shown).filter(|step| step.1 != NEVER).collect();
        steps.sort_unstable();
        for after in 1..steps.len() {
            let (inbox, _, place) = steps[after - 1];
            let step = &mut steps[after];
            if step.0 == inbox {
                step.2 = step.2.max(place);
            }
        }
        Known { steps }
    }

    /// Up to which place everything was there before this moment.
    pub fn before(&self, inbox: Name, time: u64) -> u32 {
        let after = self.steps.partition_point(|step| (step.0, step.1) < (inbox, time));
        let last = after.checked_sub(1).map(|last| self.steps[last]);
        last.filter(|step| step.0 == inbox).map_or(0, |step| step.2)
    }
}
