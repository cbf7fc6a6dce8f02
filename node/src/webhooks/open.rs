//! The open attempts of this node: claimed, being called here or by another node, or ended but not recorded yet.
//!
//! An open attempt outlives the leadership that claimed it. It is in the leader's table from before its claim is
//! proposed until its outcome is answered, unless the leader loses the node that makes the call; it is in the table of
//! the node that makes the call as well. [`super::takeover`] leaves the attempts in the table alone, and a hand-over of leadership
//! waits until the table is empty: each entry holds a place in [`Drain`].

use std::collections::HashMap;
use std::sync::Arc;

use agentpost_proto::command::{AttemptRef, AttemptResult};
use agentpost_proto::id::TeamId;
use agentpost_proto::limits::{ATTEMPT_TIMEOUT_MS, RETRY_DELAYS_MS};
use agentpost_proto::record::Delivery;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::mpsc;

use super::fair_queue::{Endpoint, Reachability};
use crate::base::metrics::Metrics;
use crate::base::metrics::dispatch::AttemptClass;
use crate::shard::drain::{Drain, WorkGuard};

/// One attempt of one delivery, as the log identifies it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Attempt {
    /// The team that owns the delivery.
    pub team: TeamId,
    /// The number of the delivery in its team.
    pub number: u64,
    /// The number of the attempt.
    pub attempt_no: u32,
}

impl Attempt {
    /// The newest attempt of a delivery.
    pub fn newest(team: TeamId, delivery: &Delivery) -> Self {
        Attempt {
            team,
            number: delivery.number,
            attempt_no: delivery.attempt_no,
        }
    }

    /// An attempt from its protobuf form; `None` if that is malformed.
    pub fn from_proto(attempt: &AttemptRef) -> Option<Self> {
        Some(Attempt {
            team: TeamId::from_slice(&attempt.team_id).ok()?,
            number: attempt.number,
            attempt_no: attempt.attempt_no,
        })
    }

    /// The protobuf form for commands.
    pub fn to_proto(self) -> AttemptRef {
        AttemptRef {
            team_id: self.team.to_bytes(),
            number: self.number,
            attempt_no: self.attempt_no,
        }
    }
}

/// The channel that returns slots; closed when nobody waits for them any more.
pub type Slots = mpsc::Sender<Freed>;

/// The slot of an attempt whose outcome is recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Freed {
    pub attempt: Attempt,
    pub endpoint: Endpoint,
    pub reachability: Reachability,
    /// Whether the host is exempt from the limit on calls to one host; `None` if no connection was made.
    pub host_is_exempt: Option<bool>,
}

/// An attempt that has ended and is not recorded yet.
pub struct Ended {
    pub attempt: Attempt,
    /// The epoch of its claim.
    pub epoch: u64,
    pub result: AttemptResult,
    /// The endpoint whose slot it holds.
    pub(super) endpoint: Endpoint,
    /// Its retry step.
    pub(super) step: u32,
    pub(super) host_is_exempt: Option<bool>,
    pub(super) slots: Slots,
}

/// The table of open attempts. Clones are cheap and share it.
#[derive(Clone)]
pub struct OpenAttempts {
    shared: Arc<Shared>,
}

struct Shared {
    table: Mutex<HashMap<Attempt, WorkGuard>>,
    drain: Drain,
}

impl OpenAttempts {
    /// An empty table whose entries enter `drain`.
    pub fn new(drain: Drain) -> Self {
        let shared = Shared {
            table: Mutex::default(),
            drain,
        };
        OpenAttempts {
            shared: Arc::new(shared),
        }
    }

    /// Registers an attempt that is about to be claimed, or that this node was asked to make. Returns false while
    /// leadership is handed over or this node stops.
    pub fn enter(&self, attempt: Attempt) -> bool {
        let Some(entered) = self.shared.drain.enter() else {
            return false;
        };
        self.table().insert(attempt, entered);
        true
    }

    /// Enters the gate for the stream on which calls are delegated to this node, so that a stop waits for its end. `None`
    /// while leadership is handed over or this node stops.
    pub(super) fn enter_stream(&self) -> Option<WorkGuard> {
        self.shared.drain.enter()
    }

    /// Whether leadership is being handed over or this node stops.
    pub fn is_held(&self) -> bool {
        self.shared.drain.is_held()
    }

    /// Removes an attempt that was not granted or whose outcome is recorded.
    pub fn close(&self, attempt: &Attempt) {
        let closed = self.table().remove(attempt);
        drop(closed);
    }

    /// Whether this node will still report the outcome of an attempt.
    pub fn contains(&self, attempt: &Attempt) -> bool {
        self.table().contains_key(attempt)
    }

    fn table(&self) -> MutexGuard<'_, HashMap<Attempt, WorkGuard>> {
        self.shared.table.lock()
    }
}

impl Ended {
    /// Closes the attempt and frees its slot after the cluster has answered. `recorded` says whether the outcome was
    /// accepted.
    pub fn settle(self, recorded: bool, open: &OpenAttempts, metrics: &Metrics) {
        if !recorded {
            metrics.dispatch.outcomes_stale.inc();
        } else if is_last(&self.result, self.step) {
            metrics.dispatch.dead_letters.inc();
        }
        open.close(&self.attempt);
        // The channel has room for every slot.
        let _ = self.slots.try_send(Freed {
            attempt: self.attempt,
            endpoint: self.endpoint,
            reachability: reachability_of(&self.result),
            host_is_exempt: self.host_is_exempt,
        });
    }
}

/// Whether this outcome ends the delivery. For the metric only; apply decides.
fn is_last(result: &AttemptResult, step: u32) -> bool {
    match result.status {
        _ if result.not_sent => false,
        200..=299 => false,
        410 => true,
        489 if result.non_retryable => true,
        _ => step as usize >= RETRY_DELAYS_MS.len(),
    }
}

/// The class of an outcome, as the metric counts it.
pub(super) fn class_of(result: &AttemptResult) -> AttemptClass {
    match (result.status, result.error.as_str()) {
        _ if result.not_sent => AttemptClass::NotSent,
        (200..=299, "") => AttemptClass::Delivered,
        (_, "dns" | "connect" | "tls") => AttemptClass::Connect,
        (_, "timeout") => AttemptClass::Timeout,
        (_, "refused") => AttemptClass::Refused,
        (_, "status") => AttemptClass::Status,
        _ => AttemptClass::Protocol,
    }
}

/// Whether the call reached its endpoint. A timeout before half of the attempt's time limit is the connection's
/// timeout.
fn reachability_of(result: &AttemptResult) -> Reachability {
    match class_of(result) {
        AttemptClass::NotSent => Reachability::Untried,
        AttemptClass::Connect => Reachability::Unreachable,
        AttemptClass::Timeout if result.status == 0 && result.took_ms < ATTEMPT_TIMEOUT_MS / 2 => {
            Reachability::Unreachable
        }
        _ => Reachability::Reached,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(status: u32, error: &str, took_ms: u64) -> AttemptResult {
        AttemptResult {
            status,
            error: error.to_owned(),
            took_ms,
            ..AttemptResult::default()
        }
    }

    #[test]
    fn only_a_connection_that_was_not_made_counts_against_an_endpoint() {
        for (result, reachability) in [
            (result(200, "", 3), Reachability::Reached),
            (result(503, "status", 3), Reachability::Reached),
            (result(0, "connect", 3), Reachability::Unreachable),
            (result(0, "dns", 3), Reachability::Unreachable),
            (result(0, "tls", 3), Reachability::Unreachable),
            (result(0, "timeout", 5_001), Reachability::Unreachable),
            (result(0, "timeout", ATTEMPT_TIMEOUT_MS), Reachability::Reached),
            (result(0, "protocol", 3), Reachability::Reached),
            (
                AttemptResult {
                    not_sent: true,
                    ..AttemptResult::default()
                },
                Reachability::Untried,
            ),
        ] {
            assert_eq!(reachability_of(&result), reachability, "{result:?}");
        }
    }

    #[test]
    fn the_last_attempt_is_that_of_the_last_step_or_a_refusal_for_good() {
        let steps = RETRY_DELAYS_MS.len() as u32;
        assert!(!is_last(&result(500, "status", 1), steps - 1));
        assert!(is_last(&result(500, "status", 1), steps));
        assert!(!is_last(&result(200, "", 1), steps));
        assert!(is_last(&result(410, "status", 1), 0));
        assert!(!is_last(&result(489, "status", 1), 0));
        assert!(!is_last(
            &AttemptResult {
                not_sent: true,
                ..AttemptResult::default()
            },
            steps
        ));
    }
}
