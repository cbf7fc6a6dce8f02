//! Builders of recorded runs for the tests of checkers. Times are milliseconds since the start of the run.

use std::ops::Range;

use super::{Clients, Evidence};
use crate::faults::{Fault, State};
use crate::history::{Fields, Item, Op, Operation, Outcome};
use crate::run::{Replicas, Run};
use crate::watch::Sample;

/// A valid run of three nodes, healed at 1,000 ms, to which operations and faults are added.
pub struct Story {
    run: Run,
    operations: Vec<Operation>,
    faults: Vec<Fault>,
    replicas: Replicas,
    samples: Vec<Sample>,
}

const MS: u64 = 1_000_000;

impl Default for Story {
    fn default() -> Self {
        Story {
            run: Run {
                scenario: "none".to_owned(),
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
                seen: String::new(),
            },
            samples: Vec::new(),
        }
    }
}

impl Story {
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

    /// Adds an operation of lane 0 at node 1; [`Story::at`] and [`Story::by`] change that.
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
            began: time.start * MS,
            ended: time.end * MS,
            state: State::Installed,
        });
        self
    }

    /// Adds states that nodes reported.
    pub fn samples(mut self, samples: impl IntoIterator<Item = Sample>) -> Self {
        self.samples.extend(samples);
        self
    }

    pub fn evidence(self) -> Evidence {
        let mut operations = self.operations;
        operations.sort_by_key(|operation| operation.ended);
        let mut clients = Clients::default();
        operations.into_iter().for_each(|operation| clients.take(operation));
        Evidence::of(self.run, clients, self.faults, self.replicas, self.samples)
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
pub fn sample(t: u64, node: usize, term: u64, leads: bool) -> Sample {
    Sample {
        t: t * MS,
        asked: t * MS,
        node,
        term,
        leads,
        last: 1,
        ..Sample::default()
    }
}
