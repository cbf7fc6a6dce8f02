//! The calls of this node: makes them, and hands each outcome to the reporter.
//!
//! A call begins only if its claim was applied here less than [`START_WINDOW_MS`] ago and this node has heard
//! from a quorum within its lease: then no other node can have taken the claim over. Otherwise the attempt is
//! recorded as not sent.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use agentpost_proto::command::AttemptResult;
use agentpost_proto::limits::START_WINDOW_MS;
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
use crate::shard::quorum::Quorum;
use crate::shard::wall_time::WallTime;

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

/// The calls of this node. Cheap to clone.
#[derive(Clone)]
pub struct Calls {
    shared: Arc<Shared>,
}

struct Shared {
    tasks: TaskTracker,
    /// Cancelled when the process is to end as in a crash.
    life: CancellationToken,
    parts: CallParts,
}

/// What a call needs beside its claim.
pub struct CallParts {
    /// The attempts that are open on this node.
    pub open: OpenAttempts,
    /// The way out.
    pub egress: Egress,
    /// What requests are stamped with.
    pub wall_time: WallTime,
    /// Whether this node still hears from a quorum.
    pub quorum: Quorum,
    /// Counts.
    pub metrics: Metrics,
    /// Where ended calls go.
    pub reports: Reports,
}

impl Calls {
    /// None yet.
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

    /// Breaks off every call. Nothing more is recorded.
    pub fn abort(&self) {
        self.shared.life.cancel();
    }

    /// Runs something that outlives the leadership of now.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let living = self.shared.life.clone().run_until_cancelled_owned(task);
        self.shared.tasks.spawn(living);
    }

    fn parts(&self) -> &CallParts {
        &self.shared.parts
    }

    async fn run(&self, granted: Granted) {
        let (epoch, step) = (granted.epoch, granted.step);
        let (team, number, attempt_no) = (granted.attempt.team, granted.attempt.number, granted.attempt.attempt_no);
        let result = match granted.call {
            Some(call) if self.may_start(granted.applied_after) => {
                let late = granted.due.elapsed();
                self.parts()
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
        self.parts().metrics.dispatch.attempt(class_of(&result));
        let ended = Ended {
            attempt: granted.attempt,
            epoch,
            result,
            endpoint: granted.endpoint,
            step,
            slots: granted.slots,
        };
        // Fails only when the process stops.
        let _ = self.parts().reports.send(ended).await;
    }

    fn may_start(&self, applied_after: Instant) -> bool {
        let in_time = applied_after.elapsed() < Duration::from_millis(START_WINDOW_MS);
        in_time && self.parts().quorum.is_fresh()
    }

    /// The one call. A panic in it is an attempt that failed, not the end of the dispatcher.
    async fn call(&self, call: Call) -> AttemptResult {
        let parts = self.parts();
        failpoint::pass(Place::BeforeCall);
        let _counted = GaugeGuard::new(&parts.metrics.dispatch.calls_in_flight);
        let calling = AssertUnwindSafe(attempt::make(&parts.egress, &parts.wall_time, call));
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

fn not_sent() -> AttemptResult {
    AttemptResult {
        not_sent: true,
        ..AttemptResult::default()
    }
}
