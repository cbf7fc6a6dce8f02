//! The dispatcher: decides which deliveries are attempted now, which node calls, and claims them.
//!
//! A webhook call and the replicated log are two systems, so "exactly once" cannot be promised for the call. This
//! node's part of the protocol promises: an attempt number is started at most once in the cluster, ever; its outcome is
//! recorded once; a clean change of leader, or a clean stop of any node, leaves no attempt with an unknown outcome. The
//! other part is `apply/delivery.rs` of the core, which grants the numbers and closes them.
//!
//! ```text
//!   state: due rows        this tenure                    every node, beyond the tenure
//!   ──────────────── ┌───────────────────────┐        ┌──────────────────────────────────────┐
//!   hints, scan ────►│ fair queue: one head  │        │ calls: open attempts                 │
//!                    │ per endpoint          │        │   window (and quorum)? ─no─► not sent│
//!                    │      │ slots, a node  │ granted│      │ yes                           │
//!                    │      ▼                │        │      ▼                               │
//!                    │ Claim (≤ 256) ──► log ├───────►│   attempt::make: one HTTP request    │
//!                    │      ▲                │        │      │                               │
//!                    │      └── slots freed ◄┼────────┤ reporter: Outcome (≤ 256) ──► log    │
//!                    └───────────────────────┘        └──────────────────────────────────────┘
//! ```
//!
//! A tenure is one epoch: it begins when this node has applied the `BeginEpoch` of its leadership, so the state it
//! reads is current, and it ends when Raft says so. After that no claim is proposed and no call is delegated or begins
//! here; running calls continue, and their nodes report them through the new leader.
//!
//! Rules:
//!
//! - **The state is the truth; memory holds only turns**: the earliest due time of each endpoint and the open attempts,
//!   at most [`NODE_CALLS_MAX`] for each node that makes calls. Which deliveries are due is read from the state when a
//!   slot is free for them. A lost hint costs latency only; the first look of a tenure reads everything.
//! - **An endpoint is read again** when a hint names it and when one of its claims is answered. In between nothing can
//!   be missed: while none of its claims is in flight, its head in the queue equals that of the state.
//! - **Claims are proposed under the leadership of their epoch**, and apply checks the epoch again.
//! - **A claim whose answer is lost** (a timeout, a discarded entry) is not called, because it may or may not have been
//!   granted. If it was, [`super::takeover`] closes it when it is old enough.
//! - **Calls that nobody reports to this tenure count against the limits** ([`super::inherited`]) until their claims are
//!   closed: those of earlier leaderships, and those of a node whose stream broke. After a crash nobody closes them
//!   before takeover, so an endpoint with eight open calls waits for up to 33 s. The alternative, to call at once, would
//!   give a hanging endpoint eight more calls with each crash, and the old node may not even have crashed.
//! - **The start window counts from the time at which this node applied the claim.** The exact time is not observable
//!   here, so this task uses the last poll at which the reply was still pending: an earlier, hence safe, bound. A
//!   process that was suspended at any point in between finds its claims too old.
//! - **Claims are gathered** for at most [`GATHER`], and not at all after a pause: a quiet cluster is quick, and a
//!   busy one writes few entries. Several entries may be in flight.
//! - **A hand-over of leadership** closes the gate of [`super::open::OpenAttempts::enter`] and waits until the last
//!   outcome is recorded, by whichever node. Claims count as open from before they are proposed, so none is missed.
//!
//! **A claim names the node that calls**, because one node's calls are not enough for a cluster and the claims do not
//! need it: what keeps two calls of a delivery apart is that a call begins within 2 s of its grant, lasts at most 30 s, and
//! is taken over only 33 s after its claim by cluster time, which never runs ahead. So another node needs to know one
//! thing only, that the window is still open, and not who leads:
//!
//! - The leader looks at its quorum and the window when it delegates a call. After that a new leader may be elected
//!   before the call begins. It finds the delivery claimed, and can do nothing to it until 33 s have passed.
//! - The node must begin before the window ends on the leader's clock, although the call may be late on its way and its
//!   process may be stopped. [`super::callers`] explains how its own clock tells it that.
//! - A call is delegated at most once, on one stream, so its number is started at most once. Whether a call that was
//!   delegated began is known only from its outcome; if the stream breaks, takeover has the last word.
//! - All that the call needs travels with it. A node that made calls from its own state would first have to apply the
//!   claim, of which it learns later than the leader.
//! - The fair turns, the limits and the pace of each host stay with the leader, so they hold for the whole cluster.
//! - Without another node that reports, the leader makes all calls itself, as in a cluster of one.
//!
//! Not here, on purpose: retries of a call (the log holds the retry schedule), an order between deliveries of one
//! endpoint (not promised), and timers per delivery.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use agentpost_proto::command::{Claim, Grant};
use agentpost_proto::limits::CLAIMS_PER_ENTRY_MAX;
use agentpost_proto::record::{Delivery, DeliveryState};
use agentpost_raft_store::core::kv::Fatal;
use agentpost_raft_store::core::query::delivery;
use agentpost_raft_store::disk::state::StateDb;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::assignments::{Assignments, Chosen, GrantedAt, SigningGenerations};
use super::callers::CALLERS_MAX;
use super::calls::Granted;
use super::failpoint::{self, Place};
use super::fair_queue::{Endpoint, FairQueue, NODE_CALLS_MAX, Reachability};
use super::handles::WebhookHandles;
use super::inherited::Inherited;
use super::links::{LinkEvent, Links};
use super::open::{Attempt, Freed, Slots};
use super::reporter::GATHER;
use crate::base::metrics::Metrics;
use crate::base::metrics::dispatch::EntryKind;
use crate::shard::proposer::Proposed;
use crate::shard::wakeups::work::Places;

/// How often answers are polled: the start window is known with this precision.
const LOOK: Duration = Duration::from_millis(100);
/// Longest sleep when there is nothing to do.
const IDLE: Duration = Duration::from_secs(1);
/// Pause before an endpoint is tried again whose claims were not granted: it is being closed, or its delivery changed.
const NOT_GRANTED_MS: u64 = 250;

/// The result of a Claim entry.
struct Answer {
    batch: Vec<Chosen>,
    outcome: Proposed<Claim>,
    proposed: Instant,
}

type Answers = FuturesUnordered<BoxFuture<'static, Answer>>;

/// The dispatcher during one epoch of this node.
pub(super) struct Tenure {
    own: WebhookHandles,
    epoch: u64,
    queue: FairQueue,
    /// Who makes the calls.
    assignments: Assignments,
    /// The calls that nobody reports; `None` until those of earlier leaderships are read. Nothing is claimed before that.
    inherited: Option<Inherited>,
    /// Deliveries whose claims have no answer yet.
    claiming: HashMap<Endpoint, HashSet<u64>>,
    answers: Answers,
    /// The last time at which answers were polled and none was there.
    looked: Instant,
    /// The time until which claims are gathered.
    open_at: Instant,
    slots: Slots,
    /// The slots of this node's own calls.
    freed: mpsc::Receiver<Freed>,
}

impl Tenure {
    pub(super) fn new(own: WebhookHandles) -> Self {
        // Room for every call of the cluster: this node records those that cannot be delegated.
        let (slots, freed) = mpsc::channel(NODE_CALLS_MAX * CALLERS_MAX);
        let now = Instant::now();
        let epoch = own.leader.cluster_time.now().0;
        Tenure {
            epoch,
            assignments: Assignments::new(own.clone(), epoch, slots.clone()),
            own,
            queue: FairQueue::default(),
            inherited: None,
            claiming: HashMap::new(),
            answers: FuturesUnordered::new(),
            looked: now,
            open_at: now,
            slots,
            freed,
        }
    }

    /// Runs until `shutdown`; then hands claims in flight to a task that outlives the tenure.
    pub(super) async fn run(mut self, shutdown: CancellationToken) {
        let mut due = self.own.leader.wakeups.due();
        let mut events = self.keep_links(&shutdown);
        loop {
            self.take_answers();
            self.look_at_inherited();
            if let Some(places) = due.now() {
                self.look_at(places);
            }
            if Instant::now() >= self.open_at {
                self.claim();
            }
            let next_look = self.next_look();
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(answer) = self.answers.next() => self.answered(answer),
                Some(freed) = self.freed.recv() => {
                    self.freed(&freed);
                    while let Ok(freed) = self.freed.try_recv() {
                        self.freed(&freed);
                    }
                }
                Some(event) = events.recv() => self.note(event),
                places = due.next() => self.look_at(places),
                () = sleep_until(next_look) => {}
            }
        }
        self.wind_up();
    }

    /// Opens the streams to the other nodes, until `shutdown`.
    fn keep_links(&self, shutdown: &CancellationToken) -> mpsc::Receiver<LinkEvent> {
        let WebhookHandles {
            dialer,
            this_node,
            calls,
            ..
        } = &self.own;
        let (links, events) = Links::new(dialer.clone(), this_node.clone(), calls.clone());
        let keeping = shutdown.clone().run_until_cancelled_owned(links.keep());
        calls.spawn(async move {
            keeping.await;
        });
        events
    }

    fn note(&mut self, event: LinkEvent) {
        let changed = self.assignments.note(event);
        for (endpoint, reachability) in changed.recorded {
            self.queue.release(endpoint, reachability);
        }
        if let Some(inherited) = &mut self.inherited {
            inherited.add(changed.lost);
        }
    }

    /// A call of this node is recorded.
    fn freed(&mut self, freed: &Freed) {
        self.assignments.release_own();
        self.queue.release(freed.endpoint, freed.reachability);
    }

    /// The next time at which there is work without any event.
    fn next_look(&self) -> Instant {
        let now = Instant::now();
        // A cancelled hand-over is not announced, so it is polled.
        let idle = match !self.answers.is_empty() || self.is_held() {
            true => LOOK,
            false => IDLE,
        };
        let turn = self.next_turn(now);
        let inherited = self.inherited.as_ref().and_then(Inherited::next_look);
        turn.into_iter().chain(inherited).fold(now + idle, Instant::min)
    }

    /// The time at which the next claim may be proposed, if that depends on time alone.
    fn next_turn(&self, now: Instant) -> Option<Instant> {
        if self.is_held() {
            return None;
        }
        if self.queue.has_turns() && self.open_at > now {
            return Some(self.open_at);
        }
        let due_ms = self.queue.next_due_ms()?;
        let wait_ms = due_ms.saturating_sub(self.own.leader.cluster_time.now().1);
        Some(self.open_at.max(now + Duration::from_millis(wait_ms)))
    }

    /// Whether claims are forbidden at the moment.
    fn is_held(&self) -> bool {
        self.inherited.is_none()
            || self.own.calls.open().is_held()
            || self.own.leader.cluster_time.now().0 != self.epoch
    }

    /// Takes the answers that have arrived, and notes a time at which the others had not.
    fn take_answers(&mut self) {
        loop {
            let before = Instant::now();
            match self.answers.next().now_or_never() {
                Some(Some(answer)) => self.answered(answer),
                _ => {
                    self.looked = before;
                    return;
                }
            }
        }
    }

    /// Counts the calls of earlier leaderships once, and releases the slots of calls that ended without a report.
    fn look_at_inherited(&mut self) {
        let state = self.own.leader.state.current();
        let looked = match &mut self.inherited {
            None => Inherited::read(&*state).map(|inherited| {
                for held in inherited.held() {
                    self.queue.occupy(held.endpoint);
                    self.assignments.occupy(held.node);
                }
                self.inherited = Some(inherited);
            }),
            Some(inherited) => inherited.closed(&*state).map(|closed| {
                for held in closed {
                    self.queue.release(held.endpoint, Reachability::Untried);
                    self.assignments.release(held.node);
                }
            }),
        };
        if let Err(error) = looked {
            tracing::error!(%error, "reading the claims of earlier leaderships failed; trying again; check the disk");
        }
    }

    /// Reads the earliest due time of endpoints.
    fn look_at(&mut self, places: Places<Endpoint>) {
        let state = self.own.leader.state.current();
        let looked = match places {
            Places::Everywhere => delivery::endpoint_heads(&*state).map(|heads| {
                for (team, generation, due_ms) in heads {
                    // Endpoints with claims in flight are read when their claims are answered.
                    if !self.claiming.contains_key(&(team, generation)) {
                        self.queue.set_due((team, generation), Some(due_ms));
                    }
                }
            }),
            Places::These(endpoints) => endpoints
                .into_iter()
                .try_for_each(|endpoint| self.look_again(&state, endpoint, 0)),
        };
        if let Err(error) = looked {
            tracing::error!(%error, "reading due deliveries failed; trying again with the next hint");
        }
    }

    /// Reads the earliest delivery of an endpoint without a claim in flight; it is due no earlier than `not_before_ms`.
    fn look_again(&mut self, state: &StateDb, endpoint: Endpoint, not_before_ms: u64) -> Result<(), Fatal> {
        let due_ms = if self.claiming.contains_key(&endpoint) {
            let rows = self.unclaimed(state, endpoint, 1)?;
            rows.first().map(|(due_ms, _)| *due_ms)
        } else {
            delivery::endpoint_head(state, endpoint.0, endpoint.1)?
        };
        self.queue
            .set_due(endpoint, due_ms.map(|due_ms| due_ms.max(not_before_ms)));
        Ok(())
    }

    /// Due time and number of the first `count` deliveries of an endpoint without a claim in flight.
    fn unclaimed(&self, state: &StateDb, endpoint: Endpoint, count: usize) -> Result<Vec<(u64, u64)>, Fatal> {
        let (team, generation) = endpoint;
        let claiming = self.claiming.get(&endpoint);
        let limit = count + claiming.map_or(0, HashSet::len);
        let mut rows = delivery::scheduled(state, team, generation, limit)?;
        if let Some(claiming) = claiming {
            rows.retain(|(_, number)| !claiming.contains(number));
        }
        Ok(rows)
    }

    /// Proposes claims for due deliveries while there are free slots.
    fn claim(&mut self) {
        let (_, now_ms) = self.own.leader.cluster_time.now();
        if self.is_held() {
            return;
        }
        self.queue.set_others(self.assignments.others());
        self.queue.advance(now_ms);
        let state = self.own.leader.state.current();
        loop {
            let mut turns: HashMap<Endpoint, usize> = HashMap::new();
            let mut given = 0;
            while given < CLAIMS_PER_ENTRY_MAX
                && let Some(endpoint) = self.queue.take_slot()
            {
                *turns.entry(endpoint).or_default() += 1;
                given += 1;
            }
            if given == 0 {
                return;
            }
            let mut batch = Vec::with_capacity(given);
            for (endpoint, slots) in turns {
                let before = batch.len();
                if let Err(error) = self.choose(&state, endpoint, slots, now_ms, &mut batch) {
                    tracing::error!(%error, "reading due deliveries failed; trying again");
                    self.queue.set_due(endpoint, Some(now_ms + NOT_GRANTED_MS));
                }
                for _ in batch.len() - before..slots {
                    self.queue.release(endpoint, Reachability::Untried);
                }
            }
            if !batch.is_empty() {
                self.propose(batch);
            }
        }
    }

    /// Chooses up to `slots` due deliveries of an endpoint.
    fn choose(
        &mut self,
        state: &StateDb,
        endpoint: Endpoint,
        slots: usize,
        now_ms: u64,
        batch: &mut Vec<Chosen>,
    ) -> Result<(), Fatal> {
        failpoint::pass(Place::Choosing);
        let rows = self.unclaimed(state, endpoint, slots + 1)?;
        let mut next = None;
        let mut chosen = 0;
        for (due_ms, number) in rows {
            if due_ms > now_ms || chosen == slots {
                next = Some(due_ms);
                break;
            }
            let Some(delivery) = delivery::by_number(state, endpoint.0, number)? else {
                continue;
            };
            if let Some(choice) = self.open(endpoint, delivery) {
                self.claiming.entry(endpoint).or_default().insert(number);
                batch.push(choice);
                chosen += 1;
            } else {
                next = Some(now_ms + NOT_GRANTED_MS);
                break;
            }
        }
        self.queue.set_due(endpoint, next);
        self.queue.advance(now_ms);
        Ok(())
    }

    /// Registers an attempt as open and chooses its node; `None` while leadership is handed over.
    fn open(&mut self, endpoint: Endpoint, mut delivery: Delivery) -> Option<Chosen> {
        if delivery.state() != DeliveryState::Scheduled {
            return None;
        }
        delivery.set_state(DeliveryState::Claimed);
        delivery.attempt_no += 1;
        let attempt = Attempt::newest(endpoint.0, &delivery);
        self.own.calls.open().enter(attempt).then(|| Chosen {
            endpoint,
            attempt,
            node: self.assignments.choose_node(),
            delivery,
        })
    }

    fn propose(&mut self, batch: Vec<Chosen>) {
        failpoint::pass(Place::BeforeClaim);
        let op = Claim {
            epoch: self.epoch,
            grants: batch.iter().map(grant).collect(),
        };
        self.own.leader.metrics.dispatch.entry(EntryKind::Claim);
        let (proposer, epoch, proposed) = (self.own.leader.proposer.clone(), self.epoch, Instant::now());
        let answer = async move {
            Answer {
                batch,
                outcome: proposer.propose_in(epoch, op).await,
                proposed,
            }
        };
        // Unconstrained by tokio's budget: an answer that has arrived must not look pending.
        self.answers.push(tokio::task::unconstrained(answer).boxed());
        self.open_at = proposed + GATHER;
    }

    /// Starts the granted attempts and reads the endpoints of the others again.
    fn answered(&mut self, answer: Answer) {
        let applied_after = self.looked.max(answer.proposed);
        let granted = granted(&answer.outcome, answer.batch.len(), &self.own.leader.metrics);
        if granted.contains(&true) {
            failpoint::pass(Place::ClaimCommitted);
        }
        let state = self.own.leader.state.current();
        let (_, now_ms) = self.own.leader.cluster_time.now();
        let mut endpoints: HashMap<Endpoint, bool> = HashMap::new();
        let mut keys = SigningGenerations::default();
        for (chosen, granted) in answer.batch.into_iter().zip(granted) {
            self.no_longer_claiming(&chosen);
            *endpoints.entry(chosen.endpoint).or_insert(true) &= granted;
            if granted {
                let late = Duration::from_millis(now_ms.saturating_sub(chosen.delivery.due_ms));
                let at = GrantedAt { applied_after, late };
                self.assignments.start(&state, chosen, at, &mut keys);
            } else {
                self.own.calls.open().close(&chosen.attempt);
                self.assignments.release(chosen.node);
                self.queue.release(chosen.endpoint, Reachability::Untried);
            }
        }
        for (endpoint, all_granted) in endpoints {
            let not_before_ms = if all_granted { 0 } else { now_ms + NOT_GRANTED_MS };
            if let Err(error) = self.look_again(&state, endpoint, not_before_ms) {
                tracing::error!(%error, "reading due deliveries failed; trying again with the next hint");
                self.queue.set_due(endpoint, Some(now_ms + NOT_GRANTED_MS));
            }
        }
    }

    fn no_longer_claiming(&mut self, chosen: &Chosen) {
        if let Some(numbers) = self.claiming.get_mut(&chosen.endpoint) {
            numbers.remove(&chosen.attempt.number);
            if numbers.is_empty() {
                self.claiming.remove(&chosen.endpoint);
            }
        }
    }

    /// Leadership is over. What may still be granted to this epoch is recorded as not sent, so that the next
    /// leader need not wait for it to grow old.
    fn wind_up(self) {
        let Tenure {
            own,
            epoch,
            assignments,
            mut answers,
            slots,
            ..
        } = self;
        assignments.end();
        let calls = own.calls.clone();
        calls.clone().spawn(async move {
            while let Some(answer) = answers.next().await {
                let granted = granted(&answer.outcome, answer.batch.len(), &own.leader.metrics);
                for (chosen, granted) in answer.batch.into_iter().zip(granted) {
                    if !granted {
                        calls.open().close(&chosen.attempt);
                        continue;
                    }
                    calls.start(Granted {
                        attempt: chosen.attempt,
                        endpoint: chosen.endpoint,
                        epoch,
                        step: chosen.delivery.step,
                        call: None,
                        begin_before: answer.proposed,
                        own_lead: true,
                        due: answer.proposed,
                        slots: slots.clone(),
                    });
                }
            }
        });
    }
}

fn grant(chosen: &Chosen) -> Grant {
    Grant {
        attempt: Some(chosen.attempt.to_proto()),
        node: chosen.node,
    }
}

/// Which attempts of a Claim entry were granted; none if the outcome is unknown.
fn granted(outcome: &Proposed<Claim>, count: usize, metrics: &Metrics) -> Vec<bool> {
    match outcome {
        Ok(Ok(answer)) if answer.done.len() == count => {
            let stale = answer.done.iter().filter(|done| !**done).count();
            metrics.dispatch.claims_stale.inc_by(stale as u64);
            answer.done.clone()
        }
        Ok(other) => {
            metrics.dispatch.claims_stale.inc_by(count as u64);
            tracing::info!(?other, "claims were refused; their deliveries are read again");
            vec![false; count]
        }
        Err(error) => {
            tracing::info!(%error, claims = count, "claims got no answer; granted ones are closed by takeover");
            vec![false; count]
        }
    }
}
