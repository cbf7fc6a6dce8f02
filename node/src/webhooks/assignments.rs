//! Which node makes each call of a leadership: starts the calls of this node and delegates the others.
//!
//! A call is delegated at most once, in the stream of [`super::links`], and only while the claim's start window is open
//! and a quorum has answered this node within its lease. If it cannot be delegated, it is recorded as not sent. After
//! that, the node reports that the outcome is recorded; or its stream ends, and nobody knows whether it began the call.
//! Such a call is lost to this leadership: its slot stays in use until its claim is closed, by its node or by takeover.

use std::collections::HashMap;
use std::time::Duration;

use agentpost_proto::id::TeamId;
use agentpost_proto::limits::START_WINDOW_MS;
use agentpost_proto::peer::{self, CallerReport, DelegatedCall, RecordedCall};
use agentpost_proto::record::{Claimed, Delivery};
use agentpost_raft_store::core::kv::Fatal;
use agentpost_raft_store::core::query;
use agentpost_raft_store::core::query::delivery;
use agentpost_raft_store::disk::state::StateDb;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::attempt::Call;
use super::callers::Callers;
use super::calls::Granted;
use super::fair_queue::{Endpoint, Reachability};
use super::handles::WebhookHandles;
use super::inherited::HeldSlot;
use super::links::LinkEvent;
use super::open::{Attempt, Slots};
use crate::net::shard_id::SHARD;

/// A delivery that was chosen for a call.
pub(super) struct Chosen {
    pub(super) endpoint: Endpoint,
    pub(super) attempt: Attempt,
    /// The node that makes the call.
    pub(super) node: u64,
    /// The delivery as it will be once it is claimed.
    pub(super) delivery: Delivery,
}

/// What an event of a stream changes.
#[derive(Default)]
pub(super) struct Changed {
    /// Calls of other nodes that are recorded.
    pub(super) recorded: Vec<(Endpoint, Reachability)>,
    /// Calls of other nodes that are lost.
    pub(super) lost: Vec<HeldSlot>,
}

/// The calls of a leadership, by the node that makes them.
pub(super) struct Assignments {
    own: WebhookHandles,
    epoch: u64,
    here: u64,
    callers: Callers,
    /// The streams to the nodes that take calls.
    links: HashMap<u64, mpsc::Sender<DelegatedCall>>,
    /// Calls that were delegated and are not recorded, with their URLs.
    delegated: HashMap<Attempt, (HeldSlot, String)>,
    /// The channel that returns the slots of this node's own calls.
    slots: Slots,
}

impl Assignments {
    pub(super) fn new(own: WebhookHandles, epoch: u64, slots: Slots) -> Self {
        let here = own.this_node.id();
        Assignments {
            own,
            epoch,
            here,
            callers: Callers::new(here),
            links: HashMap::new(),
            delegated: HashMap::new(),
            slots,
        }
    }

    /// The nodes beside this one that take calls.
    pub(super) fn others(&self) -> usize {
        self.callers.others(Instant::now())
    }

    /// Chooses the node that makes the next call, and counts the call.
    pub(super) fn choose_node(&mut self) -> u64 {
        self.callers.choose(Instant::now())
    }

    /// Counts a call that a node has under way.
    pub(super) fn occupy(&mut self, node: u64) {
        self.callers.occupy(node);
    }

    /// A call of a node has ended, or was not granted.
    pub(super) fn release(&mut self, node: u64) {
        self.callers.release(node);
    }

    /// A call of this node has ended.
    pub(super) fn release_own(&mut self) {
        self.callers.release(self.here);
    }

    /// Starts a granted call here, or delegates it.
    pub(super) fn start(&mut self, state: &StateDb, chosen: Chosen, at: GrantedAt, keys: &mut SigningGenerations) {
        let begin_before = at.applied_after + Duration::from_millis(START_WINDOW_MS);
        let (attempt, node, step) = (chosen.attempt, chosen.node, chosen.delivery.step);
        let endpoint = chosen.endpoint;
        let granted = self.granted_call(state, chosen, at.late, keys);
        let call = match granted {
            Some(call) if node == self.here => Call::of(attempt.team, call, &self.own.secrets),
            Some(call) => match self.delegate(node, begin_before, call) {
                Ok(url) => {
                    let held = HeldSlot {
                        attempt,
                        endpoint,
                        node,
                    };
                    self.delegated.insert(attempt, (held, url));
                    return;
                }
                Err(()) => None,
            },
            None => None,
        };
        // This node records it as not sent.
        self.callers.release(node);
        self.callers.occupy(self.here);
        let now = Instant::now();
        self.own.calls.start(Granted {
            attempt,
            endpoint,
            epoch: self.epoch,
            step,
            call,
            begin_before,
            own_lead: true,
            due: now.checked_sub(at.late).unwrap_or(now),
            slots: self.slots.clone(),
        });
    }

    /// Delegates a call to another node and returns its URL. After an error, the call is surely not delegated.
    fn delegate(&self, node: u64, begin_before: Instant, mut call: DelegatedCall) -> Result<String, ()> {
        let now = Instant::now();
        let deadline = self.callers.deadline(node, begin_before, now).ok_or(())?;
        let link = self.links.get(&node).ok_or(())?;
        if now >= begin_before || !self.own.calls.quorum_is_fresh() {
            return Err(());
        }
        call.begin_before_ms = deadline;
        let url = call.delivery.as_ref().map(|delivery| delivery.url.clone());
        link.try_send(call).map_err(|_| ())?;
        self.own.leader.metrics.dispatch.delegated.inc();
        Ok(url.unwrap_or_default())
    }

    /// What the call needs; `None` if it cannot be read, or if its host was called too often.
    fn granted_call(
        &self,
        state: &StateDb,
        chosen: Chosen,
        late: Duration,
        keys: &mut SigningGenerations,
    ) -> Option<DelegatedCall> {
        let (team, number) = (chosen.endpoint.0, chosen.attempt.number);
        let mut delivery = chosen.delivery;
        let mut read = || -> Result<_, Fatal> {
            let message = delivery::message(state, team, &delivery)?;
            Ok(message.zip(Some(keys.of(state, team)?)))
        };
        let (message, signing_generation) = match read() {
            Ok(Some(read)) => read,
            Ok(None) => {
                tracing::error!(%team, number, "reading a delivery failed: its message is missing; please report this");
                return None;
            }
            Err(error) => {
                tracing::error!(%team, number, %error, "reading a delivery failed; the attempt is retried; check the disk");
                return None;
            }
        };
        let wait = self.own.calls.turn_at(&delivery.url)?;
        delivery.claim = Some(Claimed {
            epoch: self.epoch,
            node: chosen.node,
            ..Claimed::default()
        });
        Some(DelegatedCall {
            shard: SHARD,
            team_id: team.to_bytes(),
            delivery: Some(delivery),
            message: Some(message),
            signing_generation,
            begin_before_ms: 0,
            wait_ms: wait.as_micros().div_ceil(1_000) as u64,
            late_ms: late.as_millis() as u64,
        })
    }

    /// Takes note of an event of a stream.
    pub(super) fn note(&mut self, event: LinkEvent) -> Changed {
        let mut changed = Changed::default();
        match event {
            LinkEvent::Opened { node, calls } => {
                self.links.insert(node, calls);
            }
            LinkEvent::Reported { node, report, arrived } => {
                changed.recorded = self.reported(node, report, arrived);
            }
            LinkEvent::Closed { node } => {
                self.leave(node);
                let lost = self.delegated.extract_if(|_, (held, _)| held.node == node);
                changed.lost = lost.map(|(_, (held, _))| held).collect();
                self.close_lost(&changed.lost);
            }
        }
        self.own
            .leader
            .metrics
            .dispatch
            .callers
            .set(1 + self.links.len() as i64);
        changed
    }

    fn reported(&mut self, node: u64, report: CallerReport, arrived: Instant) -> Vec<(Endpoint, Reachability)> {
        match report.leaving {
            true => self.leave(node),
            false => self.callers.reported(node, report.clock_ms, arrived),
        }
        let recorded = report.recorded.into_iter();
        recorded.filter_map(|call| self.recorded(node, &call)).collect()
    }

    fn recorded(&mut self, node: u64, call: &RecordedCall) -> Option<(Endpoint, Reachability)> {
        let attempt = Attempt::from_proto(call.attempt.as_ref()?)?;
        let (held, url) = self.delegated.remove(&attempt)?;
        self.own.calls.open().close(&attempt);
        self.callers.release(node);
        if let Some(exempt) = call.host_is_exempt {
            self.own.calls.note_host(&url, exempt);
        }
        let reachability = match call.reachability() {
            peer::Reachability::Unspecified => Reachability::Untried,
            peer::Reachability::Reached => Reachability::Reached,
            peer::Reachability::Unreachable => Reachability::Unreachable,
        };
        Some((held.endpoint, reachability))
    }

    /// The node takes no more calls. Dropping the sender of its stream tells it so.
    fn leave(&mut self, node: u64) {
        self.links.remove(&node);
        self.callers.left(node);
    }

    fn close_lost(&self, lost: &[HeldSlot]) {
        for HeldSlot { attempt, .. } in lost {
            self.own.calls.open().close(attempt);
        }
        self.own.leader.metrics.dispatch.lost.inc_by(lost.len() as u64);
        if let Some(HeldSlot { node, .. }) = lost.first() {
            tracing::warn!(
                node,
                calls = lost.len(),
                "the connection to a node that makes webhook calls broke; it records their outcomes itself, or takeover closes them"
            );
        }
    }

    /// The leadership is over: the other nodes record their calls without it.
    pub(super) fn end(self) {
        for attempt in self.delegated.keys() {
            self.own.calls.open().close(attempt);
        }
        self.own.leader.metrics.dispatch.callers.set(0);
    }
}

/// When a claim was granted.
#[derive(Clone, Copy)]
pub(super) struct GrantedAt {
    /// Lower bound on the time at which this node applied it.
    pub(super) applied_after: Instant,
    /// How long its delivery was due by then.
    pub(super) late: Duration,
}

/// The signing keys of the teams of one batch, as their numbers.
#[derive(Default)]
pub(super) struct SigningGenerations(HashMap<TeamId, u64>);

impl SigningGenerations {
    fn of(&mut self, state: &StateDb, team: TeamId) -> Result<u64, Fatal> {
        if let Some(generation) = self.0.get(&team) {
            return Ok(*generation);
        }
        let generation = query::team::by_id(state, team)?.map_or(0, |team| team.signing_generation);
        self.0.insert(team, generation);
        Ok(generation)
    }
}
