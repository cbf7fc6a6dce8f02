//! The workers that run while this node leads.

use std::future::Future;
use std::sync::Arc;

use futures::FutureExt as _;
use tokio_util::sync::CancellationToken;

use super::closer::Closer;
use super::dispatcher::Tenure;
use super::handles::Handles;
use super::takeover::TakingOver;
use crate::shard::leadership::Worker;

/// The dispatcher, takeover and closer of one shard, to be run while this node leads.
pub fn workers(handles: &Handles) -> Vec<Worker> {
    let dispatching = handles.clone();
    let dispatcher: Worker = Arc::new(move |shutdown| Tenure::new(dispatching.clone()).run(shutdown).boxed());
    vec![
        dispatcher,
        worker(handles, |handles| TakingOver(handles).run()),
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
