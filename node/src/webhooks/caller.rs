//! Makes the webhook calls that the leader delegates to this node, and records their outcomes.
//!
//! The stream of a leader carries all that a call needs, so a node that lags behind in the log makes calls as well. This
//! node begins a call only before the time that the leader names on the clock of the stream: then the start window of
//! the claim is still open, however long the call was on its way or this process was stopped. It proposes the outcome
//! itself, repeatedly, whoever leads by then; what it reports on the stream only frees the leader's slot. A call that
//! has begun does not depend on the stream.
//!
//! A node that stops says so on the stream. The leader then ends its side of the stream; the calls that were on
//! their way are recorded as not sent, and the node stops once all calls are recorded.

use std::sync::Arc;
use std::time::Duration;

use agentpost_proto::id::TeamId;
use agentpost_proto::peer::{self, CallerReport, DelegatedCall, RecordedCall};
use futures::stream::{Stream, StreamExt as _};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::attempt::Call;
use super::calls::{Calls, Granted};
use super::fair_queue::{NODE_CALLS_MAX, Reachability};
use super::open::{Attempt, Freed, Slots};
use crate::base::secrets::Secrets;

/// Interval of the reports while nothing is recorded. The leader delegates no calls without recent reports.
const REPORT: Duration = Duration::from_millis(100);
/// How long a node that stops waits for a leader that does not end the stream, and for one that takes no reports.
const LEAVE_DEADLINE: Duration = Duration::from_secs(1);
/// Reports that wait for the connection.
const REPORTS: usize = 4;

/// Serves leaders. Clones are cheap.
#[derive(Clone)]
pub struct Caller {
    here: u64,
    calls: Calls,
    secrets: Arc<Secrets>,
}

/// One stream of a leader.
struct Serving {
    caller: Caller,
    began: Instant,
    slots: Slots,
    /// Calls whose outcome is not recorded.
    open: usize,
}

impl Caller {
    /// Serves as node `here` with its calls.
    pub fn new(here: u64, calls: Calls, secrets: Arc<Secrets>) -> Self {
        Caller { here, calls, secrets }
    }

    /// Serves one stream of a leader and returns the reports for it. `None` while this node stops.
    pub fn serve(
        &self,
        delegated: impl Stream<Item = DelegatedCall> + Send + 'static,
    ) -> Option<mpsc::Receiver<CallerReport>> {
        // A stop waits for the end of the stream.
        let entered = self.calls.open().enter_stream()?;
        let (reports, out) = mpsc::channel(REPORTS);
        let (slots, recorded) = mpsc::channel(NODE_CALLS_MAX);
        let serving = Serving {
            caller: self.clone(),
            began: Instant::now(),
            slots,
            open: 0,
        };
        self.calls.spawn(async move {
            serving.run(delegated.boxed(), recorded, reports).await;
            drop(entered);
        });
        Some(out)
    }
}

impl Serving {
    /// Runs until the leader has ended the stream and every call is recorded, or until the stream breaks.
    async fn run(
        mut self,
        mut delegated: impl Stream<Item = DelegatedCall> + Unpin,
        mut recorded: mpsc::Receiver<Freed>,
        reports: mpsc::Sender<CallerReport>,
    ) {
        let mut ticks = interval(REPORT);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut ended, mut leaving_since) = (false, None);
        loop {
            let mut freed = Vec::new();
            tokio::select! {
                call = delegated.next(), if !ended => match call {
                    Some(call) => {
                        self.begin(call);
                        continue;
                    }
                    None => ended = true,
                },
                count = recorded.recv_many(&mut freed, NODE_CALLS_MAX) => self.open = self.open.saturating_sub(count),
                _ = ticks.tick() => {}
            }
            let leaving = self.caller.calls.open().is_held();
            leaving_since = leaving.then(|| leaving_since.unwrap_or_else(Instant::now));
            let report = CallerReport {
                clock_ms: self.began.elapsed().as_millis() as u64,
                leaving,
                recorded: freed.into_iter().map(recorded_call).collect(),
            };
            if !matches!(timeout(LEAVE_DEADLINE, reports.send(report)).await, Ok(Ok(()))) {
                return;
            }
            let given_up = leaving_since.is_some_and(|since| since.elapsed() > LEAVE_DEADLINE);
            if self.open == 0 && (ended || given_up) {
                return;
            }
        }
    }

    /// Begins a call, or records it as not sent.
    fn begin(&mut self, delegated: DelegatedCall) {
        let Some((team, delivery)) = TeamId::from_slice(&delegated.team_id)
            .ok()
            .zip(delegated.delivery.as_ref())
        else {
            tracing::error!("the leader delegated a malformed webhook call; takeover closes it; please report this");
            return;
        };
        let claim = delivery.claim.unwrap_or_default();
        let attempt = Attempt::newest(team, delivery);
        let (endpoint, step) = ((team, delivery.generation), delivery.step);
        let open = self.caller.calls.open();
        if claim.node != self.caller.here || open.contains(&attempt) {
            tracing::error!(%team, number = attempt.number, attempt_no = attempt.attempt_no, "the leader delegated a webhook call twice or to the wrong node; it is not made; please report this");
            return;
        }
        let begin_before = self.began + Duration::from_millis(delegated.begin_before_ms);
        let due = Instant::now().checked_sub(Duration::from_millis(delegated.late_ms));
        let entered = open.enter(attempt);
        self.open += 1;
        self.caller.calls.start(Granted {
            attempt,
            endpoint,
            epoch: claim.epoch,
            step,
            call: if entered {
                Call::of(team, delegated, &self.caller.secrets)
            } else {
                None
            },
            begin_before,
            own_lead: false,
            due: due.unwrap_or(self.began),
            slots: self.slots.clone(),
        });
    }
}

fn recorded_call(freed: Freed) -> RecordedCall {
    let reachability = match freed.reachability {
        Reachability::Untried => peer::Reachability::Unspecified,
        Reachability::Reached => peer::Reachability::Reached,
        Reachability::Unreachable => peer::Reachability::Unreachable,
    };
    RecordedCall {
        attempt: Some(freed.attempt.to_proto()),
        reachability: reachability as i32,
        host_is_exempt: freed.host_is_exempt,
    }
}
