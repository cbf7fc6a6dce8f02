//! The threads on which the database is read, and whose turn it is.
//!
//! A read of many rows, or of bodies, takes as long as the disk likes. On the runtime it would hold up every request
//! that shares the thread. So such reads run on blocking threads, at most [`PLACES`] at a time. A team that reads much
//! would take all of them, so a team never has more than [`SHARE`]; what it asks for beyond waits for its turn, while the
//! reads of others go past. Freed places go round among the teams that wait. Some places are for the node alone: cluster
//! time, sweeps and fan-outs go on when clients read as much as they can.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use agentpost_proto::id::TeamId;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::base::metrics::gauge;
use crate::base::metrics::reads::Reads;

/// Reads that run at a time.
const PLACES: usize = 8;
/// Reads of one owner that run at a time.
const SHARE: usize = PLACES / 2;
/// Reads of clients that run at a time. The other places are for the node.
const CLIENT_PLACES: usize = PLACES - 2;
/// Upper bound on the reads that wait. Further ones are refused at once.
const WAITING_MAX: usize = 16 * 1024;
/// Upper bound on the reads of one team that wait.
pub const TEAM_WAITING_MAX: usize = WAITING_MAX / 4;

/// Too many reads wait, or the node stops. Nothing was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this node is overloaded with reads")]
pub struct ReadRefused;

/// On whose behalf a read runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Share {
    /// A team. Operators are a team as well.
    Team(TeamId),
    /// All callers without a key together.
    Strangers,
    /// The node's own work.
    Node,
}

/// The places. Clones are cheap and share them.
#[derive(Clone, Default)]
pub(super) struct ReadPool {
    shared: Arc<Mutex<Turns>>,
    metrics: Reads,
}

#[derive(Default)]
struct Turns {
    running: usize,
    /// The reads of clients among them.
    of_clients: usize,
    waiting: usize,
    /// The owners with reads that run or wait.
    owners: HashMap<Share, Owner>,
    /// The owners with reads that wait, in the order of their turns.
    order: VecDeque<Share>,
}

#[derive(Default)]
struct Owner {
    running: usize,
    waiting: VecDeque<oneshot::Sender<Place>>,
}

/// The right to read. Dropping it passes it on.
struct Place {
    /// `None` if the right was not taken up.
    pool: Option<ReadPool>,
    share: Share,
}

impl ReadPool {
    pub(super) fn new(metrics: Reads) -> Self {
        ReadPool {
            shared: Arc::default(),
            metrics,
        }
    }

    /// Runs `read` on a blocking thread when it is the turn of `share`. The read runs to its end even if the caller does
    /// not wait for it.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        share: Share,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ReadRefused> {
        let place = self.place(share).await?;
        in_place(place, read).await
    }

    /// Like [`Self::run`], but only if a place is free now; `None` if not.
    pub(super) async fn run_now<T: Send + 'static>(
        &self,
        share: Share,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let free = self.shared.lock().begin(share);
        let place = free.then(|| self.granted(share))?;
        in_place(place, read).await.ok()
    }

    async fn place(&self, share: Share) -> Result<Place, ReadRefused> {
        let turn = {
            let mut turns = self.shared.lock();
            if turns.begin(share) {
                return Ok(self.granted(share));
            }
            let own = turns.owners.get(&share).map_or(0, |owner| owner.waiting.len());
            if turns.waiting == WAITING_MAX || own == TEAM_WAITING_MAX {
                self.metrics.refused.inc();
                return Err(ReadRefused);
            }
            let (turn, waiting) = oneshot::channel();
            let owner = turns.owners.entry(share).or_default();
            owner.waiting.push_back(turn);
            let is_first = owner.waiting.len() == 1;
            turns.waiting += 1;
            self.metrics.waiting.set(gauge(turns.waiting as u64));
            if is_first {
                turns.order.push_back(share);
            }
            waiting
        };
        // Cannot fail: a sender is dropped only after it has sent.
        turn.await.map_err(|_| ReadRefused)
    }

    fn granted(&self, share: Share) -> Place {
        Place {
            pool: Some(self.clone()),
            share,
        }
    }

    fn pass_on(&self, share: Share) {
        let mut turns = self.shared.lock();
        turns.end(share);
        while let Some((share, turn)) = turns.begin_next() {
            if let Err(mut place) = turn.send(self.granted(share)) {
                // Its caller has gone.
                place.pool = None;
                turns.end(share);
            }
        }
        self.metrics.waiting.set(gauge(turns.waiting as u64));
    }
}

async fn in_place<T: Send + 'static>(
    place: Place,
    read: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ReadRefused> {
    let reading = tokio::task::spawn_blocking(move || {
        let _place = place;
        read()
    });
    match reading.await {
        Ok(read) => Ok(read),
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(ReadRefused),
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            pool.pass_on(self.share);
        }
    }
}

impl Turns {
    /// Begins a read of `share` if a place is free for it and none of its earlier reads waits.
    fn begin(&mut self, share: Share) -> bool {
        let waits = self.owners.get(&share).is_some_and(|owner| !owner.waiting.is_empty());
        let free = self.running < PLACES && self.has_room(&share) && !waits;
        if free {
            self.owners.entry(share).or_default().running += 1;
            self.count(share);
        }
        free
    }

    /// Counts a read that begins to run.
    fn count(&mut self, share: Share) {
        self.running += 1;
        self.of_clients += usize::from(share != Share::Node);
    }

    fn end(&mut self, share: Share) {
        self.running -= 1;
        self.of_clients -= usize::from(share != Share::Node);
        if let Some(owner) = self.owners.get_mut(&share) {
            owner.running -= 1;
            if owner.running == 0 && owner.waiting.is_empty() {
                self.owners.remove(&share);
            }
        }
    }

    /// Begins the next read that may run.
    fn begin_next(&mut self) -> Option<(Share, oneshot::Sender<Place>)> {
        if self.running == PLACES {
            return None;
        }
        let node_waits = || {
            self.owners
                .get(&Share::Node)
                .is_some_and(|node| !node.waiting.is_empty())
        };
        if self.of_clients == CLIENT_PLACES && !node_waits() {
            return None;
        }
        // Few owners can have their whole share, so this looks at few, unless only the node may run.
        let at = self.order.iter().position(|share| self.has_room(share))?;
        let share = self.order.remove(at)?;
        let owner = self.owners.get_mut(&share)?;
        let turn = owner.waiting.pop_front()?;
        owner.running += 1;
        if !owner.waiting.is_empty() {
            self.order.push_back(share);
        }
        self.count(share);
        self.waiting -= 1;
        Some((share, turn))
    }

    fn has_room(&self, share: &Share) -> bool {
        let reserved = *share != Share::Node && self.of_clients >= CLIENT_PLACES;
        !reserved && self.owners.get(share).is_none_or(|owner| owner.running < SHARE)
    }
}

#[cfg(test)]
mod tests {
    use futures::future::join_all;

    use super::*;

    const A: Share = Share::Team(TeamId([1; 16]));
    const B: Share = Share::Team(TeamId([2; 16]));
    const C: Share = Share::Team(TeamId([3; 16]));

    async fn take(pool: &ReadPool, share: Share, count: usize) -> Vec<Place> {
        let places = join_all((0..count).map(|_| pool.place(share))).await;
        places.into_iter().map(Result::unwrap).collect()
    }

    fn waits<T>(turn: &mut tokio::task::JoinHandle<T>) -> bool {
        futures::FutureExt::now_or_never(turn).is_none()
    }

    fn ask(pool: &ReadPool, share: Share) -> tokio::task::JoinHandle<Place> {
        let pool = pool.clone();
        tokio::spawn(async move { pool.place(share).await.unwrap() })
    }

    async fn settle() {
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_team_has_at_most_half_of_the_places_and_others_go_past_it() {
        let pool = ReadPool::default();
        let mut of_a = take(&pool, A, SHARE).await;
        let mut greedy = ask(&pool, A);
        settle().await;
        assert!(waits(&mut greedy), "the share is used up");
        let of_b = take(&pool, B, CLIENT_PLACES - SHARE).await;
        let mut late = ask(&pool, C);
        settle().await;
        assert!(waits(&mut late), "all places of clients are used");
        drop(of_b);
        let of_c = late.await.unwrap();
        assert!(
            waits(&mut greedy),
            "a place of another team is not for the share of this one"
        );
        of_a.pop();
        let next = greedy.await.unwrap();
        drop((of_a, of_c, next));
        let turns = pool.shared.lock();
        assert_eq!((turns.running, turns.waiting), (0, 0));
        assert!(turns.owners.is_empty() && turns.order.is_empty());
    }

    #[tokio::test]
    async fn freed_places_go_round() {
        let pool = ReadPool::default();
        let mut held = take(&pool, Share::Node, SHARE).await;
        held.extend(take(&pool, C, PLACES - SHARE).await);
        let (order, mut served) = tokio::sync::mpsc::channel(8);
        for share in [A, A, A, B, B] {
            let (pool, order) = (pool.clone(), order.clone());
            tokio::spawn(async move {
                let _place = pool.place(share).await.unwrap();
                order.send(share).await.unwrap();
            });
            settle().await;
        }
        held.pop();
        let mut turns = Vec::new();
        for _ in 0..5 {
            turns.push(served.recv().await.unwrap());
        }
        assert_eq!(turns, [A, B, A, B, A]);
    }

    #[tokio::test]
    async fn the_node_reads_though_clients_read_and_wait() {
        let pool = ReadPool::default();
        let _held = [take(&pool, A, SHARE).await, take(&pool, B, CLIENT_PLACES - SHARE).await];
        let mut waiting = [ask(&pool, B), ask(&pool, Share::Strangers), ask(&pool, C)];
        settle().await;
        let of_node = take(&pool, Share::Node, PLACES - CLIENT_PLACES).await;
        let mut more = ask(&pool, Share::Node);
        settle().await;
        assert!(waits(&mut more), "all places are used");
        drop(of_node);
        more.await.unwrap();
        settle().await;
        assert!(waiting.iter_mut().all(waits), "those places are not for clients");
    }

    #[tokio::test]
    async fn a_read_whose_caller_has_gone_leaves_its_turn_to_the_next() {
        let pool = ReadPool::default();
        let held = take(&pool, A, SHARE).await;
        let (gone, mut next) = (ask(&pool, A), ask(&pool, A));
        settle().await;
        gone.abort();
        settle().await;
        assert!(waits(&mut next));
        drop(held);
        drop(next.await.unwrap());
        assert_eq!(pool.shared.lock().running, 0);
    }

    #[tokio::test]
    async fn reads_beyond_the_bound_are_refused() {
        let pool = ReadPool::default();
        let _held = take(&pool, A, SHARE).await;
        let mut waiting: Vec<_> = (0..TEAM_WAITING_MAX).map(|_| Box::pin(pool.place(A))).collect();
        for turn in &mut waiting {
            assert!(futures::poll!(turn).is_pending());
        }
        assert!(pool.place(A).await.is_err());
        assert!(pool.place(B).await.is_ok());
    }

    #[tokio::test]
    async fn a_read_that_may_not_wait_runs_only_in_a_free_place() {
        let pool = ReadPool::default();
        assert_eq!(pool.run_now(A, || 7).await, Some(7));
        let _held = take(&pool, A, SHARE).await;
        assert_eq!(pool.run_now(A, || 7).await, None);
        assert_eq!(pool.run_now(B, || 7).await, Some(7));
    }

    #[tokio::test]
    async fn a_refused_read_leaves_nothing_behind() {
        let pool = ReadPool::default();
        let _held = [take(&pool, A, SHARE).await, take(&pool, B, CLIENT_PLACES - SHARE).await];
        let teams = WAITING_MAX / TEAM_WAITING_MAX;
        let mut waiting: Vec<_> = (0..teams * TEAM_WAITING_MAX)
            .map(|n| Box::pin(pool.place(Share::Team(TeamId([100 + (n % teams) as u8; 16])))))
            .collect();
        for turn in &mut waiting {
            assert!(futures::poll!(turn).is_pending());
        }
        let owners = pool.shared.lock().owners.len();
        for team in 10..20 {
            assert!(pool.place(Share::Team(TeamId([team; 16]))).await.is_err());
        }
        assert_eq!(pool.shared.lock().owners.len(), owners);
    }
}
