//! How a listener's connection is.

/// The connection of a [`crate::Listener`] at a moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// The state of its connection.
    pub connection: Connection,
    /// The node that is asked or was asked last: a WebSocket URL, or empty with long polling.
    pub url: String,
    /// Why the last session ended, or the last attempt failed.
    pub failure: Option<String>,
    /// The team can send nothing for now, and why. What it receives still arrives.
    pub billing_block: Option<String>,
    /// The server had removed mail that was not acknowledged: the session went on with this position, the oldest kept.
    pub cursor_expired: Option<u64>,
}

/// The state of a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Connection {
    /// It asks a node for a session.
    #[default]
    Connecting,
    /// Mail arrives.
    Open,
    /// No node took the session; it pauses before it asks again.
    Waiting,
    /// The listener has ended.
    Ended,
}

impl Status {
    pub(super) fn connecting(&mut self, url: String) {
        (self.connection, self.url) = (Connection::Connecting, url);
    }

    pub(super) fn open(&mut self) {
        self.connection = Connection::Open;
        self.billing_block = None;
    }

    pub(super) fn waiting(&mut self) {
        self.connection = Connection::Waiting;
    }

    pub(super) fn failed(&mut self, why: String) {
        (self.connection, self.failure) = (Connection::Connecting, Some(why));
    }

    pub(super) fn ended(&mut self, why: String) {
        (self.connection, self.failure) = (Connection::Ended, Some(why));
    }
}
