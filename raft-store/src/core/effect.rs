//! What an entry made possible. Effects are hints: losing one costs latency, never a message.

use agentpost_proto::id::{KeyId, TeamId};

/// A hint, given after the entry's writes are visible.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// An inbox has a new entry.
    InboxAppended {
        /// Whose.
        team: TeamId,
        /// Which inbox.
        agent: String,
        /// The entry.
        seq: u64,
    },
    /// A topic message was stored; wide readers of the team may want it.
    Published {
        /// Whose.
        team: TeamId,
        /// Its seq.
        seq: u64,
    },
    /// A publish became a job of chunks.
    FanoutQueued {
        /// Whose.
        team: TeamId,
        /// The topic.
        topic: String,
    },
    /// The last chunk of a publish is applied.
    FanoutFinished {
        /// Whose.
        team: TeamId,
        /// The publish.
        seq: u64,
    },
    /// An endpoint has a delivery that waits for its time.
    DeliveryDue {
        /// Whose.
        team: TeamId,
        /// Which endpoint.
        generation: u64,
    },
    /// Open deliveries of an endpoint are to be closed.
    EndpointClosing {
        /// Whose.
        team: TeamId,
        /// Which endpoint.
        generation: u64,
    },
    /// A key is not valid any more.
    KeyRevoked(KeyId),
    /// A new epoch began; its leader may stamp cluster time.
    EpochBegan {
        /// The log index of its entry.
        epoch: u64,
        /// Its leader.
        node: u64,
    },
}
