//! The workers of webhooks that run while this node leads.

use super::closer::Closer;
use super::dispatcher::Tenure;
use super::handles::WebhookHandles;
use super::takeover::Takeovers;
use crate::shard::leadership::Worker;

/// The dispatcher, takeover and closer of one shard, to be run while this node leads.
pub fn workers(handles: WebhookHandles) -> Vec<Worker> {
    let takeovers = Takeovers {
        leader: handles.leader.clone(),
        open: handles.calls.open().clone(),
    };
    let closer = Closer(handles.leader.clone());
    let dispatcher = Worker::new("dispatcher", move |shutdown| Tenure::new(handles.clone()).run(shutdown));
    vec![dispatcher, takeovers.worker(), closer.worker()]
}
