//! Checkers, one property per file. A checker reads what a run recorded and describes every violation. Each takes at
//! most O(n log n) time, and none needs a cluster: a run can be checked again at any time.
//!
//! ```text
//!  history.jsonl ──► mail.rs: mailboxes, texts as numbers ──► order.rs: the order in the end, what is known when
//!                ├─► moments: every operation, without texts          │
//!                └─► operations: those of other things, whole         ▼
//!  leaders.jsonl, faults.jsonl, run.json, replicas.json ──────► checkers, coverage.rs, figures.rs ──► verdict
//! ```

#[cfg(test)]
mod by_hand;
pub mod coverage;
pub mod crashes;
pub mod dispatch;
pub mod fan_out;
pub mod figures;
pub mod inbox_order;
pub mod isolation;
pub mod linearizable;
pub mod liveness;
pub mod lost;
#[cfg(test)]
pub mod made_up;
pub mod mail;
pub mod members;
pub mod monotonic;
pub mod names;
pub mod order;
pub mod quota;
pub mod raft;
pub mod read_marks;
pub mod recovery;
pub mod registers;
pub mod replicas;
pub mod revocation;
pub mod rolling;
mod wgl;
pub mod ws_stream;

use std::path::Path;

use anyhow::Result;

use self::mail::{End, Mail, NEVER};
use self::order::{Known, Order};
use crate::deliveries;
use crate::faults::{self, Fault};
use crate::history::{self, Op, Operation};
use crate::recovery::{self as recoveries, Recovery};
use crate::run::{self, REPLICAS, RUN, Replicas, Run};
use crate::scenario;
use crate::verdict::{Check, Verdict};
use crate::watch::{self, LEADERS, Reign, Sample};
use crate::workload::mailbox;

const CHECKERS: &[fn(&Evidence) -> Check] = &[
    lost::check,
    inbox_order::check,
    linearizable::check,
    monotonic::check,
    read_marks::check,
    replicas::check,
    raft::check,
    crashes::check,
    liveness::check,
    rolling::check,
    dispatch::check,
    ws_stream::check,
    fan_out::check,
    quota::check,
    revocation::check,
    registers::check,
    isolation::check,
    recovery::check,
    members::check,
];

/// Everything that a run recorded.
pub struct Evidence {
    pub run: Run,
    /// The injected faults, sorted by their begin.
    pub faults: Vec<Fault>,
    /// Whether the states of all replicas were equal at the end.
    pub replicas: Replicas,
    /// The states that the nodes reported, sorted by arrival.
    pub samples: Vec<Sample>,
    /// The periods of leadership.
    pub reigns: Vec<Reign>,
    /// A summary of every operation of the clients, sorted by the begin.
    pub moments: Vec<Moment>,
    /// The operations of the clients, sorted by the begin, except those on the inboxes of [`mailbox`]: they would not
    /// fit into memory and are only in `mail`.
    pub operations: Vec<Operation>,
    /// The history of all mailboxes in a compact form.
    pub mail: Mail,
    /// The final order of each inbox.
    pub order: Order,
    /// For each inbox, which messages were known to exist at what time.
    pub known: Known,
    /// The final state of webhook deliveries.
    pub dispatch: deliveries::Evidence,
    /// How nodes recovered from a power loss or from damaged files.
    pub recoveries: Vec<Recovery>,
}

/// An operation without its arguments and results.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    pub op: Op,
    pub end: End,
    /// The number of messages in the operation, at least 1.
    pub count: u32,
    pub began: u64,
    /// When it ended; [`NEVER`] if it did not.
    pub ended: u64,
}

impl Moment {
    /// Whether the operation changes what the cluster stores.
    pub fn is_write(&self) -> bool {
        matches!(
            self.op,
            Op::Send
                | Op::Ack
                | Op::Subscribe
                | Op::Unsubscribe
                | Op::Publish
                | Op::Spend
                | Op::KeyCreate
                | Op::KeyRevoke
        )
    }
}

/// Collects the operations of a history one by one.
#[derive(Default)]
pub struct Clients {
    moments: Vec<Moment>,
    operations: Vec<Operation>,
    mail: Mail,
}

impl Clients {
    /// Adds an operation that ended.
    pub fn take(&mut self, operation: Operation) {
        self.moments.push(Moment {
            op: operation.op,
            end: mail::end_of(&operation),
            count: operation.asked.items.len().max(1) as u32,
            began: operation.began,
            ended: operation.ended.unwrap_or(NEVER),
        });
        self.mail.take(&operation);
        if !operation.k.starts_with(mailbox::PREFIX) {
            self.operations.push(operation);
        }
    }
}

impl Evidence {
    /// Reads the directory of a run.
    pub fn load(dir: &Path) -> Result<Self> {
        let mut clients = Clients::default();
        history::each(dir, |operation| clients.take(operation))?;
        let watched = dir.join(LEADERS).exists();
        let samples = if watched { watch::load(dir)? } else { Vec::new() };
        let mut evidence = Evidence::of(
            run::read(&dir.join(RUN))?,
            clients,
            faults::load(dir)?,
            run::read(&dir.join(REPLICAS))?,
            samples,
        );
        evidence.dispatch = deliveries::Evidence::load(dir, &evidence.faults, evidence.leader_changes())?;
        evidence.recoveries = recoveries::load(dir)?;
        Ok(evidence)
    }

    pub fn of(run: Run, clients: Clients, faults: Vec<Fault>, replicas: Replicas, samples: Vec<Sample>) -> Self {
        let Clients {
            mut moments,
            mut operations,
            mail,
        } = clients;
        moments.sort_by_key(|moment| moment.began);
        operations.sort_by_key(|operation| operation.began);
        let order = Order::of(&mail);
        let known = Known::of(&mail, &order);
        Evidence {
            run,
            faults,
            replicas,
            reigns: watch::reigns(&samples),
            samples,
            moments,
            operations,
            mail,
            order,
            known,
            dispatch: deliveries::Evidence::default(),
            recoveries: Vec::new(),
        }
    }

    /// How often the leader changed.
    pub fn leader_changes(&self) -> u64 {
        self.reigns.len().saturating_sub(1) as u64
    }

    /// The leader at a point in time, as far as it was observed.
    pub fn leader_at(&self, time: u64) -> Option<usize> {
        let began = self.reigns.partition_point(|reign| reign.from <= time);
        Some(self.reigns[began.checked_sub(1)?].node)
    }
}

/// Runs every checker over the records of a run.
pub fn check(evidence: &Evidence) -> Verdict {
    let checks = CHECKERS.iter().map(|check| check(evidence)).collect();
    let cover = scenario::named(&evidence.run.scenario).map(|scenario| scenario.cover);
    let mut coverage = cover.map(|cover| coverage::check(evidence, &cover)).unwrap_or_default();
    coverage.extend(dispatch::coverage(evidence));
    let mut samples = figures::samples(evidence);
    samples.extend(dispatch::samples(evidence));
    let mut figures = figures::figures(evidence, &samples);
    figures.extend(dispatch::figures(evidence));
    figures.extend(ws_stream::figures(evidence));
    recovery::figures(evidence, &mut figures, &mut samples);
    Verdict {
        samples,
        ..Verdict::of(checks, coverage, figures)
    }
}

/// Formats a time of the run for people: `12.345 s`.
fn seconds(ns: u64) -> String {
    format!("{:.3} s", ns as f64 / 1e9)
}
