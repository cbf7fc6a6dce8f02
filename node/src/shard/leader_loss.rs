//! Begins an election at once when the leader's process has ended.
//!
//! A follower that hears no heartbeat waits for the election timeout, because silence may have other causes. The end of a
//! process leaves better evidence: its kernel closes its connections and refuses new ones.
//!
//! 1. A connection from the leader closes. This is a hint.
//! 2. The follower dials the leader's peer port. Only a refused connection counts. After any other result, a timeout
//!    included, the election timeout decides.
//! 3. The follower asks the other voters for their own result. It goes on if a majority of the voters, itself included,
//!    was refused. So a firewall between two nodes deposes nobody.
//! 4. Of these voters the one with the longest log begins the election, and of equal ones the one with the lowest id. The
//!    others begin theirs after [`GRACE`] if there is still no new leader, so that two candidates do not split the votes.
//!
//! The election ignores the leases of the voters, as a transfer of leadership does. Reads do not rely on leases: they
//! ask a quorum. Webhook calls do: a leader makes or delegates one while a quorum has answered it within its lease (see
//! [`quorum`](super::quorum)). That is sound if the process has ended. If the evidence was false and the process is alive, or
//! if it had just delegated a call, that call may begin under the new leader; the new leader makes no second one
//! meanwhile, because it takes a claim over only after `TAKEOVER_AFTER_MS`, when that call has ended.

use std::io::ErrorKind;
use std::time::Duration;

use agentpost_proto::peer::{LeaderGoneReply, LeaderGoneRequest};
use agentpost_raft_store::disk::types::{Vote, vote_to_proto};
use futures::stream::{FuturesUnordered, StreamExt as _};
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::raft::TransferLeaderRequest;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::this_node::ThisNode;
use super::{Lead, Leader, Raft};
use crate::base::metrics::Metrics;
use crate::net::dial::{Dialer, Purpose};
use crate::net::shard_id::SHARD;

/// Attempts to dial the leader. A process that ends may close its connections before its listener.
const DIALS: u32 = 5;
/// Pause between two of these attempts.
const DIAL_PAUSE: Duration = Duration::from_millis(20);
/// Time limit of one attempt. A refusal arrives within a round trip.
const DIAL_DEADLINE: Duration = Duration::from_millis(200);
/// Time limit for the other voters' answers: all their attempts, and a reserve.
const ANSWER_DEADLINE: Duration = Duration::from_millis(400);
/// How long a voter waits for a better candidate.
const GRACE: Duration = Duration::from_millis(150);
/// Hints that wait. Further ones are dropped, because a few connections of one node close together.
const HINTS_MAX: usize = 64;

/// Receives a hint when a connection from another node closes. Clones are cheap.
#[derive(Clone)]
pub struct ClosedConnections(mpsc::Sender<u64>);

impl ClosedConnections {
    /// A connection from `node` closed.
    pub fn note(&self, node: u64) {
        let _ = self.0.try_send(node);
    }
}

/// Watches the leader's process. Clones are cheap.
#[derive(Clone)]
pub struct LeaderLoss {
    raft: Raft,
    lead: Lead,
    this_node: ThisNode,
    dialer: Dialer,
    metrics: Metrics,
}

/// The result of one voter: it was refused, and its log ends at this index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Refused {
    voter: u64,
    last_log_index: u64,
}

impl LeaderLoss {
    /// Watches the leader of `raft`.
    pub fn new(raft: Raft, this_node: ThisNode, dialer: Dialer, metrics: Metrics) -> Self {
        LeaderLoss {
            lead: Lead::new(&raft),
            raft,
            this_node,
            dialer,
            metrics,
        }
    }

    /// A place for hints, and the task that follows them until `shutdown`.
    pub fn watch(&self, shutdown: CancellationToken) -> (ClosedConnections, impl Future<Output = ()> + use<>) {
        let (hints, mut received) = mpsc::channel(HINTS_MAX);
        let watching = self.clone();
        let task = async move {
            let following = async {
                while let Some(node) = received.recv().await {
                    watching.follow(node).await;
                }
            };
            shutdown.run_until_cancelled(following).await;
        };
        (ClosedConnections(hints), task)
    }

    /// What this voter finds when another one asks about the leader of `vote`.
    pub async fn answer(&self, vote: Vote) -> LeaderGoneReply {
        let gone = match self.lead.now() {
            Leader::There(_, address) if self.vote() == vote => refuses(&address).await,
            _ => false,
        };
        LeaderGoneReply {
            gone,
            last_log_index: self.last_log_index(),
        }
    }

    /// Follows the hint that a connection from `node` closed.
    async fn follow(&self, node: u64) {
        let leader = self.lead.now();
        let Leader::There(id, address) = &leader else { return };
        if *id != node || !self.this_node.voters().contains_key(&self.this_node.id()) {
            return;
        }
        let vote = self.vote();
        if !refuses(address).await {
            return;
        }
        let Some(first) = self.first_candidate(node, vote).await else {
            self.metrics.raft.leader_losses_undecided.inc();
            return tracing::info!(
                node,
                "the leader refuses connections, but no majority of the voters finds the same, so the election timeout decides; check the network between this node and the leader"
            );
        };
        if first != self.this_node.id() {
            let _ = timeout(GRACE, self.lead.clone().moved_from(&leader)).await;
        }
        // Raft ignores this if the vote has changed meanwhile.
        if self.lead.now() == leader {
            tracing::info!(
                node,
                "the leader's process has ended; this node begins an election; check why it ended"
            );
            self.campaign(vote).await;
        }
    }

    /// The voter that begins the election, if a majority of the voters was refused by `leader`.
    async fn first_candidate(&self, leader: u64, vote: Vote) -> Option<u64> {
        let (here, voters) = (self.this_node.id(), self.this_node.voters());
        let mut refused = vec![Refused {
            voter: here,
            last_log_index: self.last_log_index(),
        }];
        let others = voters.iter().filter(|(id, _)| **id != here && **id != leader);
        let mut asked: FuturesUnordered<_> = others
            .map(|(id, member)| self.ask(*id, &member.peer_addr, vote))
            .collect();
        let asking = async {
            while let Some(answer) = asked.next().await {
                refused.extend(answer);
            }
        };
        let _ = timeout(ANSWER_DEADLINE, asking).await;
        drop(asked);
        first_of(&refused, voters.len())
    }

    async fn ask(&self, voter: u64, address: &str, vote: Vote) -> Option<Refused> {
        let mut client = self.dialer.client(voter, address, Purpose::Control);
        let request = LeaderGoneRequest {
            shard: SHARD,
            leader: Some(vote_to_proto(&vote)),
        };
        let reply = client.leader_gone(request).await.ok()?.into_inner();
        reply.gone.then_some(Refused {
            voter,
            last_log_index: reply.last_log_index,
        })
    }

    /// Begins an election that replaces the leader of `vote`.
    async fn campaign(&self, vote: Vote) {
        // openraft begins an election that ignores leases only for a transfer. The log need not reach a given entry,
        // because the voters compare it with theirs.
        let request = TransferLeaderRequest::new(vote, self.this_node.id(), None);
        match self.raft.handle_transfer_leader(request).await {
            Ok(Ok(())) => {}
            Ok(Err(reason)) => tracing::info!(%reason, "the election did not begin; waiting for the election timeout"),
            Err(error) => tracing::debug!(%error, "Raft has ended; no election began"),
        }
    }

    fn vote(&self) -> Vote {
        self.raft.server_metrics().borrow_watched().vote
    }

    fn last_log_index(&self) -> u64 {
        let last = self.raft.data_metrics().borrow_watched().last_log;
        last.map_or(0, |id| id.index)
    }
}

/// The voter that begins the election, if those that were refused are a majority of `voters`.
fn first_of(refused: &[Refused], voters: usize) -> Option<u64> {
    let is_majority = refused.len() > voters / 2;
    let best = refused
        .iter()
        .max_by_key(|one| (one.last_log_index, std::cmp::Reverse(one.voter)))?;
    is_majority.then_some(best.voter)
}

/// Whether `address` refuses connections, which shows that no process listens there.
async fn refuses(address: &str) -> bool {
    for attempt in 0..DIALS {
        if attempt > 0 {
            sleep(DIAL_PAUSE).await;
        }
        match timeout(DIAL_DEADLINE, TcpStream::connect(address)).await {
            Ok(Err(error)) => return error.kind() == ErrorKind::ConnectionRefused,
            Ok(Ok(_)) => {}
            Err(_) => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(voter: u64, last_log_index: u64) -> Refused {
        Refused { voter, last_log_index }
    }

    #[test]
    fn a_majority_was_refused_or_nobody_begins() {
        for (all, voters, first) in [
            (vec![refused(2, 7)], 3, None),
            (vec![refused(2, 7)], 2, None),
            (vec![refused(2, 7), refused(3, 7)], 3, Some(2)),
            (vec![refused(3, 7), refused(2, 7)], 3, Some(2)),
            (vec![refused(2, 7), refused(3, 8)], 3, Some(3)),
            (vec![refused(2, 7), refused(3, 8)], 4, None),
            (vec![refused(2, 7), refused(3, 8)], 5, None),
            (vec![refused(4, 9), refused(2, 7), refused(3, 9)], 5, Some(3)),
        ] {
            assert_eq!(first_of(&all, voters), first, "{all:?} of {voters}");
        }
    }

    #[tokio::test]
    async fn only_a_port_without_a_listener_refuses() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        assert!(!refuses(&address).await, "somebody listens");
        drop(listener);
        assert!(refuses(&address).await);
        assert!(
            !refuses("no-such-host.invalid:1").await,
            "an unknown name proves nothing"
        );
    }
}
