//! Effects: what an applied entry made possible, for the tasks that wait for it. They are hints. A lost one costs
//! latency, never a message, because all work is also a row.

use agentpost_proto::id::{KeyId, TeamId};

/// A hint, sent after the entry's writes are visible.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// An inbox has a new entry.
    InboxAppended {
        team: TeamId,
        /// The owner of the inbox.
        agent: String,
        /// The seq of the entry.
        seq: u64,
    },
    /// A topic message was stored. Readers of the whole team wait for it.
    Published {
        team: TeamId,
        /// The seq of the message.
        seq: u64,
    },
    /// A publish with many subscribers became a fan-out job.
    FanoutQueued { team: TeamId, topic: String },
    /// The last chunk of a fan-out job was applied.
    FanoutFinished {
        team: TeamId,
        /// The seq of the published message.
        seq: u64,
    },
    /// A delivery was scheduled.
    DeliveryDue {
        team: TeamId,
        /// The generation of its endpoint.
        generation: u64,
    },
    /// An endpoint was deleted or disabled and has deliveries to close.
    EndpointClosing {
        team: TeamId,
        /// The generation of the endpoint.
        generation: u64,
    },
    /// A key was revoked or removed.
    KeyRevoked(KeyId),
    /// A new epoch began. From now on its leader stamps cluster time.
    EpochBegan {
        /// The log index of the entry that began it.
        epoch: u64,
        /// The node id of its leader.
        node: u64,
    },
}
