//! The model of the dispatchers: which events may happen around the replicated state, and in which order.

use std::collections::BTreeSet;

use agentpost_proto::limits;
use agentpost_proto::record::DeliveryState;
use stateright::Model;

use super::Setup;
use super::replica::{Replicas, Standing};

/// The maximal number of deliveries in a model. They are numbered from 1.
pub const DELIVERIES_MAX: usize = 2;
const NODES: u8 = 3;
const LAST_DELAY_MS: u64 = limits::RETRY_DELAYS_MS[limits::RETRY_DELAYS_MS.len() - 1];

/// An attempt and the epoch that claimed it, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Attempt {
    /// The epoch that claimed it.
    pub epoch: u8,
    /// The number of the delivery.
    pub delivery: u8,
    /// The number of the attempt.
    pub no: u8,
}

/// The result of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Answer {
    /// A status 2xx.
    Ok,
    /// A failure that is retried.
    Failed,
    /// The call never began.
    NotSent,
}

/// A log entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Entry {
    /// The first entry of a new leader.
    Begin { node: u8 },
    /// A tick, which only carries time.
    Tick,
    /// Claims an attempt for the call of a node.
    Claim { of: Attempt, node: u8 },
    /// Reports the outcome of an attempt.
    Outcome(Attempt, Answer),
    /// Closes an attempt without an outcome, on behalf of `epoch`.
    Takeover { epoch: u8, of: Attempt },
}

/// The progress of the dispatcher with one of its attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// The node has the grant. The call may begin within this time, which counts from the leader's apply of the claim.
    /// The leader also checks that it still leads; another node cannot.
    Granted { window_ms: u64, leads: bool },
    /// The check of the clock and the leadership succeeded, and the process stopped right after it.
    Checked,
    /// The call is running, and ends within this time.
    Running { left_ms: u64 },
    /// The outcome must be reported.
    Ended(Answer),
}

/// An attempt in the memory of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Call {
    /// The node.
    pub node: u8,
    /// The attempt.
    pub attempt: Attempt,
    /// Its progress.
    pub phase: Phase,
}

/// Rules that can be weakened, to show that the model notices it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Weakness {
    /// `apply` takes over claims of any age.
    EarlyTakeover,
    /// `apply` reuses the number of an attempt with an unknown outcome.
    NumbersReused,
    /// `apply` does not compare the attempt number of an outcome.
    OutcomesOfAnyNumber,
    /// `apply` records an outcome even if the attempt is not claimed any more.
    OutcomesAfterTheEnd,
    /// `apply` does not compare the epoch of a claim.
    ClaimsOfOldEpochs,
    /// The dispatcher starts calls without checking the clock and its leadership.
    NoLookBeforeTheCall,
    /// The dispatcher does not take over claims of its own epoch.
    OwnClaimsForgotten,
}

/// Violations that show in the events, not in the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// An attempt reaches the receiver twice.
    D1,
    /// An attempt leaves Claimed twice.
    D4,
    /// There are more calls than recorded attempts.
    D6,
    /// A call begins before its delay is over.
    D8,
    /// A claim of an epoch is granted after a later epoch began.
    D9,
    /// Two calls of a delivery run at a time or in the wrong order, although no process was stopped.
    OneCallAtATime,
}

/// The leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Leader {
    node: u8,
    /// The epoch, or 0 before its `BeginEpoch` is applied.
    epoch: u8,
}

/// One state of the whole model.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    /// The replicated state.
    pub replica: u32,
    leader: Leader,
    /// How many epochs have begun.
    epochs: u8,
    /// How many nodes have ever led or been given a call. The other ones are interchangeable.
    known: u8,
    /// The node whose process is stopped, and the epoch that it thinks it leads.
    stopped: Option<(u8, u8)>,
    /// Time that the leader has not stamped yet.
    unstamped_ms: u64,
    /// The attempts in the memory of the nodes.
    calls: BTreeSet<Call>,
    /// The attempt numbers that reached the receiver, as bits.
    started: [u32; DELIVERIES_MAX],
    /// The real time since the last recorded failure.
    failed_ago_ms: [u64; DELIVERIES_MAX],
    epochs_left: u8,
    stops_left: u8,
    lost_claims_left: u8,
    lost_outcomes_left: u8,
    /// The first violation.
    pub broken: Option<Rule>,
}

/// One step of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Action {
    /// The leader proposes an entry, which is applied. The reply may be lost, or the grant on its way to another node.
    Propose { entry: Entry, answered: bool },
    /// The check before the call succeeds, and the call begins.
    Start(Call),
    /// The check before the call succeeds, but the process is stopped before the call begins.
    StopBeforeCall(Call),
    /// The receiver answers, the call times out, or the check before the call fails. The outcome cannot be reported
    /// now.
    End(Call, Answer),
    /// The same, and the outcome is applied. The reply may be lost.
    Report { call: Call, answer: Answer, answered: bool },
    /// The task ends and loses what it knows.
    Lose(Call),
    /// Another term begins, perhaps with the same leader.
    Elect(u8),
    /// The new leader's epoch begins.
    Begin,
    /// A process is stopped.
    Stop(u8),
    /// The stopped process continues, perhaps with a proposal of the epoch that it believes to lead.
    Continue(Option<Entry>),
    /// Time passes.
    Wait(u64),
}

/// The model, with the states of its replicas.
pub struct Dispatch {
    /// The states of the replicas, shared by all states of the model.
    pub replicas: Replicas,
    setup: Setup,
    weakness: Option<Weakness>,
}

impl Dispatch {
    /// The weakened rule, if any.
    pub fn new(setup: Setup, weakness: Option<Weakness>) -> Self {
        Dispatch {
            replicas: Replicas::new(setup.failed_before, weakness),
            setup,
            weakness,
        }
    }

    fn weak(&self, weakness: Weakness) -> bool {
        self.weakness == Some(weakness)
    }

    /// Whether every delivery has ended.
    pub fn is_over(&self, world: &World) -> bool {
        !self.replicas.standings(world.replica).iter().any(Standing::is_open)
    }

    /// Whether one delivery ended delivered and another one dead.
    pub fn ends_differ(&self, world: &World) -> bool {
        let standings = self.replicas.standings(world.replica);
        let any = |state| standings.iter().any(|s| s.state == state);
        any(DeliveryState::Delivered) && (any(DeliveryState::Dead) || standings.len() == 1)
    }

    /// The node that makes a call of this leader. If calls are delegated, the attempts of a delivery alternate between
    /// the leader and another node, and two deliveries are called by different nodes: the model need not explore every
    /// choice.
    fn caller(&self, leader: u8, of: Attempt) -> u8 {
        match (of.delivery + of.no) % 2 {
            0 if self.setup.delegated => u8::from(leader == 0),
            _ => leader,
        }
    }

    fn may_start(&self, world: &World, call: &Call) -> bool {
        let own = Leader {
            node: call.node,
            epoch: call.attempt.epoch,
        };
        match call.phase {
            Phase::Granted { window_ms, leads } => (!leads || world.leader == own) && window_ms > 0,
            _ => false,
        }
    }

    /// What the dispatcher would propose now.
    fn work(&self, world: &World, standings: &[Standing], Leader { node, epoch }: Leader) -> Vec<Entry> {
        let mut work = Vec::new();
        if epoch == 0 || world.stopped.is_some_and(|(stopped, _)| stopped == node) {
            return work;
        }
        for (delivery, standing) in (1..).zip(standings.iter()) {
            let no = standing.attempt_no;
            let at_work = |c: &Call| c.node == node && (c.attempt.delivery, c.attempt.no) == (delivery, no);
            match standing.claim {
                None if standing.state == DeliveryState::Scheduled && standing.due_in_ms == 0 => {
                    let no = no + 1;
                    let of = Attempt { epoch, delivery, no };
                    work.push(Entry::Claim {
                        of,
                        node: self.caller(node, of),
                    });
                }
                Some(claim) if claim.late_in_ms == 0 || self.weak(Weakness::EarlyTakeover) => {
                    let own = claim.epoch == epoch;
                    if own && (world.calls.iter().any(at_work) || self.weak(Weakness::OwnClaimsForgotten)) {
                        continue;
                    }
                    let of = Attempt {
                        epoch: claim.epoch,
                        delivery,
                        no,
                    };
                    work.push(Entry::Takeover { epoch, of });
                }
                _ => {}
            }
        }
        work
    }

    fn steps_of_calls(&self, world: &World, leader_works: bool, actions: &mut Vec<Action>) {
        let looks = !self.weak(Weakness::NoLookBeforeTheCall);
        for call in world.calls.iter().filter(|call| world.works(call.node)) {
            let answers: &[Answer] = match call.phase {
                Phase::Granted { .. } if looks && !self.may_start(world, call) => &[Answer::NotSent],
                Phase::Granted { .. } | Phase::Checked => {
                    actions.push(Action::Start(*call));
                    if call.phase != Phase::Checked && world.stops_left > 0 {
                        actions.push(Action::StopBeforeCall(*call));
                    }
                    continue;
                }
                Phase::Running { .. } => &[Answer::Ok, Answer::Failed],
                Phase::Ended(answer) => &[answer],
            };
            for answer in answers.iter().copied() {
                let call = *call;
                if leader_works {
                    actions.push(Action::Report {
                        call,
                        answer,
                        answered: true,
                    });
                    if world.lost_outcomes_left > 0 {
                        actions.push(Action::Report {
                            call,
                            answer,
                            answered: false,
                        });
                    }
                } else if call.phase != Phase::Ended(answer) {
                    actions.push(Action::End(call, answer));
                }
            }
            if world.lost_outcomes_left > 0 && matches!(call.phase, Phase::Running { .. }) {
                actions.push(Action::Lose(*call));
            }
        }
    }

    fn faults(&self, world: &World, actions: &mut Vec<Action>) {
        if world.epochs_left > 0 {
            let known = (world.known + 1).min(NODES);
            actions.extend(
                (0..known)
                    .filter(|n| world.works(*n) && world.leader.node != *n)
                    .map(Action::Elect),
            );
        }
        if world.stops_left > 0 {
            let works = |node: &u8| world.leader.node == *node || world.calls.iter().any(|c| c.node == *node);
            actions.extend((0..world.known).filter(works).map(Action::Stop));
        }
    }

    /// The time until which nothing happens without an event, or `None` if something must happen now.
    fn wait(&self, world: &World, standings: &[Standing]) -> Option<u64> {
        let mut next: Vec<u64> = Vec::new();
        for call in &world.calls {
            let works = world.works(call.node);
            match call.phase {
                Phase::Granted { window_ms, .. } => {
                    if works && !self.weak(Weakness::NoLookBeforeTheCall) {
                        return None;
                    }
                    next.push(window_ms);
                }
                Phase::Checked | Phase::Running { left_ms: 0 } if works => return None,
                Phase::Running { left_ms } => next.push(left_ms),
                Phase::Checked | Phase::Ended(_) => {}
            }
        }
        if world.leader.epoch != 0 {
            for standing in standings {
                let at = standing.claim.map_or(standing.due_in_ms, |claim| claim.late_in_ms);
                next.push(at.saturating_sub(world.unstamped_ms));
            }
        }
        next.into_iter().filter(|ms| *ms > 0).min()
    }

    /// Appends and applies an entry, and records violations.
    fn append(&self, world: &mut World, entry: Entry, elapsed_ms: u64) -> bool {
        let before = self.replicas.standings(world.replica);
        let (replica, done) = self.replicas.apply(world.replica, entry, elapsed_ms);
        world.replica = replica;
        match entry {
            Entry::Claim { of, .. } if done && of.epoch < world.epochs => world.breaks(Rule::D9),
            Entry::Takeover { of: a, .. } | Entry::Outcome(a, _) if done => {
                let standing = &before[usize::from(a.delivery) - 1];
                if standing.state != DeliveryState::Claimed || standing.attempt_no != a.no {
                    world.breaks(Rule::D4);
                }
            }
            _ => {}
        }
        if let (Entry::Outcome(a, Answer::Failed), true) = (entry, done) {
            world.failed_ago_ms[usize::from(a.delivery) - 1] = 0;
        }
        done
    }

    fn propose(&self, world: &mut World, by: u8, entry: Entry, answered: bool) {
        let done = self.append(world, entry, 0);
        if let (Entry::Claim { of: attempt, node }, true, true) = (entry, done, answered) {
            let phase = Phase::Granted {
                window_ms: limits::START_WINDOW_MS,
                leads: node == by,
            };
            world.known = world.known.max(node + 1);
            world.calls.insert(Call { node, attempt, phase });
        }
    }

    fn start(&self, world: &mut World, call: Call) {
        let Attempt { delivery, no, .. } = call.attempt;
        let at = usize::from(delivery) - 1;
        let standing = &self.replicas.standings(world.replica)[at];
        if world.started[at] & (1 << no) != 0 {
            world.breaks(Rule::D1);
        }
        let delay = |step: u32| limits::RETRY_DELAYS_MS[step as usize - 1];
        if standing.attempt_no == no && standing.step > 0 && world.failed_ago_ms[at] < delay(standing.step) {
            world.breaks(Rule::D8);
        }
        let running = |c: &Call| c.attempt.delivery == delivery && matches!(c.phase, Phase::Running { .. });
        let never_stopped = world.stops_left == self.setup.stops;
        if never_stopped && (world.calls.iter().any(running) || world.started[at] >> no > 1) {
            world.breaks(Rule::OneCallAtATime);
        }
        world.started[at] |= 1 << no;
        let [delivered, failed, unknown, _] = standing.closed;
        let claimed = u32::from(standing.claim.is_some());
        if standing.is_open() && world.started[at].count_ones() > delivered + failed + unknown + claimed {
            world.breaks(Rule::D6);
        }
        world.proceed(
            call,
            Phase::Running {
                left_ms: limits::ATTEMPT_TIMEOUT_MS,
            },
        );
    }

    fn pass(&self, world: &mut World, ms: u64) {
        world.calls = std::mem::take(&mut world.calls)
            .into_iter()
            .map(|call| Call {
                phase: match call.phase {
                    Phase::Granted { window_ms, leads } => Phase::Granted {
                        window_ms: window_ms.saturating_sub(ms),
                        leads,
                    },
                    Phase::Running { left_ms } => Phase::Running {
                        left_ms: left_ms.saturating_sub(ms),
                    },
                    other => other,
                },
                ..call
            })
            .collect();
        for ago in &mut world.failed_ago_ms {
            *ago = (*ago + ms).min(LAST_DELAY_MS);
        }
        if world.leader.epoch != 0 {
            world.unstamped_ms += ms;
            self.stamp(world);
        }
    }

    /// The entries of a running leader carry its time. A stopped one catches up when it continues.
    fn stamp(&self, world: &mut World) {
        if world.works(world.leader.node) && world.unstamped_ms > 0 {
            let elapsed_ms = std::mem::take(&mut world.unstamped_ms);
            self.append(world, Entry::Tick, elapsed_ms);
        }
    }
}

impl World {
    fn works(&self, node: u8) -> bool {
        self.stopped.is_none_or(|(stopped, _)| stopped != node)
    }

    fn stop(&mut self, node: u8) {
        let Leader { node: leader, epoch } = self.leader;
        self.stopped = Some((node, if leader == node { epoch } else { 0 }));
        self.stops_left -= 1;
    }

    /// Removes what can have no effect any more, so that states with the same future are equal.
    fn forget(&mut self, standings: &[Standing]) {
        for (delivery, standing) in (1..).zip(standings.iter()) {
            if !standing.is_open() && !self.calls.iter().any(|c| c.attempt.delivery == delivery) {
                self.started[usize::from(delivery) - 1] = 0;
                self.failed_ago_ms[usize::from(delivery) - 1] = LAST_DELAY_MS;
            }
        }
    }

    fn breaks(&mut self, rule: Rule) {
        self.broken.get_or_insert(rule);
    }

    fn proceed(&mut self, call: Call, phase: Phase) {
        self.calls.remove(&call);
        self.calls.insert(Call { phase, ..call });
    }
}

impl Model for Dispatch {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World {
            replica: 0,
            leader: Leader { node: 0, epoch: 1 },
            epochs: 1,
            known: 1,
            stopped: None,
            unstamped_ms: 0,
            calls: BTreeSet::new(),
            started: [0; DELIVERIES_MAX],
            failed_ago_ms: [LAST_DELAY_MS; DELIVERIES_MAX],
            epochs_left: self.setup.epochs,
            stops_left: self.setup.stops,
            lost_claims_left: self.setup.losses,
            lost_outcomes_left: self.setup.losses,
            broken: None,
        }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        let leader_works = world.works(world.leader.node);
        let over = self.is_over(world);
        if world.broken.is_some() || over && world.calls.is_empty() {
            return;
        }
        let standings = self.replicas.standings(world.replica);
        let work = self.work(world, &standings, world.leader);
        for entry in &work {
            let entry = *entry;
            actions.push(Action::Propose { entry, answered: true });
            if world.lost_claims_left > 0 && matches!(entry, Entry::Claim { .. }) {
                actions.push(Action::Propose { entry, answered: false });
            }
        }
        if leader_works && world.leader.epoch == 0 {
            actions.push(Action::Begin);
        }
        self.steps_of_calls(world, leader_works, actions);
        if let Some((node, epoch)) = world.stopped {
            actions.push(Action::Continue(None));
            if world.leader != (Leader { node, epoch }) {
                let back = World {
                    stopped: None,
                    ..world.clone()
                };
                let work = self.work(&back, &standings, Leader { node, epoch });
                actions.extend(work.into_iter().map(|entry| Action::Continue(Some(entry))));
            }
        }
        if !over {
            self.faults(world, actions);
            let has_news = |c: &Call| world.works(c.node) && matches!(c.phase, Phase::Ended(_));
            let prompt = work.is_empty() && !(leader_works && world.calls.iter().any(has_news));
            actions.extend(self.wait(world, &standings).filter(|_| prompt).map(Action::Wait));
        }
    }

    fn next_state(&self, last: &World, action: Action) -> Option<World> {
        let mut world = last.clone();
        match action {
            Action::Propose { entry, answered } => {
                world.lost_claims_left -= u8::from(!answered);
                self.propose(&mut world, last.leader.node, entry, answered);
            }
            Action::Start(call) => self.start(&mut world, call),
            Action::StopBeforeCall(call) => {
                world.proceed(call, Phase::Checked);
                world.stop(call.node);
            }
            Action::End(call, answer) => world.proceed(call, Phase::Ended(answer)),
            Action::Report { call, answer, answered } => {
                self.append(&mut world, Entry::Outcome(call.attempt, answer), 0);
                if answered {
                    world.calls.remove(&call);
                } else {
                    world.proceed(call, Phase::Ended(answer));
                    world.lost_outcomes_left -= 1;
                }
            }
            Action::Lose(call) => {
                world.calls.remove(&call);
                world.lost_outcomes_left -= 1;
            }
            Action::Elect(node) => {
                world.leader = Leader { node, epoch: 0 };
                world.known = world.known.max(node + 1);
                world.epochs_left -= 1;
                world.unstamped_ms = 0;
            }
            Action::Begin => {
                let node = world.leader.node;
                self.append(&mut world, Entry::Begin { node }, 0);
                world.epochs += 1;
                world.leader.epoch = world.epochs;
            }
            Action::Stop(node) => world.stop(node),
            Action::Continue(proposal) => {
                let (node, _) = world.stopped.take()?;
                self.stamp(&mut world);
                if let Some(entry) = proposal {
                    self.propose(&mut world, node, entry, true);
                }
            }
            Action::Wait(ms) => self.pass(&mut world, ms),
        }
        world.forget(&self.replicas.standings(world.replica));
        Some(world)
    }

    fn properties(&self) -> Vec<stateright::Property<Self>> {
        super::properties()
    }
}
