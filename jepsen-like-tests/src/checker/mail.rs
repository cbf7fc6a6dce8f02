//! What a run wrote down about mailboxes, small: texts are numbers, and a message that somebody saw is one number.
//!
//! Histories of ten million messages, each read by several clients and listed by every node in the end, must fit into
//! memory. So [`Mail`] is filled operation by operation while the history is read.

use std::ops::Range;

use super::names::{Name, Names};
use crate::history::{Fields, Item, Op, Operation, Outcome};
use crate::workload::mailbox;

/// No time at all: what never ended.
pub const NEVER: u64 = u64::MAX;

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It happened.
    Ok,
    /// It surely did not.
    Fail,
    /// Nobody knows.
    Info,
}

/// One message that a client sent.
#[derive(Debug, Clone, Copy)]
pub struct Sent {
    /// To whom.
    pub inbox: Name,
    /// Its client's name of it.
    pub key: Name,
    /// The server's id of it, if it was acknowledged.
    pub id: Name,
    /// When it was sent first.
    pub began: u64,
    /// When it was acknowledged; [`NEVER`] if it was not.
    pub ended: u64,
    /// How.
    pub end: End,
}

/// The same key once more.
#[derive(Debug, Clone, Copy)]
pub struct Repeat {
    /// The place of the first in [`Mail::sent`].
    pub first: usize,
    /// What was answered.
    pub id: Name,
    /// How it ended.
    pub end: End,
    /// The body was another one: nobody may answer that with a message.
    pub changed: bool,
}

/// Which messages a page shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// Those behind a cursor, oldest first.
    Onward,
    /// The newest, newest first.
    Newest,
    /// Those that nobody marked read, oldest first.
    Unread,
}

/// A page that was answered.
#[derive(Debug, Clone)]
pub struct Page {
    /// Of which inbox.
    pub inbox: Name,
    /// By which node.
    pub node: usize,
    /// By which client.
    pub lane: u32,
    /// What was asked for.
    pub view: View,
    /// Whether a node could answer without asking the others.
    pub local: bool,
    /// The cursor of the question; 0 from the beginning.
    pub from: Name,
    /// The cursor of the answer.
    pub cursor: Name,
    /// How many messages it may have.
    pub limit: usize,
    /// When it was asked.
    pub began: u64,
    /// When it was answered.
    pub ended: u64,
    /// Its messages, in [`Mail::shown`].
    items: Range<usize>,
}

/// A message that its reader marked as read.
#[derive(Debug, Clone, Copy)]
pub struct Mark {
    /// Of which inbox.
    pub inbox: Name,
    /// Which message.
    pub id: Name,
    /// When it began.
    pub began: u64,
    /// When it ended; [`NEVER`] if it did not.
    pub ended: u64,
    /// How.
    pub end: End,
}

/// Everything in an inbox, as one node showed it in the end.
#[derive(Debug, Clone)]
pub struct Audit {
    /// Of which inbox.
    pub inbox: Name,
    /// By which node.
    pub node: usize,
    /// Why it is not known, if it is not.
    pub failed: Option<String>,
    /// Its messages, in [`Mail::listed`].
    items: Range<usize>,
}

/// A message in an audit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed {
    /// The server's id.
    pub id: Name,
    /// Its sender's name of it; 0 if it has none.
    pub key: Name,
}

/// What happened to mailboxes.
#[derive(Default)]
pub struct Mail {
    /// All texts.
    pub names: Names,
    /// All messages that were sent, in the order in which the first attempts ended.
    pub sent: Vec<Sent>,
    /// All repeats.
    pub repeats: Vec<Repeat>,
    /// All pages, in the order in which they were answered.
    pub pages: Vec<Page>,
    /// All marks, in the order in which they ended.
    pub marks: Vec<Mark>,
    /// All audits.
    pub audits: Vec<Audit>,
    shown: Vec<Name>,
    listed: Vec<Listed>,
    /// By key: 0 if nobody sent it, [`PUBLISHED`], or its place in `sent` + 1.
    first: Vec<u32>,
}

/// The key of something that has a copy in each of many inboxes.
const PUBLISHED: u32 = u32::MAX;

impl Mail {
    /// Takes in an operation that ended, if it is about mailboxes.
    pub fn take(&mut self, operation: &Operation) {
        match operation.op {
            Op::Send => self.take_send(operation),
            Op::Publish => {
                for key in keys(&operation.asked) {
                    let key = self.names.of(key);
                    *self.first_of(key) = PUBLISHED;
                }
            }
            Op::Read => self.take_page(operation),
            Op::Ack => self.take_marks(operation),
            Op::Audit => self.take_audit(operation),
            _ => {}
        }
    }

    /// The messages of a page, in its order.
    pub fn items(&self, page: &Page) -> &[Name] {
        &self.shown[page.items.clone()]
    }

    /// The messages of an audit, in its order.
    pub fn listed(&self, audit: &Audit) -> &[Listed] {
        &self.listed[audit.items.clone()]
    }

    /// A text.
    pub fn text(&self, name: Name) -> &str {
        self.names.text(name)
    }

    /// The place in [`Mail::sent`] of a key, if it was sent.
    pub fn sent_as(&self, key: Name) -> Option<usize> {
        let first = self.first.get(key as usize).copied().unwrap_or(0);
        (first != 0 && first != PUBLISHED).then(|| first as usize - 1)
    }

    /// Whether a key was published to a topic: its copies are another checker's business.
    pub fn is_published(&self, key: Name) -> bool {
        self.first.get(key as usize) == Some(&PUBLISHED)
    }

    fn first_of(&mut self, key: Name) -> &mut u32 {
        if self.first.len() <= key as usize {
            self.first.resize(self.names.count().max(key as usize + 1), 0);
        }
        &mut self.first[key as usize]
    }

    fn take_send(&mut self, operation: &Operation) {
        let inbox = self.names.of(&operation.k);
        let ids = operation.answered().map(ids).unwrap_or_default();
        let changed = operation.asked.name.as_deref() == Some(mailbox::CHANGED);
        for (number, key) in keys(&operation.asked).into_iter().enumerate() {
            let key = self.names.of(key);
            let id = ids.get(number).map_or(0, |id| self.names.of(id));
            let end = end_of(operation);
            if let Some(first) = self.sent_as(key) {
                self.repeats.push(Repeat {
                    first,
                    id,
                    end,
                    changed,
                });
                let sent = &mut self.sent[first];
                if end == End::Ok && !changed && sent.end == End::Info {
                    (sent.end, sent.id, sent.ended) = (end, id, operation.ended.unwrap_or(NEVER));
                }
                continue;
            }
            self.sent.push(Sent {
                inbox,
                key,
                id,
                began: operation.began,
                ended: acknowledged_at(operation),
                end,
            });
            *self.first_of(key) = self.sent.len() as u32;
        }
    }

    fn take_page(&mut self, operation: &Operation) {
        let (Some(answered), Some(ended), Some(node)) = (operation.answered(), operation.ended, operation.node) else {
            return;
        };
        let Some((view, local)) = mailbox::page_kind(operation.asked.name.as_deref()) else {
            return;
        };
        let begin = self.shown.len();
        for item in &answered.items {
            let id = self.names.of(&item.id);
            self.shown.push(id);
        }
        let text = |cursor: &Option<String>| cursor.clone().unwrap_or_default();
        let page = Page {
            inbox: self.names.of(&operation.k),
            node,
            lane: operation.lane,
            view,
            local,
            from: self.names.of(&text(&operation.asked.from)),
            cursor: self.names.of(&text(&answered.cursor)),
            limit: operation.asked.n.unwrap_or(0) as usize,
            began: operation.began,
            ended,
            items: begin..self.shown.len(),
        };
        self.pages.push(page);
    }

    fn take_marks(&mut self, operation: &Operation) {
        let inbox = self.names.of(&operation.k);
        for id in ids(&operation.asked) {
            let id = self.names.of(id);
            self.marks.push(Mark {
                inbox,
                id,
                began: operation.began,
                ended: operation.ended.unwrap_or(NEVER),
                end: end_of(operation),
            });
        }
    }

    fn take_audit(&mut self, operation: &Operation) {
        let Some(node) = operation.node else { return };
        let begin = self.listed.len();
        for Item { id, key, .. } in operation.answered().map_or(&[][..], |answered| &answered.items) {
            let (id, key) = (self.names.of(id), self.names.of(key));
            self.listed.push(Listed { id, key });
        }
        let failed = match &operation.outcome {
            Outcome::Ok(_) => None,
            Outcome::Fail(why) | Outcome::Info(why) => Some(why.clone()),
        };
        self.audits.push(Audit {
            inbox: self.names.of(&operation.k),
            node,
            failed,
            items: begin..self.listed.len(),
        });
    }
}

/// How an operation ended.
pub fn end_of(operation: &Operation) -> End {
    match operation.outcome {
        Outcome::Ok(_) => End::Ok,
        Outcome::Fail(_) => End::Fail,
        Outcome::Info(_) => End::Info,
    }
}

fn acknowledged_at(operation: &Operation) -> u64 {
    operation.answered().and(operation.ended).unwrap_or(NEVER)
}

/// The names that clients gave to what an operation is about: one, or a batch.
fn keys(fields: &Fields) -> Vec<&str> {
    texts(&fields.key, &fields.items, |item| &item.key)
}

/// The ids that the server gave to what an operation is about.
fn ids(fields: &Fields) -> Vec<&str> {
    texts(&fields.id, &fields.items, |item| &item.id)
}

fn texts<'a>(one: &'a Option<String>, items: &'a [Item], text: fn(&Item) -> &str) -> Vec<&'a str> {
    match one {
        Some(one) => vec![one],
        None => items.iter().map(text).collect(),
    }
}
