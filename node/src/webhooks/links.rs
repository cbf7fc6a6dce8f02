//! The streams on which a leader delegates webhook calls to the other nodes.
//!
//! A leadership keeps one stream to each other member, and opens it again a little later when it breaks. A node that has
//! been silent for [`SILENCE_MAX`] is given up, although its connection may still stand: its process may be stopped.
//! When the leadership ends, no more calls are delegated, but a stream stays open until the node has recorded the
//! calls that it has, so that none is lost on its way.

use std::collections::HashSet;
use std::time::Duration;

use agentpost_proto::peer::peer_client::PeerClient;
use agentpost_proto::peer::{CallerReport, DelegatedCall};
use futures::FutureExt as _;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::calls::Calls;
use super::fair_queue::NODE_CALLS_MAX;
use crate::net::dial::{Dialer, Purpose};
use crate::shard::this_node::ThisNode;

/// Time limit for connecting and the first response headers.
const OPEN_DEADLINE: Duration = Duration::from_millis(1_500);
/// A node that does not report for this long is given up.
const SILENCE_MAX: Duration = Duration::from_secs(2);
/// Pause before a stream is opened again, and interval of the looks at the members.
const RETRY: Duration = Duration::from_millis(500);
/// Events that wait for the dispatcher.
const EVENTS: usize = 256;

/// What happens on the streams. The events of one node are in order, and one stream of it is closed before the next is
/// opened.
pub(super) enum LinkEvent {
    /// A stream is open. Dropping the sender tells the node that it gets no more calls.
    Opened {
        node: u64,
        calls: mpsc::Sender<DelegatedCall>,
    },
    /// A report and when it arrived.
    Reported {
        node: u64,
        report: CallerReport,
        arrived: Instant,
    },
    /// A stream has ended.
    Closed { node: u64 },
}

/// Opens the streams of one leadership.
pub(super) struct Links {
    pub(super) dialer: Dialer,
    pub(super) this_node: ThisNode,
    /// Runs the streams, which outlive the leadership.
    pub(super) calls: Calls,
    events: mpsc::Sender<LinkEvent>,
}

impl Links {
    /// The links, and the channel of their events.
    pub(super) fn new(dialer: Dialer, this_node: ThisNode, calls: Calls) -> (Self, mpsc::Receiver<LinkEvent>) {
        let (events, received) = mpsc::channel(EVENTS);
        let links = Links {
            dialer,
            this_node,
            calls,
            events,
        };
        (links, received)
    }

    /// Keeps a stream to every other member. Does not end; dropping it opens no further ones.
    pub(super) async fn keep(self) {
        let (ended, mut ends) = mpsc::channel(EVENTS);
        let mut open: HashSet<u64> = HashSet::new();
        let here = self.this_node.id();
        loop {
            for (node, member) in self.this_node.members() {
                if node == here || !open.insert(node) {
                    continue;
                }
                let client = self.dialer.client(node, &member.peer_addr, Purpose::Forward);
                self.calls
                    .spawn(run(node, client, self.events.clone(), ended.clone()).boxed());
            }
            sleep(RETRY).await;
            while let Ok(node) = ends.try_recv() {
                open.remove(&node);
            }
        }
    }
}

/// Runs one stream and announces its end.
async fn run(node: u64, client: PeerClient<Channel>, events: mpsc::Sender<LinkEvent>, ended: mpsc::Sender<u64>) {
    let reason = link(node, client, &events).await;
    tracing::debug!(node, reason, "the stream of webhook calls to a node ended");
    let _ = events.send(LinkEvent::Closed { node }).await;
    let _ = ended.send(node).await;
}

/// Runs one stream and returns the reason of its end.
async fn link(node: u64, mut client: PeerClient<Channel>, events: &mpsc::Sender<LinkEvent>) -> String {
    let (calls, delegated) = mpsc::channel(NODE_CALLS_MAX);
    let mut reports = match timeout(OPEN_DEADLINE, client.calls(ReceiverStream::new(delegated))).await {
        Ok(Ok(opened)) => opened.into_inner(),
        Ok(Err(status)) => return status.message().to_owned(),
        Err(_) => return "not opened in time".to_owned(),
    };
    if events.send(LinkEvent::Opened { node, calls }).await.is_err() {
        return "the leadership is over".to_owned();
    }
    loop {
        let report = match next(&mut reports).await {
            Ok(report) => report,
            Err(reason) => return reason,
        };
        let arrived = Instant::now();
        // After the leadership nobody takes events, but the stream goes on.
        let _ = events.send(LinkEvent::Reported { node, report, arrived }).await;
    }
}

async fn next(reports: &mut Streaming<CallerReport>) -> Result<CallerReport, String> {
    match timeout(SILENCE_MAX, reports.message()).await {
        Ok(Ok(Some(report))) => Ok(report),
        Ok(Ok(None)) => Err("the node has ended it".to_owned()),
        Ok(Err(status)) => Err(status.message().to_owned()),
        Err(_) => Err("the node is silent".to_owned()),
    }
}
