//! Forwards operations and read barriers of this node's clients to the leader.
//!
//! One long-lived stream per peer carries many requests at a time; answers arrive in any order and are matched by
//! number. When a stream breaks, the outcome of a request depends on whether HTTP/2 had taken it from the queue. If
//! not, nothing was proposed and the request may be sent again ([`Lost::Unsent`]); if so, the outcome is unknown
//! ([`Lost::Unknown`]). A [`Ticket`] records this and reports it when it is dropped, so every way in which a connection
//! can break answers every request, and with the right one of the two.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use agentpost_proto::peer::peer_client::PeerClient;
use agentpost_proto::peer::{Done, ForwardReply, ForwardRequest, forward_reply, forward_request};
use bytes::Bytes;
use futures::Stream;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tonic::transport::Channel;

use super::dial::{Dialer, Purpose};
use super::shard_id::SHARD;
use crate::base::metrics::{GaugeGuard, Metrics};

/// Requests that wait for the stream. The proposer admits fewer than this, so the queue does not fill.
const QUEUE: usize = 8 * 1024;
/// Time limit for connecting and the first response headers.
const OPEN_DEADLINE: Duration = Duration::from_millis(1500);

/// A request to the leader.
pub enum Kind {
    /// Propose an encoded operation.
    Operation(Bytes),
    /// Return a log index that covers every write acknowledged so far.
    ReadIndex,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lost {
    /// The request was not sent.
    Unsent(String),
    /// The request was sent and may have been carried out.
    Unknown(String),
}

/// The leader's answer, or why there is none.
pub type Answer = Result<forward_reply::Outcome, Lost>;

/// The streams to the other nodes. Clones are cheap and share them.
#[derive(Clone)]
pub struct Forwarder {
    shared: Arc<Shared>,
}

struct Shared {
    dialer: Dialer,
    metrics: Metrics,
    links: RwLock<HashMap<u64, Link>>,
}

/// An open stream, or one that is being opened.
struct Link {
    queue: mpsc::Sender<Item>,
    task: AbortHandle,
}

struct Item {
    kind: Kind,
    ticket: Ticket,
}

/// The caller's end of a request. Dropping it reports the request as lost.
struct Ticket {
    waiting: Option<oneshot::Sender<Answer>>,
    sent: bool,
}

impl Ticket {
    fn answer(mut self, answer: Answer) {
        if let Some(waiting) = self.waiting.take() {
            let _ = waiting.send(answer);
        }
    }

    fn refuse(self, reason: &str) {
        self.answer(Err(Lost::Unsent(reason.to_owned())));
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(waiting) = self.waiting.take() {
            let lost = match self.sent {
                true => Lost::Unknown("the connection to the leader broke".to_owned()),
                false => Lost::Unsent("the leader cannot be reached".to_owned()),
            };
            let _ = waiting.send(Err(lost));
        }
    }
}

impl Forwarder {
    /// A forwarder that connects through `dialer`.
    pub fn new(dialer: Dialer, metrics: Metrics) -> Self {
        Forwarder {
            shared: Arc::new(Shared {
                dialer,
                metrics,
                links: RwLock::default(),
            }),
        }
    }

    /// Sends one request to node `target` at `address`, once. Returns at the answer or at the end of the connection.
    /// Callers set their own deadline; when it passes, the outcome is unknown.
    pub async fn ask(&self, target: u64, address: &str, kind: Kind) -> Answer {
        let (waiting, answer) = oneshot::channel();
        let item = Item {
            kind,
            ticket: Ticket {
                waiting: Some(waiting),
                sent: false,
            },
        };
        let _counted = GaugeGuard::new(&self.shared.metrics.forwards_in_flight);
        self.enqueue(target, address, item);
        // A ticket always answers, at the latest when it is dropped.
        answer
            .await
            .unwrap_or_else(|_| Err(Lost::Unknown("the request was dropped without an answer".to_owned())))
    }

    fn enqueue(&self, target: u64, address: &str, item: Item) {
        let link = self.shared.links.read().get(&target).map(|link| link.queue.clone());
        let item = match link {
            None => item,
            Some(link) => match link.try_send(item) {
                Ok(()) => return,
                Err(mpsc::error::TrySendError::Closed(item)) => item,
                Err(mpsc::error::TrySendError::Full(item)) => {
                    return item.ticket.refuse("too many requests wait for the leader");
                }
            },
        };
        let mut links = self.shared.links.write();
        // Another task may have opened it meanwhile.
        if links.get(&target).is_none_or(|link| link.queue.is_closed()) {
            links.insert(target, self.open(target, address));
        }
        // If the link refuses the item, dropping its ticket reports the request as unsent.
        let _ = links.get(&target).map(|link| link.queue.try_send(item));
    }

    fn open(&self, target: u64, address: &str) -> Link {
        let (sender, queue) = mpsc::channel(QUEUE);
        let client = self.shared.dialer.client(target, address, Purpose::Forward);
        let task = tokio::spawn(async move {
            let reason = run(client, queue).await;
            tracing::debug!(node = target, reason, "forward stream ended");
        });
        Link {
            queue: sender,
            task: task.abort_handle(),
        }
    }

    /// Closes the streams to all nodes but `leader`. Requests in flight on them have an unknown outcome.
    pub fn hang_up_on_others(&self, leader: u64) {
        let mut links = self.shared.links.write();
        links.retain(|node, link| {
            if *node != leader {
                link.task.abort();
            }
            *node == leader
        });
    }
}

/// Requests that were sent and not answered, by number.
type Pending = Arc<Mutex<HashMap<u64, Ticket>>>;

/// Runs the stream until it ends and returns the reason. Tickets that are still queued or pending report their request
/// as lost when they are dropped.
async fn run(mut client: PeerClient<Channel>, queue: mpsc::Receiver<Item>) -> String {
    let pending = Pending::default();
    let requests = Requests {
        queue,
        pending: Arc::clone(&pending),
        last_id: 0,
    };
    let mut replies = match timeout(OPEN_DEADLINE, client.forward(requests)).await {
        Ok(Ok(opened)) => opened.into_inner(),
        Ok(Err(status)) => return status.message().to_owned(),
        Err(_) => return "not opened in time".to_owned(),
    };
    loop {
        match replies.message().await {
            Ok(Some(ForwardReply {
                id,
                outcome: Some(outcome),
            })) => {
                let ticket = pending.lock().remove(&id);
                if let Some(ticket) = ticket {
                    ticket.answer(Ok(outcome));
                }
            }
            Ok(Some(_)) => return "an answer without an outcome".to_owned(),
            Ok(None) => return "closed by the other node".to_owned(),
            Err(status) => return status.message().to_owned(),
        }
    }
}

/// The outgoing half of the stream. A request counts as sent once HTTP/2 takes it from here.
struct Requests {
    queue: mpsc::Receiver<Item>,
    pending: Pending,
    last_id: u64,
}

impl Stream for Requests {
    type Item = ForwardRequest;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<ForwardRequest>> {
        let Item { kind, mut ticket } = match self.queue.poll_recv(cx) {
            Poll::Ready(Some(item)) => item,
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Pending => return Poll::Pending,
        };
        ticket.sent = true;
        self.last_id += 1;
        let id = self.last_id;
        self.pending.lock().insert(id, ticket);
        let kind = match kind {
            Kind::Operation(operation) => forward_request::Kind::Operation(operation),
            Kind::ReadIndex => forward_request::Kind::ReadIndex(Done {}),
        };
        Poll::Ready(Some(ForwardRequest {
            shard: SHARD,
            id,
            kind: Some(kind),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::handshake::Identity;
    use crate::net::lives::Lives;

    fn item(kind: Kind) -> (Item, oneshot::Receiver<Answer>) {
        let (waiting, answer) = oneshot::channel();
        (
            Item {
                kind,
                ticket: Ticket {
                    waiting: Some(waiting),
                    sent: false,
                },
            },
            answer,
        )
    }

    #[tokio::test]
    async fn a_broken_stream_tells_the_sent_from_the_unsent() {
        let (link, queue) = mpsc::channel(8);
        let pending = Pending::default();
        let mut requests = Requests {
            queue,
            pending: Arc::clone(&pending),
            last_id: 0,
        };
        let (first, first_answer) = item(Kind::Operation(Bytes::from_static(b"x")));
        let (second, second_answer) = item(Kind::ReadIndex);
        assert!(link.try_send(first).is_ok() && link.try_send(second).is_ok());
        let taken = futures::StreamExt::next(&mut requests).await;
        assert_eq!(taken.map(|request| request.id), Some(1));
        drop(requests);
        drop(pending);
        assert!(matches!(first_answer.await, Ok(Err(Lost::Unknown(_)))));
        assert!(matches!(second_answer.await, Ok(Err(Lost::Unsent(_)))));
    }

    #[tokio::test]
    async fn an_unreachable_node_leaves_requests_unsent() {
        let secrets = crate::base::secrets::Secrets::derive(&[1; 32]);
        let ids = crate::base::clock::IdSource::new(crate::base::clock::Clock::system());
        let dialer = Dialer::new(
            Identity::new(&secrets, 1, Lives::in_memory([1; 16]), ids),
            tokio::runtime::Handle::current(),
        );
        let forwarder = Forwarder::new(dialer, Metrics::new());
        // Port 1 of loopback: nobody listens there.
        let answers = (0..3).map(|_| forwarder.ask(2, "127.0.0.1:1", Kind::ReadIndex));
        for answer in futures::future::join_all(answers).await {
            assert!(matches!(answer, Err(Lost::Unsent(_))), "{answer:?}");
        }
    }
}
