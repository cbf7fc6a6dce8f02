//! Makes the webhook calls of this node and passes each outcome to the reporter.
//!
//! A call begins only if this node applied its claim less than [`START_WINDOW_MS`] ago and a quorum has answered this
//! node within its lease: then no other node can have taken the claim over. Otherwise the attempt is recorded as not
//! sent. So is that of a message that has expired; the next claim then cancels its delivery.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use agentpost_proto::command::AttemptResult;
use agentpost_proto::limits::START_WINDOW_MS;
use agentpost_raft_store::core::query::inbox::has_expired;
use futures::FutureExt as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::attempt::{self, Call};
use super::egress::Egress;
use super::failpoint::{self, Place};
use super::fair_queue::Endpoint;
use super::open::{Attempt, Ended, OpenAttempts, Slots, class_of};
use super::reporter::Reports;
use crate::base::metrics::{GaugeGuard, Metrics};
use crate::base::task_watch::TaskWatch;
use crate::shard::quorum::Quorum;
use crate::shard::wall_time::WallTime;

/// A granted attempt before its call.
pub struct Granted {
    pub attempt: Attempt,
    /// The endpoint to call.
    pub endpoint: Endpoint,
    /// The epoch of its claim.
    pub epoch: u64,
    /// Its retry step.
    pub step: u32,
    /// The input of the call; `None` once leadership was lost: the attempt is recorded as not sent.
    pub call: Option<Call>,
    /// Lower bound on the time at which this node applied the claim; the start window counts from here.
    pub applied_after: Instant,
    /// The time at which it was due.
    pub due: Instant,
    /// The channel that takes the slot back.
    pub slots: Slots,
}

/// The calls of this node. Clones are cheap and share them.
#[derive(Clone)]
pub struct Calls {
    shared: Arc<Shared>,
}

struct Shared {
    tasks: TaskTracker,
    /// Cancelled to end all calls as a crash would.
    life: CancellationToken,
    parts: CallParts,
}

/// The handles that calls share.
pub struct CallParts {
    /// The open attempts of this node.
    pub open: OpenAttempts,
    /// The outbound HTTP client.
    pub egress: Egress,
    /// The clock for signatures.
    pub wall_time: WallTime,
    /// Whether a quorum has answered this node within its lease.
    pub quorum: Quorum,
    pub metrics: Metrics,
    /// The reporter's channel.
    pub reports: Reports,
    /// Ends the node when a task dies that holds an open attempt.
    pub watch: TaskWatch,
}

impl Calls {
    /// A set without calls.
    pub fn new(parts: CallParts) -> Self {
        let shared = Shared {
            tasks: TaskTracker::new(),
            life: CancellationToken::new(),
            parts,
        };
        Calls {
            shared: Arc::new(shared),
        }
    }

    /// The table of open attempts.
    pub fn open(&self) -> &OpenAttempts {
        &self.shared.parts.open
    }

    /// Begins the call of a granted attempt.
    pub fn start(&self, granted: Granted) {
        let calls = self.clone();
        self.spawn(async move { calls.run(granted).await });
    }

    /// Aborts every call. No outcome is recorded.
    pub fn abort(&self) {
        self.shared.life.cancel();
    }

    /// Spawns a task that outlives the current leadership.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let living = self.shared.life.clone().run_until_cancelled_owned(task).map(|_| ());
        let watched = self.parts().watch.may_end("webhook call", living);
        self.shared.tasks.spawn(watched);
    }

    fn parts(&self) -> &CallParts {
        &self.shared.parts
    }

    async fn run(&self, granted: Granted) {
        let (epoch, step) = (granted.epoch, granted.step);
        let (team, number, attempt_no) = (granted.attempt.team, granted.attempt.number, granted.attempt.attempt_no);
        let result = match granted.call {
            Some(call) if self.may_start(granted.applied_after) && !self.has_expired(&call) => {
                let late = granted.due.elapsed();
                self.parts()
                    .metrics
                    .dispatch
                    .lateness_seconds
                    .observe(late.as_secs_f64());
                self.call(call).await
            }
            _ => {
                tracing::info!(%team, number, attempt_no, "an attempt was not sent: its claim was answered too late, this node lost its quorum, or the message expired; it is retried unless the message expired");
                not_sent()
            }
        };
        tracing::debug!(
            %team, number, attempt_no, epoch,
            status = result.status, error = %result.error, took_ms = result.took_ms,
            "attempt ended"
        );
        self.parts().metrics.dispatch.attempt(class_of(&result));
        let ended = Ended {
            attempt: granted.attempt,
            epoch,
            result,
            endpoint: granted.endpoint,
            step,
            slots: granted.slots,
        };
        // The channel is closed only when the process stops.
        let _ = self.parts().reports.send(ended).await;
    }

    fn may_start(&self, applied_after: Instant) -> bool {
        let in_time = applied_after.elapsed() < Duration::from_millis(START_WINDOW_MS);
        in_time && self.parts().quorum.is_fresh()
    }

    fn has_expired(&self, call: &Call) -> bool {
        has_expired(call.message.expires_at_ms, self.parts().wall_time.now_ms())
    }

    /// Makes the call. A panic is a failed attempt and does not end the dispatcher.
    async fn call(&self, call: Call) -> AttemptResult {
        let parts = self.parts();
        failpoint::pass(Place::BeforeCall);
        let _counted = GaugeGuard::new(&parts.metrics.dispatch.calls_in_flight);
        let calling = AssertUnwindSafe(attempt::make(&parts.egress, &parts.wall_time, call));
        let result = calling.catch_unwind().await.unwrap_or_else(|_| {
            tracing::error!("an attempt panicked and counts as failed; please report this");
            AttemptResult {
                error: "protocol".to_owned(),
                ..AttemptResult::default()
            }
        });
        failpoint::pass(Place::AfterCall);
        result
    }
}

fn not_sent() -> AttemptResult {
    AttemptResult {
        not_sent: true,
        ..AttemptResult::default()
    }
}
