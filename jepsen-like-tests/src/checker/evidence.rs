//! Everything that a run recorded, in the form that checkers need.

use std::path::Path;

use anyhow::Result;

use super::mail::MailHistory;
use super::order::{InboxOrders, KnownPrefixes};
use crate::record::deliveries::DeliveryEvidence;
use crate::record::faults::{self, Fault};
use crate::record::history::{self, NEVER, Op, Operation, OutcomeKind};
use crate::record::leaders::{self, LEADERS, Leadership, NodeState};
use crate::record::mailbox;
use crate::record::recoveries::{self, Recovery};
use crate::record::run::{self, REPLICAS, RUN, Replicas, Run};

/// Everything that a run recorded.
pub struct Evidence {
    pub run: Run,
    /// The injected faults, sorted by their begin.
    pub faults: Vec<Fault>,
    /// Whether the states of all replicas were equal at the end.
    pub replicas: Replicas,
    /// The states that the nodes reported, sorted by arrival.
    pub node_states: Vec<NodeState>,
    /// The periods of leadership.
    pub leaderships: Vec<Leadership>,
    /// A summary of every operation of the clients, sorted by the begin.
    pub summaries: Vec<OperationSummary>,
    /// The operations of the clients, sorted by the begin, except those on the inboxes of the mailbox workloads: they would not
    /// fit into memory and are only in `mail`.
    pub operations: Vec<Operation>,
    /// The history of all mailboxes in a compact form.
    pub mail: MailHistory,
    /// The final order of each inbox.
    pub order: InboxOrders,
    /// For each inbox, which messages were known to exist at what time.
    pub known: KnownPrefixes,
    /// The final state of webhook deliveries.
    pub dispatch: DeliveryEvidence,
    /// How nodes recovered from a power loss or from damaged files.
    pub recoveries: Vec<Recovery>,
}

/// An operation without its arguments and results.
#[derive(Debug, Clone, Copy)]
pub struct OperationSummary {
    pub op: Op,
    pub outcome: OutcomeKind,
    /// The number of messages in the operation, at least 1.
    pub count: u32,
    pub began: u64,
    /// When it ended; [`NEVER`] if it did not.
    pub ended: u64,
}

impl OperationSummary {
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
pub struct HistoryCollector {
    summaries: Vec<OperationSummary>,
    operations: Vec<Operation>,
    mail: MailHistory,
}

impl HistoryCollector {
    /// Adds an operation that ended.
    pub fn take(&mut self, operation: Operation) {
        self.summaries.push(OperationSummary {
            op: operation.op,
            outcome: operation.outcome.kind(),
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
        let mut clients = HistoryCollector::default();
        history::each(dir, |operation| clients.take(operation))?;
        let watched = dir.join(LEADERS).exists();
        let node_states = if watched { leaders::load(dir)? } else { Vec::new() };
        let mut evidence = Evidence::of(
            run::read(&dir.join(RUN))?,
            clients,
            faults::load(dir)?,
            run::read(&dir.join(REPLICAS))?,
            node_states,
        );
        evidence.dispatch = DeliveryEvidence::load(dir, &evidence.faults, evidence.leader_changes())?;
        evidence.recoveries = recoveries::load(dir)?;
        Ok(evidence)
    }

    pub fn of(
        run: Run,
        clients: HistoryCollector,
        faults: Vec<Fault>,
        replicas: Replicas,
        node_states: Vec<NodeState>,
    ) -> Self {
        let HistoryCollector {
            mut summaries,
            mut operations,
            mail,
        } = clients;
        summaries.sort_by_key(|moment| moment.began);
        operations.sort_by_key(|operation| operation.began);
        let order = InboxOrders::of(&mail);
        let known = KnownPrefixes::of(&mail, &order);
        Evidence {
            run,
            faults,
            replicas,
            leaderships: leaders::leaderships(&node_states),
            node_states,
            summaries,
            operations,
            mail,
            order,
            known,
            dispatch: DeliveryEvidence::default(),
            recoveries: Vec::new(),
        }
    }

    /// How often the leader changed.
    pub fn leader_changes(&self) -> u64 {
        self.leaderships.len().saturating_sub(1) as u64
    }

    /// The leader at a point in time, as far as it was observed.
    pub fn leader_at(&self, time: u64) -> Option<usize> {
        let began = self.leaderships.partition_point(|leadership| leadership.from <= time);
        Some(self.leaderships[began.checked_sub(1)?].node)
    }
}

/// Formats a time of the run for people: `12.345 s`.
pub fn seconds(ns: u64) -> String {
    format!("{:.3} s", ns as f64 / 1e9)
}
