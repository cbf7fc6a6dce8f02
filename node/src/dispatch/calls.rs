//! The open attempts of this node: claimed, calling, or ended and not recorded yet.
//!
//! They outlive the leadership that claimed them. An attempt is in the table from before its claim is proposed
//! until its outcome is answered; [`super::takeover`] leaves alone what is in it, and a hand-over of leadership
//! waits until it is empty (each entry stands inside [`Drain`]).
//!
//! A call begins only if its claim was applied here less than [`START_WINDOW_MS`] ago and this node has heard
//! from a quorum within its lease: then no other node can have taken the claim over. Otherwise the attempt is
//! recorded as not sent.

use std::collections::HashMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agentpost_proto::command::{AttemptRef, AttemptResult};
use agentpost_proto::id::TeamId;
use agentpost_proto::limits::{ATTEMPT_TIMEOUT_MS, RETRY_DELAYS_MS, START_WINDOW_MS};
use agentpost_proto::record::Delivery;
use futures::FutureExt as _;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::attempt::{self, Call};
use super::egress::Egress;
use super::failpoint::{self, Place};
use super::fair_queue::{Endpoint, Reach};
use super::reporter::Reports;
use crate::metrics::dispatch::AttemptClass;
use crate::metrics::{Held, Metrics};
use crate::node::Services;
use crate::shard::drain::{Drain, Entered};
use crate::shard::quorum::Quorum;
use crate::shard::wall_time::WallTime;

/// One attempt of one delivery, as the log names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Attempt {
    /// Whose delivery.
    pub team: TeamId,
    /// Its number in the team.
    pub number: u64,
    /// The serial of its calls.
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

    /// As commands name it.
    pub fn to_proto(self) -> AttemptRef {
        AttemptRef {
            team_id: self.team.to_bytes(),
            number: self.number,
            attempt_no: self.attempt_no,
        }
    }
}

/// A granted attempt, before its call.
pub struct Granted {
    /// Which.
    pub attempt: Attempt,
    /// Whose URL.
    pub endpoint: Endpoint,
    /// Of its claim.
    pub epoch: u64,
    /// Its place on the ladder.
    pub step: u32,
    /// Everything that the call needs; none = there shall be no call any more.
    pub call: Option<Call>,
    /// Not earlier than this the claim was applied here.
    pub applied_after: Instant,
    /// When it was due.
    pub due: Instant,
    /// Who gave the slot.
    pub slots: Slots,
}

/// Where slots go back to: the tenure that gave them, if it still is.
pub type Slots = mpsc::Sender<(Endpoint, Reach)>;

/// An attempt that is over, until that is recorded.
pub struct Ended {
    /// Which.
    pub attempt: Attempt,
    /// Of its claim.
    pub epoch: u64,
    /// What became of it.
    pub result: AttemptResult,
    endpoint: Endpoint,
    step: u32,
    slots: Slots,
    calls: Calls,
}

/// The open attempts of this node. Cheap to clone.
#[derive(Clone)]
pub struct Calls {
    shared: Arc<Shared>,
}

struct Shared {
    open: Mutex<HashMap<Attempt, Entered>>,
    drain: Drain,
    tasks: TaskTracker,
    /// Cancelled when the process is to end as in a crash.
    life: CancellationToken,
    egress: Egress,
    wall_time: WallTime,
    quorum: Quorum,
    metrics: Metrics,
    reports: Reports,
}

impl Calls {
    /// None yet. They enter `drain` and end in `reports`.
    pub fn new(drain: Drain, quorum: Quorum, reports: Reports, services: &Services) -> Self {
        let shared = Shared {
            open: Mutex::default(),
            drain,
            tasks: TaskTracker::new(),
            life: CancellationToken::new(),
            egress: services.egress.clone(),
            wall_time: services.wall_time.clone(),
            quorum,
            metrics: services.metrics.clone(),
            reports,
        };
        Calls {
            shared: Arc::new(shared),
        }
    }

    /// Notes an attempt that is about to be claimed; refused while leadership is being handed over.
    pub fn open(&self, attempt: Attempt) -> bool {
        let Some(entered) = self.shared.drain.enter() else {
            return false;
        };
        self.table().insert(attempt, entered);
        true
    }

    /// Whether leadership is being handed over.
    pub fn are_held(&self) -> bool {
        self.shared.drain.is_held()
    }

    /// Forgets an attempt that was not granted, or is recorded.
    pub fn close(&self, attempt: &Attempt) {
        let closed = self.table().remove(attempt);
        drop(closed);
    }

    /// Whether this node will still say what became of an attempt.
    pub fn are_open(&self, attempt: &Attempt) -> bool {
        self.table().contains_key(attempt)
    }

    fn table(&self) -> std::sync::MutexGuard<'_, HashMap<Attempt, Entered>> {
        self.shared.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins the call of a granted attempt.
    pub fn start(&self, granted: Granted) {
        let calls = self.clone();
        self.spawn(async move { calls.run(granted).await });
    }

    /// Breaks off every call. Nothing more is recorded.
    pub fn abort(&self) {
        self.shared.life.cancel();
    }

    /// Runs something that outlives the leadership of now.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let living = self.shared.life.clone().run_until_cancelled_owned(task);
        self.shared.tasks.spawn(living);
    }

    async fn run(&self, granted: Granted) {
        let (epoch, step) = (granted.epoch, granted.step);
        let (team, number, attempt_no) = (granted.attempt.team, granted.attempt.number, granted.attempt.attempt_no);
        let result = match granted.call {
            Some(call) if self.may_start(granted.applied_after) => {
                let late = granted.due.elapsed();
                self.shared
                    .metrics
                    .dispatch
                    .lateness_seconds
                    .observe(late.as_secs_f64());
                self.call(call).await
            }
            _ => {
                tracing::info!(%team, number, attempt_no, "a claim came too late, or without a quorum: not sent");
                not_sent()
            }
        };
        tracing::debug!(
            %team, number, attempt_no, epoch,
            status = result.status, error = %result.error, took_ms = result.took_ms,
            "attempt ended"
        );
        self.shared.metrics.dispatch.attempt(class_of(&result));
        let ended = Ended {
            attempt: granted.attempt,
            epoch,
            result,
            endpoint: granted.endpoint,
            step,
            slots: granted.slots,
            calls: self.clone(),
        };
        // Fails only when the process stops.
        let _ = self.shared.reports.send(ended).await;
    }

    fn may_start(&self, applied_after: Instant) -> bool {
        let in_time = applied_after.elapsed() < Duration::from_millis(START_WINDOW_MS);
        in_time && self.shared.quorum.is_fresh()
    }

    /// The one call. A panic in it is an attempt that failed, not the end of the dispatcher.
    async fn call(&self, call: Call) -> AttemptResult {
        let shared = &self.shared;
        failpoint::pass(Place::BeforeCall);
        let _counted = Held::new(&shared.metrics.dispatch.calls_in_flight);
        let calling = AssertUnwindSafe(attempt::make(&shared.egress, &shared.wall_time, call));
        let result = calling.catch_unwind().await.unwrap_or_else(|_| {
            tracing::error!("an attempt panicked");
            AttemptResult {
                error: "protocol".to_owned(),
                ..AttemptResult::default()
            }
        });
        failpoint::pass(Place::AfterCall);
        result
    }
}

impl Ended {
    /// The cluster has answered: the attempt is closed and its slot is free. `recorded` = it was still wanted.
    pub fn settle(self, recorded: bool, metrics: &Metrics) {
        if !recorded {
            metrics.dispatch.outcomes_stale.inc();
        } else if is_last(&self.result, self.step) {
            metrics.dispatch.dead_letters.inc();
        }
        self.calls.close(&self.attempt);
        // The channel holds a place for every slot; it is closed when the tenure is over.
        let _ = self.slots.try_send((self.endpoint, reach_of(&self.result)));
    }
}

fn not_sent() -> AttemptResult {
    AttemptResult {
        not_sent: true,
        ..AttemptResult::default()
    }
}

/// Whether this outcome leaves no further attempt. For the metric; apply decides.
fn is_last(result: &AttemptResult, step: u32) -> bool {
    match result.status {
        _ if result.not_sent => false,
        200..=299 => false,
        410 => true,
        489 if result.non_retryable => true,
        _ => step as usize >= RETRY_DELAYS_MS.len(),
    }
}

fn class_of(result: &AttemptResult) -> AttemptClass {
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

/// Two timers can end a call: that of the connection, and that of the whole attempt, which is much longer.
fn reach_of(result: &AttemptResult) -> Reach {
    match class_of(result) {
        AttemptClass::NotSent => Reach::Untried,
        AttemptClass::Connect => Reach::Unreachable,
        AttemptClass::Timeout if result.status == 0 && result.took_ms < ATTEMPT_TIMEOUT_MS / 2 => Reach::Unreachable,
        _ => Reach::Reached,
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
        for (result, reach) in [
            (result(200, "", 3), Reach::Reached),
            (result(503, "status", 3), Reach::Reached),
            (result(0, "connect", 3), Reach::Unreachable),
            (result(0, "dns", 3), Reach::Unreachable),
            (result(0, "tls", 3), Reach::Unreachable),
            (result(0, "timeout", 5_001), Reach::Unreachable),
            (result(0, "timeout", ATTEMPT_TIMEOUT_MS), Reach::Reached),
            (result(0, "protocol", 3), Reach::Reached),
            (not_sent(), Reach::Untried),
        ] {
            assert_eq!(reach_of(&result), reach, "{result:?}");
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
        assert!(!is_last(&not_sent(), steps));
    }
}
