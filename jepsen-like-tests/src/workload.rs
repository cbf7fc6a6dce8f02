//! Workloads: clients that perform one kind of operation for the length of a run and record every request and
//! response.
//!
//! Each workload is a file with a `start` that creates its team, its agents and its lanes. A lane performs one
//! operation at a time. Only [`flood`] records nothing. Where a real client would retry, a lane repeats a request with an unknown outcome through
//! another node under the same idempotency key.

pub mod ask;
pub mod context;
pub mod flood;
pub mod keys;
pub mod load;
pub mod mailbox;
pub mod message;
pub mod mixed;
pub mod quota;
pub mod read;
pub mod send;
pub mod sender;
pub mod stream;
pub mod topics;
pub mod webhooks;

use anyhow::Result;

use self::context::ClientContext;
use self::load::Load;

/// The kinds of workloads. The letters are those of the README.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workload {
    /// A: direct messages, one per request.
    Send,
    /// A: direct messages, a hundred per request.
    SendBatches,
    /// B: readers of every kind on every node, and a few senders.
    Read,
    /// C: agents that subscribe and unsubscribe, and publishes to one and to hundreds of subscribers.
    Topics,
    /// D: clients that compete for the last units of a daily and of a monthly quota.
    Quota,
    /// E: messages to agents with webhooks.
    Webhooks(webhooks::Mix),
    /// F: WebSocket sessions that end and are resumed on other nodes.
    Stream(stream::Mix),
    /// G: keys that are created, used and revoked, and two teams that request each other's data.
    Keys,
    /// I: all mailbox operations mixed, over a thousand inboxes.
    Mixed,
}

impl Workload {
    /// The name on the command line: `webhooks-quick`.
    pub fn name(self) -> String {
        format!("{self:?}").to_lowercase().replace('(', "-").replace(')', "")
    }
}

/// All workloads; of those with several mixes, the mix that fits any scenario.
pub const ALL: [Workload; 9] = [
    Workload::Send,
    Workload::SendBatches,
    Workload::Read,
    Workload::Topics,
    Workload::Quota,
    Workload::Webhooks(webhooks::Mix::Quick),
    Workload::Stream(stream::Mix::Tails),
    Workload::Keys,
    Workload::Mixed,
];

/// Starts the clients of a workload.
pub async fn start(kind: Workload, ctx: &ClientContext) -> Result<Load> {
    match kind {
        Workload::Send => send::start(ctx, 1).await,
        Workload::SendBatches => send::start(ctx, 100).await,
        Workload::Read => read::start(ctx).await,
        Workload::Mixed => mixed::start(ctx).await,
        Workload::Webhooks(mix) => webhooks::start(mix, ctx).await,
        Workload::Stream(mix) => stream::start(mix, ctx).await,
        Workload::Topics => topics::start(ctx).await,
        Workload::Quota => quota::start(ctx).await,
        Workload::Keys => keys::start(ctx).await,
    }
}
