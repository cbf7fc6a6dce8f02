//! Webhooks: who is called, when, and how.
//!
//! Read [`dispatcher`] first: the protocol and its picture. In the order of a delivery's way:
//!
//! - [`fair_queue`] knows whose turn it is;
//! - [`dispatcher`] claims what is due, one task per leadership; [`calls`] makes the calls and knows which are
//!   open, for as long as the process lives; [`reporter`] records what became of them;
//! - [`attempt`] makes one call and says what became of it; [`signature`] is what receivers verify it with;
//! - [`egress`] is the only way out to an address that a stranger chose; [`resolver`] judges what it dials, [`pace`] how
//!   often;
//! - beside them, on the leader: [`takeover`] closes what nobody will report, [`fanout`] gives large publishes to
//!   their receivers, [`closer`] ends the deliveries of deleted and disabled endpoints;
//! - [`failpoint`] lets tests kill the process at the places that matter.

pub mod attempt;
pub mod calls;
pub mod closer;
pub mod dispatcher;
pub mod egress;
pub mod failpoint;
pub mod fair_queue;
pub mod fanout;
pub mod pace;
pub mod reporter;
pub mod resolver;
pub mod signature;
pub mod takeover;

use std::future::Future;
use std::sync::Arc;

use agentpost_raft_store::db::StateHandle;
use futures::FutureExt as _;
use tokio_util::sync::CancellationToken;

use self::calls::Calls;
use self::closer::Closer;
use self::dispatcher::Tenure;
use self::fanout::Fanout;
use self::takeover::TakingOver;
use crate::metrics::Metrics;
use crate::secrets::Secrets;
use crate::shard::leadership::{ClusterTime, Worker};
use crate::shard::proposer::Proposer;
use crate::shard::wakeups::Wakeups;

/// What the leader's workers of this folder share. Cheap to clone.
#[derive(Clone)]
pub struct Handles {
    /// What is to be done.
    pub state: StateHandle,
    /// Where it is claimed and recorded.
    pub proposer: Proposer,
    /// The epoch, and what is due when.
    pub cluster_time: ClusterTime,
    /// Hints.
    pub wakeups: Wakeups,
    /// The calls of this node.
    pub calls: Calls,
    /// What calls are signed with.
    pub secrets: Arc<Secrets>,
    /// Counts.
    pub metrics: Metrics,
}

/// The dispatcher, takeover, fan-out and closer of one shard, to be run while this node leads.
pub fn workers(handles: &Handles) -> Vec<Worker> {
    let dispatching = handles.clone();
    let dispatcher: Worker = Arc::new(move |shutdown| Tenure::new(dispatching.clone()).run(shutdown).boxed());
    vec![
        dispatcher,
        worker(handles, |handles| TakingOver(handles).run()),
        worker(handles, |handles| Fanout(handles).run()),
        worker(handles, |handles| Closer(handles).run()),
    ]
}

/// A worker that may be dropped at any time.
fn worker<F>(handles: &Handles, run: impl Fn(Handles) -> F + Send + Sync + 'static) -> Worker
where
    F: Future<Output = ()> + Send + 'static,
{
    let handles = handles.clone();
    Arc::new(move |shutdown: CancellationToken| {
        let running = run(handles.clone());
        async move { shutdown.run_until_cancelled(running).await.unwrap_or(()) }.boxed()
    })
}
