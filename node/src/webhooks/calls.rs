//! Makes the webhook calls of this node and passes each outcome to the reporter.
//!
//! A call begins only in the start window of its claim, and under this node's own leadership only if a quorum has
//! answered it within its lease; the leader has checked the same before it delegated a call to this node. Otherwise the
//! attempt is recorded as not sent. So is that of a message that has expired; the next claim then cancels its delivery.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use agentpost_proto::command::AttemptResult;
use agentpost_raft_store::core::query::inbox::has_expired;
use futures::FutureExt as _;
use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::attempt::{self, Call, Made};
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
    /// The input of the call; `None` if it must not be made: the attempt is recorded as not sent.
    pub call: Option<Call>,
    /// The end of the start window.
    pub begin_before: Instant,
    /// Whether this node leads in that epoch; otherwise another node, the leader, has delegated the call.
    pub own_lead: bool,
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
    /// The threads that calls run on, also those that a request on the peer port starts.
    runtime: Handle,
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
    /// A set without calls. Calls will run on the current runtime.
    pub fn new(parts: CallParts) -> Self {
        let shared = Shared {
            tasks: TaskTracker::new(),
            runtime: Handle::current(),
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
        self.shared.tasks.spawn_on(watched, &self.shared.runtime);
    }

    /// Counts a call to the URL's host and returns how long it must wait; `None` if that is too long.
    pub(super) fn turn_at(&self, url: &str) -> Option<Duration> {
        self.parts().egress.turn_at(url)
    }

    /// Records whether the URL's host is exempt from turns.
    pub(super) fn note_host(&self, url: &str, exempt: bool) {
        self.parts().egress.note_host(url, exempt);
    }

    /// Whether this node leads and a quorum has answered it within its lease.
    pub(super) fn quorum_is_fresh(&self) -> bool {
        self.parts().quorum.is_fresh()
    }

    fn parts(&self) -> &CallParts {
        &self.shared.parts
    }

    async fn run(&self, granted: Granted) {
        let (epoch, step) = (granted.epoch, granted.step);
        let (team, number, attempt_no) = (granted.attempt.team, granted.attempt.number, granted.attempt.attempt_no);
        let may_begin = Instant::now() < granted.begin_before && (!granted.own_lead || self.quorum_is_fresh());
        let Made { result, host_is_exempt } = match granted.call {
            Some(call) if may_begin && !self.has_expired(&call) => {
                let late = granted.due.elapsed();
                self.parts()
                    .metrics
                    .dispatch
                    .lateness_seconds
                    .observe(late.as_secs_f64());
                self.call(call).await
            }
            _ => {
                tracing::info!(%team, number, attempt_no, "an attempt was not sent: it was granted too late, the leader lost its quorum, the node that should call stops or was lost, its host was called too often, or the message expired; it is retried unless the message expired");
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
            host_is_exempt,
            slots: granted.slots,
        };
        // The channel is closed only when the process stops.
        let _ = self.parts().reports.send(ended).await;
    }

    fn has_expired(&self, call: &Call) -> bool {
        has_expired(call.message.expires_at_ms, self.parts().wall_time.now_ms())
    }

    /// Makes the call. A panic is a failed attempt and does not end the dispatcher.
    async fn call(&self, call: Call) -> Made {
        let parts = self.parts();
        failpoint::pass(Place::BeforeCall);
        let _counted = GaugeGuard::new(&parts.metrics.dispatch.calls_in_flight);
        let url = call.delivery.url.clone();
        let calling = AssertUnwindSafe(attempt::make(&parts.egress, &parts.wall_time, call));
        let made = calling.catch_unwind().await.unwrap_or_else(|_| {
            tracing::error!("an attempt panicked and counts as failed; please report this");
            without_connection(AttemptResult {
                error: "protocol".to_owned(),
                ..AttemptResult::default()
            })
        });
        if let Some(exempt) = made.host_is_exempt {
            self.note_host(&url, exempt);
        }
        failpoint::pass(Place::AfterCall);
        made
    }
}

fn not_sent() -> Made {
    without_connection(AttemptResult {
        not_sent: true,
        ..AttemptResult::default()
    })
}

fn without_connection(result: AttemptResult) -> Made {
    Made {
        result,
        host_is_exempt: None,
    }
}
