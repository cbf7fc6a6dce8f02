//! Builders of recorded runs for the tests of checkers. Times are milliseconds since the start of the run.

use std::ops::Range;

use super::evidence::{Evidence, HistoryCollector};
use crate::record::faults::{Fault, FaultState};
use crate::record::history::{Fields, Item, Op, Operation, Outcome};
use crate::record::leaders::NodeState;
use crate::record::run::{Replicas, RequiredCoverage, Run};

/// A valid run of three nodes, healed at 1,000 ms, to which operations and faults are added.
pub struct RunBuilder {
    run: Run,
    operations: Vec<Operation>,
    faults: Vec<Fault>,
    replicas: Replicas,
    node_states: Vec<NodeState>,
}

const MS: u64 = 1_000_000;

impl Default for RunBuilder {
    fn default() -> Self {
        RunBuilder {
            run: Run {
                scenario: "none".to_owned(),
                title: String::new(),
                required: RequiredCoverage::default(),
                seed: 1,
                length_s: 1.0,
                nodes: 3,
                command: String::new(),
                git: String::new(),
                wall_ms: 0,
                faults_began: 0,
                healed: 1_000 * MS,
                crashes: Vec::new(),
            },
            operations: Vec::new(),
            faults: Vec::new(),
            replicas: Replicas {
                same: true,
                difference: String::new(),
            },
            node_states: Vec::new(),
        }
    }
}

impl RunBuilder {
    pub fn run(mut self, change: impl FnOnce(&mut Run)) -> Self {
        change(&mut self.run);
        self
    }

    /// Makes the replicas differ at the end.
    pub fn diverged(mut self) -> Self {
        self.replicas.same = false;
        self
    }

    /// Adds an operation that took effect.
    pub fn ok(self, time: Range<u64>, op: Op, k: &str, asked: Fields, answered: Fields) -> Self {
        self.operation(time, op, k, asked, Outcome::Ok(answered))
    }

    /// Adds an operation that certainly did not take effect.
    pub fn fail(self, time: Range<u64>, op: Op, k: &str, asked: Fields) -> Self {
        self.operation(time, op, k, asked, Outcome::Fail("no".to_owned()))
    }

    /// Adds an operation with an unknown outcome.
    pub fn info(self, time: Range<u64>, op: Op, k: &str, asked: Fields) -> Self {
        self.operation(time, op, k, asked, Outcome::Info("timeout".to_owned()))
    }

    /// Adds an operation of lane 0 at node 1; [`RunBuilder::at`] and [`RunBuilder::by`] change that.
    pub fn operation(mut self, time: Range<u64>, op: Op, k: &str, asked: Fields, outcome: Outcome) -> Self {
        self.operations.push(Operation {
            lane: 0,
            node: Some(1),
            op,
            k: k.to_owned(),
            asked,
            began: time.start * MS,
            ended: Some(time.end * MS),
            outcome,
        });
        self
    }

    pub fn with(mut self, operations: Vec<Operation>) -> Self {
        self.operations.extend(operations);
        self
    }

    /// Sets the node of the last operation.
    pub fn at(mut self, node: usize) -> Self {
        if let Some(last) = self.operations.last_mut() {
            last.node = Some(node);
        }
        self
    }

    /// Sets the lane of the last operation.
    pub fn by(mut self, lane: u32) -> Self {
        if let Some(last) = self.operations.last_mut() {
            last.lane = lane;
        }
        self
    }

    /// Makes every node show these messages `(id, key)` in an inbox at the end.
    pub fn audit(mut self, inbox: &str, messages: &[(&str, &str)]) -> Self {
        for node in 1..=self.run.nodes {
            self = self
                .ok(2_000..2_001, Op::Audit, inbox, Fields::default(), listed(messages))
                .at(node);
        }
        self
    }

    /// Adds a fault that happened.
    pub fn fault(mut self, kind: &str, nodes: &[usize], time: Range<u64>) -> Self {
        self.faults.push(Fault {
            kind: kind.to_owned(),
            nodes: nodes.to_vec(),
            note: String::new(),
            cut_links: Vec::new(),
            members: None,
            began: time.start * MS,
            ended: time.end * MS,
            state: FaultState::Installed,
        });
        self
    }

    /// Adds states that nodes reported.
    pub fn node_states(mut self, states: impl IntoIterator<Item = NodeState>) -> Self {
        self.node_states.extend(states);
        self
    }

    pub fn evidence(self) -> Evidence {
        let mut operations = self.operations;
        operations.sort_by_key(|operation| operation.ended);
        let mut clients = HistoryCollector::default();
        operations.into_iter().for_each(|operation| clients.take(operation));
        Evidence::of(self.run, clients, self.faults, self.replicas, self.node_states)
    }
}

/// Messages `(id, key)`.
pub fn listed(messages: &[(&str, &str)]) -> Fields {
    let items = messages.iter().map(|(id, key)| Item {
        id: (*id).to_owned(),
        key: (*key).to_owned(),
        seq: None,
    });
    Fields::items(items.collect())
}

/// A reported state: the node's term, and whether it leads.
pub fn node_state(t: u64, node: usize, term: u64, leads: bool) -> NodeState {
    NodeState {
        t: t * MS,
        asked: t * MS,
        node,
        term,
        leads,
        last: 1,
        ..NodeState::default()
    }
}
