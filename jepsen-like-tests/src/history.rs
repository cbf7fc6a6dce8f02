//! What the clients of a run asked for and were told.

use std::collections::BTreeMap;

/// One send as its client saw it end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Send {
    /// Its idempotency key, unique in the run.
    pub key: String,
    /// The receiving agent.
    pub inbox: String,
    /// How it ended.
    pub outcome: Outcome,
}

/// What a client knows at the end. There is no "failed": only the server can say that it surely did not
/// happen, and then it says why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Acknowledged under this message id.
    Acknowledged(String),
    /// Refused: certainly not stored.
    Refused(String),
    /// It may have happened.
    Unknown(String),
}

/// An inbox as one node showed it, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InboxRead {
    /// Message id and the idempotency key that its sender put into the body.
    pub messages: Vec<(String, String)>,
}

/// Everything that a checker may look at.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// In the order in which they ended.
    pub sends: Vec<Send>,
    /// By node, then by inbox, read when the faults were over.
    pub reads: BTreeMap<usize, BTreeMap<String, InboxRead>>,
}

impl History {
    /// How many sends were acknowledged.
    pub fn acknowledged(&self) -> usize {
        self.sends
            .iter()
            .filter(|send| matches!(send.outcome, Outcome::Acknowledged(_)))
            .count()
    }
}
