//! The batching of acks before they are replicated.
//!
//! A client may ack every event, but a cursor needs only the highest ack. So a table keeps one mark per cursor, and a
//! worker proposes the whole table as one operation, at most every 50 ms. Acks are idempotent, so the worker retries a
//! failed proposal. A lost ack means that events are delivered again; it never loses a message.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use agentpost_proto::command::{AckCursors, CursorAck, Done};
use agentpost_proto::limits;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::resume::CursorName;
use crate::shard::proposer::Proposed;

/// Upper bound on the cursors whose acks wait for a quorum on one node. Further acks are dropped, and their events are
/// sent again.
const ACKS_WAITING_MAX: usize = 65_536;
/// The pause after a failed proposal.
const RETRY: Duration = Duration::from_millis(500);
/// How long a stopping node tries to store the remaining marks.
const LAST_TRY: Duration = Duration::from_secs(1);

/// The evidence that a client has received the events up to a seq.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// The client sent an ack.
    Ack,
    /// The client answered a ping that was sent after the events. This counts only while the cursor has never seen an
    /// ack. It is also the proof of a new cursor, and of a use that does not move the cursor.
    Implied,
}

/// A session's report to its cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The client has received the events up to this seq.
    pub seq: u64,
    /// The evidence for that.
    pub proof: Proof,
}

impl Mark {
    /// Merges two marks. The first real ack replaces every implied one, even a higher one.
    fn merge(&mut self, other: Mark) {
        match (self.proof, other.proof) {
            (Proof::Implied, Proof::Ack) => *self = other,
            (Proof::Ack, Proof::Implied) => {}
            _ => self.seq = self.seq.max(other.seq),
        }
    }
}

/// The marks by cursor, in order of arrival.
#[derive(Debug, Default)]
pub struct Table {
    waiting: HashMap<CursorName, Mark>,
    order: VecDeque<CursorName>,
    proposed: HashMap<CursorName, Mark>,
}

impl Table {
    pub fn put(&mut self, name: CursorName, mark: Mark) {
        if let Some(waiting) = self.waiting.get_mut(&name) {
            waiting.merge(mark);
        } else if self.waiting.len() < ACKS_WAITING_MAX {
            self.order.push_back(name.clone());
            self.waiting.insert(name, mark);
        } // else the table is full after a long time without a quorum: these events will be delivered twice
    }

    /// Whether a mark of this cursor is not stored yet.
    pub fn holds(&self, name: &CursorName) -> bool {
        self.waiting.contains_key(name) || self.proposed.contains_key(name)
    }

    /// Removes the marks of the next operation; [`Self::stored`] or [`Self::failed`] must follow.
    pub fn take(&mut self) -> Vec<CursorAck> {
        let count = self.order.len().min(limits::ACKS_PER_ENTRY_MAX);
        for name in self.order.drain(..count) {
            if let Some(mark) = self.waiting.remove(&name) {
                self.proposed.insert(name, mark);
            }
        }
        self.proposed
            .iter()
            .map(|(name, mark)| cursor_ack(name, *mark))
            .collect()
    }

    /// Records that the operation was applied.
    pub fn stored(&mut self) {
        self.proposed.clear();
    }

    /// Records that the operation may not have been applied: its marks go into the next one.
    pub fn failed(&mut self) {
        for (name, mark) in std::mem::take(&mut self.proposed) {
            // A mark that arrived in the meantime is newer.
            match self.waiting.get_mut(&name) {
                Some(waiting) => {
                    let newer = std::mem::replace(waiting, mark);
                    waiting.merge(newer);
                }
                None => self.put(name, mark),
            }
        }
    }
}

fn cursor_ack(name: &CursorName, mark: Mark) -> CursorAck {
    CursorAck {
        team_id: name.team.to_bytes(),
        agent: name.agent.clone(),
        client_id: name.client_id.clone(),
        seq: mark.seq,
        implied: mark.proof == Proof::Implied,
    }
}

/// The ack table of one node. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Acks {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    table: Mutex<Table>,
    arrived: Notify,
    settled: Notify,
}

impl Acks {
    /// Queues a mark for the next operation.
    pub fn put(&self, name: CursorName, mark: Mark) {
        self.with_table(|table| table.put(name, mark));
        self.shared.arrived.notify_one();
    }

    /// Whether a mark of this cursor is not stored yet.
    pub fn pending(&self, name: &CursorName) -> bool {
        self.with_table(|table| table.holds(name))
    }

    /// Waits until every mark of this cursor is stored; returns false if that takes longer than `within`.
    pub async fn stored(&self, name: &CursorName, within: Duration) -> bool {
        let settled = async {
            loop {
                let mut change = std::pin::pin!(self.shared.settled.notified());
                change.as_mut().enable();
                if !self.pending(name) {
                    return;
                }
                change.await;
            }
        };
        timeout(within, settled).await.is_ok()
    }

    /// Runs the worker. `propose` sends an operation to the leader. Returns after `shutdown` is cancelled and one last
    /// attempt was made.
    pub async fn run<P, F>(self, propose: P, every: Duration, shutdown: CancellationToken)
    where
        P: Fn(AckCursors) -> F,
        F: Future<Output = Proposed<AckCursors>>,
    {
        loop {
            let due = Instant::now() + every;
            let pause = match shutdown.run_until_cancelled(self.propose_waiting(&propose)).await {
                Some(Ok(())) => Duration::ZERO,
                Some(Err(())) => RETRY,
                None => break,
            };
            let rest = async {
                sleep(pause).await;
                sleep_until(due).await;
                if self.with_table(|table| table.order.is_empty()) {
                    self.shared.arrived.notified().await;
                }
            };
            if shutdown.run_until_cancelled(rest).await.is_none() {
                break;
            }
        }
        self.with_table(Table::failed);
        let _ = timeout(LAST_TRY, self.propose_waiting(&propose)).await;
    }

    async fn propose_waiting<P, F>(&self, propose: &P) -> Result<(), ()>
    where
        P: Fn(AckCursors) -> F,
        F: Future<Output = Proposed<AckCursors>>,
    {
        let acks = self.with_table(Table::take);
        if acks.is_empty() {
            return Ok(());
        }
        let result = match propose(AckCursors { acks }).await {
            Ok(Ok(Done {})) => Ok(()),
            Ok(Err(error)) => {
                // Names and seqs were checked before they were queued, so a retry would be refused as well.
                tracing::error!(%error, "acks were refused; their events will be delivered again; please report this");
                Ok(())
            }
            Err(error) => {
                tracing::debug!(%error, "storing acks failed; retrying");
                Err(())
            }
        };
        self.with_table(|table| if result.is_ok() { table.stored() } else { table.failed() });
        self.shared.settled.notify_waiters();
        result
    }

    fn with_table<T>(&self, act: impl FnOnce(&mut Table) -> T) -> T {
        act(&mut self.shared.table.lock())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::atomic::{AtomicUsize, Ordering};

    use agentpost_proto::id::TeamId;

    use super::*;
    use crate::shard::proposer::ProposeError;

    const EVERY: Duration = Duration::from_millis(50);

    fn name(agent: &str) -> CursorName {
        CursorName {
            team: TeamId([1; 16]),
            agent: agent.to_owned(),
            client_id: String::new(),
        }
    }

    fn acked(seq: u64) -> Mark {
        let proof = Proof::Ack;
        Mark { seq, proof }
    }

    type Log = Arc<Mutex<Vec<(Instant, Vec<(String, u64, bool)>)>>>;

    /// Runs a worker whose first `failures` proposals fail.
    fn start(failures: usize) -> (Acks, Log, CancellationToken) {
        let (acks, proposed, shutdown) = (Acks::default(), Log::default(), CancellationToken::new());
        let (log, left) = (Arc::clone(&proposed), Arc::new(AtomicUsize::new(failures)));
        let propose = move |AckCursors { acks }: AckCursors| {
            let (log, left) = (Arc::clone(&log), Arc::clone(&left));
            async move {
                if left
                    .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
                    .is_ok()
                {
                    return Err(ProposeError::NotReady("no leader".to_owned()));
                }
                let mut marks: Vec<_> = acks.into_iter().map(|a| (a.agent, a.seq, a.implied)).collect();
                marks.sort();
                log.lock().push((Instant::now(), marks));
                Ok(Ok(Done {}))
            }
        };
        tokio::spawn(acks.clone().run(propose, EVERY, shutdown.clone()));
        (acks, proposed, shutdown)
    }

    #[tokio::test(start_paused = true)]
    async fn acks_coalesce_to_the_highest_in_one_operation_per_interval() {
        let (acks, proposed, _shutdown) = start(0);
        sleep(EVERY * 3).await;
        acks.put(name("a"), acked(1));
        assert!(acks.stored(&name("a"), EVERY).await);
        for seq in 2..100 {
            acks.put(name("a"), acked(seq));
            acks.put(name("b"), acked(200 - seq));
        }
        assert!(acks.pending(&name("b")));
        assert!(acks.stored(&name("a"), EVERY * 2).await);
        assert!(!acks.pending(&name("b")));
        let log = proposed.lock().clone();
        assert_eq!(log[0].1, [("a".to_owned(), 1, false)]);
        assert_eq!(log[1].1, [("a".to_owned(), 99, false), ("b".to_owned(), 198, false)]);
        assert_eq!(log.len(), 2);
        assert!(log[1].0 - log[0].0 >= EVERY);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_proposal_is_repeated_with_newer_marks() {
        let (acks, proposed, _shutdown) = start(2);
        acks.put(name("a"), acked(5));
        assert!(!acks.stored(&name("a"), Duration::from_millis(100)).await);
        acks.put(name("a"), acked(6));
        assert!(acks.stored(&name("a"), Duration::from_secs(5)).await);
        assert_eq!(proposed.lock()[0].1, [("a".to_owned(), 6, false)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_real_ack_replaces_an_implied_one() {
        let mut table = Table::default();
        let mark = |seq, proof| Mark { seq, proof };
        table.put(name("a"), mark(10, Proof::Implied));
        table.put(name("a"), mark(7, Proof::Ack));
        table.put(name("a"), mark(12, Proof::Implied));
        assert_eq!(table.waiting[&name("a")], mark(7, Proof::Ack));
        // The same holds when the implied mark was already proposed and failed.
        table.take();
        table.put(name("a"), mark(9, Proof::Ack));
        table.failed();
        assert_eq!(table.waiting[&name("a")], mark(9, Proof::Ack));
    }

    #[tokio::test(start_paused = true)]
    async fn one_operation_is_bounded_and_no_cursor_starves() {
        let mut table = Table::default();
        let count = limits::ACKS_PER_ENTRY_MAX + 1;
        for at in 0..count {
            table.put(name(&format!("agent-{at}")), acked(1));
        }
        assert_eq!(table.take().len(), limits::ACKS_PER_ENTRY_MAX);
        table.stored();
        table.put(name("late"), acked(1));
        assert_eq!(table.take()[..].len(), 2);
        assert!(table.proposed.contains_key(&name(&format!("agent-{}", count - 1))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stopping_node_stores_the_remaining_marks() {
        let (acks, proposed, shutdown) = start(0);
        sleep(EVERY * 3).await;
        acks.put(name("a"), acked(1));
        assert!(acks.stored(&name("a"), EVERY).await);
        acks.put(name("a"), acked(2));
        shutdown.cancel();
        assert!(acks.stored(&name("a"), EVERY).await);
        assert_eq!(proposed.lock().last().unwrap().1, [("a".to_owned(), 2, false)]);
    }
}
