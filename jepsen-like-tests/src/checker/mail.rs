//! The history of mailboxes in a compact form: texts are interned, and a message in a page takes one number.
//!
//! Histories of ten million messages, each read by several clients and listed by every node at the end, must fit into
//! memory. So [`MailHistory`] is filled operation by operation while the history is read.

use std::ops::Range;

use super::interner::{Interner, Symbol};
use crate::record::history::{Fields, Item, NEVER, Op, Operation, Outcome, OutcomeKind};
use crate::record::mailbox::{CHANGED, PageView, page_view};

/// A message that a client sent.
#[derive(Debug, Clone, Copy)]
pub struct Sent {
    pub inbox: Symbol,
    /// The name that its sender gave it.
    pub key: Symbol,
    /// The id that the server assigned, if the message was acknowledged.
    pub id: Symbol,
    /// When the first attempt began.
    pub began: u64,
    /// When the message was acknowledged; [`NEVER`] if it was not.
    pub ended: u64,
    pub outcome: OutcomeKind,
}

/// A repeated send under the same key.
#[derive(Debug, Clone, Copy)]
pub struct Repeat {
    /// The index of the first send in [`MailHistory::sent`].
    pub first: usize,
    /// The id in the response.
    pub id: Symbol,
    pub outcome: OutcomeKind,
    /// Whether the body differed from the first one; such a send must not be acknowledged.
    pub changed: bool,
}

/// A page that a client received.
#[derive(Debug, Clone)]
pub struct Page {
    pub inbox: Symbol,
    pub node: usize,
    pub lane: u32,
    pub view: PageView,
    /// Whether the node may answer from its local state.
    pub local: bool,
    /// The cursor in the request; 0 from the beginning.
    pub from: Symbol,
    /// The cursor in the response.
    pub cursor: Symbol,
    /// The maximum number of messages.
    pub limit: usize,
    pub began: u64,
    pub ended: u64,
    /// The range of its messages in [`MailHistory::shown`].
    items: Range<usize>,
}

/// A request to mark a message as read.
#[derive(Debug, Clone, Copy)]
pub struct Mark {
    pub inbox: Symbol,
    pub id: Symbol,
    pub began: u64,
    /// When it ended; [`NEVER`] if it did not.
    pub ended: u64,
    pub outcome: OutcomeKind,
}

/// A whole inbox as one node showed it at the end.
#[derive(Debug, Clone)]
pub struct Audit {
    pub inbox: Symbol,
    pub node: usize,
    /// The error, if the inbox could not be read.
    pub failed: Option<String>,
    /// The range of its messages in [`MailHistory::listed`].
    items: Range<usize>,
}

/// A message in an audit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed {
    /// The id that the server assigned.
    pub id: Symbol,
    /// The name that its sender gave it; 0 if it has none.
    pub key: Symbol,
}

/// The history of mailboxes.
#[derive(Default)]
pub struct MailHistory {
    pub names: Interner,
    /// All sent messages, in the order in which their first attempts ended.
    pub sent: Vec<Sent>,
    pub repeats: Vec<Repeat>,
    /// All pages, in the order in which they were received.
    pub pages: Vec<Page>,
    /// All requests to mark messages as read, in the order in which they ended.
    pub marks: Vec<Mark>,
    pub audits: Vec<Audit>,
    shown: Vec<Symbol>,
    listed: Vec<Listed>,
    /// By key: 0 if it was never sent, [`PUBLISHED`], or its index in `sent` + 1.
    first: Vec<u32>,
}

/// The key of a publish, which has copies in many inboxes.
const PUBLISHED: u32 = u32::MAX;

impl MailHistory {
    /// Adds an operation that ended, if it concerns mailboxes.
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
    pub fn items(&self, page: &Page) -> &[Symbol] {
        &self.shown[page.items.clone()]
    }

    /// The messages of an audit, in its order.
    pub fn listed(&self, audit: &Audit) -> &[Listed] {
        &self.listed[audit.items.clone()]
    }

    pub fn text(&self, name: Symbol) -> &str {
        self.names.text(name)
    }

    /// The index of a key in [`MailHistory::sent`], if it was sent.
    pub fn sent_as(&self, key: Symbol) -> Option<usize> {
        let first = self.first.get(key as usize).copied().unwrap_or(0);
        (first != 0 && first != PUBLISHED).then(|| first as usize - 1)
    }

    /// Whether a key was published to a topic. The fan-out checker looks at its copies.
    pub fn is_published(&self, key: Symbol) -> bool {
        self.first.get(key as usize) == Some(&PUBLISHED)
    }

    fn first_of(&mut self, key: Symbol) -> &mut u32 {
        if self.first.len() <= key as usize {
            self.first.resize(self.names.count().max(key as usize + 1), 0);
        }
        &mut self.first[key as usize]
    }

    fn take_send(&mut self, operation: &Operation) {
        let inbox = self.names.of(&operation.k);
        let ids = operation.answered().map(ids).unwrap_or_default();
        let changed = operation.asked.name.as_deref() == Some(CHANGED);
        for (number, key) in keys(&operation.asked).into_iter().enumerate() {
            let key = self.names.of(key);
            let id = ids.get(number).map_or(0, |id| self.names.of(id));
            let outcome = operation.outcome.kind();
            if let Some(first) = self.sent_as(key) {
                self.repeats.push(Repeat {
                    first,
                    id,
                    outcome,
                    changed,
                });
                let sent = &mut self.sent[first];
                if outcome == OutcomeKind::Ok && !changed && sent.outcome == OutcomeKind::Info {
                    (sent.outcome, sent.id, sent.ended) = (outcome, id, operation.ended.unwrap_or(NEVER));
                }
                continue;
            }
            self.sent.push(Sent {
                inbox,
                key,
                id,
                began: operation.began,
                ended: acknowledged_at(operation),
                outcome,
            });
            *self.first_of(key) = self.sent.len() as u32;
        }
    }

    fn take_page(&mut self, operation: &Operation) {
        let (Some(answered), Some(ended), Some(node)) = (operation.answered(), operation.ended, operation.node) else {
            return;
        };
        let Some((view, local)) = page_view(operation.asked.name.as_deref()) else {
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
                outcome: operation.outcome.kind(),
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

fn acknowledged_at(operation: &Operation) -> u64 {
    operation.answered().and(operation.ended).unwrap_or(NEVER)
}

/// The keys of an operation: one, or those of a batch.
fn keys(fields: &Fields) -> Vec<&str> {
    texts(&fields.key, &fields.items, |item| &item.key)
}

/// The message ids of an operation: one, or those of a batch.
fn ids(fields: &Fields) -> Vec<&str> {
    texts(&fields.id, &fields.items, |item| &item.id)
}

fn texts<'a>(one: &'a Option<String>, items: &'a [Item], text: fn(&Item) -> &str) -> Vec<&'a str> {
    match one {
        Some(one) => vec![one],
        None => items.iter().map(text).collect(),
    }
}
