//! The budget of a node for operations under way: how many there may be, and how many bytes they may hold in memory.
//!
//! **The problem.** A request is in memory several times until it is answered: its body, the encoded operation, the log
//! entry. While the cluster is slow or has no leader, requests pile up, and one team that sends 1 MiB at a time could
//! exhaust the memory of a node and leave no place for the others.
//!
//! **The rules.**
//! - *Charged before it is read.* A request takes its [`Permit`] after authentication and before its body: for the bytes
//!   that it announces, or for the bound of its route if it announces none. What was read settles the charge. An
//!   operation that another node forwards is charged for its bytes when it arrives.
//! - *Charged until its answer, and until its entry is durable.* The proposal holds a clone of the charge, so a client
//!   that goes away does not make room for more than the disk can take. Dropping the last clone gives everything back,
//!   so a cancelled request is not charged for ever.
//! - *A share for each team*, so that one that is slow or hostile leaves half for the others. Requests without a key,
//!   which anybody can make, have a smaller share of the bytes together.
//! - *Nothing waits.* A request beyond a share or beyond the budget is refused at once, and nothing of it was proposed.
//! - *A reserve for the cluster.* Its own operations (claims, outcomes, chunks, acks) have places and bytes that no
//!   client can take. They wait for each other, and their proposers bound their number.
//!
//! | | places | bytes | over it |
//! |---|---|---|---|
//! | node | 4,096 | 64 MiB | |
//! | of these for the cluster's own operations | 512 | 8 MiB | they wait |
//! | all clients together | 3,584 | 56 MiB | 503 |
//! | one team | 1,792 | 28 MiB | 429 |
//! | all requests without a key | 1,792 | 7 MiB | 429 |

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use agentpost_proto::command::Operation;
use agentpost_proto::id::TeamId;
use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::base::metrics::Metrics;

/// Operations under way on a node.
const NODE: Load = Load {
    places: 4_096,
    bytes: 64 * MIB,
};
/// The part of [`NODE`] for the cluster's own operations.
const RESERVED: Load = Load {
    places: 512,
    bytes: 8 * MIB,
};
/// The part of [`NODE`] for clients.
pub const CLIENTS: Load = Load {
    places: NODE.places - RESERVED.places,
    bytes: NODE.bytes - RESERVED.bytes,
};
const MIB: usize = 1024 * 1024;

/// A number of operations, and of their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    pub places: usize,
    pub bytes: usize,
}

impl Load {
    const fn over(self, parts: usize) -> Load {
        Load {
            places: self.places / parts,
            bytes: self.bytes / parts,
        }
    }

    /// The load with one more operation of `bytes`, if that is within `limit`.
    fn and(self, bytes: usize, limit: Load) -> Option<Load> {
        let places = self.places + 1;
        let bytes = self.bytes.saturating_add(bytes);
        (places <= limit.places && bytes <= limit.bytes).then_some(Load { places, bytes })
    }
}

/// Whose share an operation is charged to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Payer {
    /// The team of the caller's key.
    Team(TeamId),
    /// Everybody without a key: machines that log in.
    Nobody,
}

impl Payer {
    /// The payer of an operation: the team of its principal.
    pub fn of(operation: &Operation) -> Self {
        let principal = operation.principal.as_ref();
        let team = principal.and_then(|principal| TeamId::from_slice(&principal.team_id).ok());
        team.map_or(Payer::Nobody, Payer::Team)
    }

    /// The most that may be under way for this payer.
    pub const fn share(self) -> Load {
        match self {
            Payer::Team(_) => CLIENTS.over(2),
            Payer::Nobody => Load {
                bytes: CLIENTS.bytes / 8,
                ..CLIENTS.over(2)
            },
        }
    }
}

/// Why an operation was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// The payer's share is used up. Others are admitted.
    Share,
    /// The budget of the node is used up.
    Node,
}

/// The budget of a node. Clones are cheap and share it.
#[derive(Clone)]
pub struct Budget {
    shared: Arc<Shared>,
}

struct Shared {
    used: Mutex<Used>,
    reserved_places: Arc<Semaphore>,
    reserved_bytes: Arc<Semaphore>,
    places: Gauge,
    bytes: Gauge,
}

#[derive(Default)]
struct Used {
    all: Load,
    /// Payers with operations under way.
    payers: HashMap<Payer, Load>,
}

/// The right of one client operation to be under way, until the last clone is dropped.
#[derive(Clone)]
pub struct Permit {
    taken: Arc<Taken>,
}

/// The part of a budget that one client operation takes.
struct Taken {
    shared: Arc<Shared>,
    payer: Payer,
    bytes: AtomicUsize,
}

/// The right of one of the cluster's own operations to be under way, until the last clone is dropped.
#[derive(Clone)]
pub struct Reserved {
    _place: Option<Arc<OwnedSemaphorePermit>>,
    _bytes: Option<Arc<OwnedSemaphorePermit>>,
}

/// The charge of an operation under way.
#[derive(Clone)]
pub enum Charge {
    Client(Permit),
    Cluster(Reserved),
}

impl Budget {
    /// A budget with nothing under way, which shows in `metrics` what is.
    pub fn new(metrics: &Metrics) -> Self {
        let shared = Shared {
            used: Mutex::default(),
            reserved_places: Arc::new(Semaphore::new(RESERVED.places)),
            reserved_bytes: Arc::new(Semaphore::new(RESERVED.bytes)),
            places: metrics.budget.requests.clone(),
            bytes: metrics.budget.bytes.clone(),
        };
        Budget {
            shared: Arc::new(shared),
        }
    }

    /// Admits an operation of a client, or refuses it at once.
    pub fn take(&self, payer: Payer, bytes: usize) -> Result<Permit, Full> {
        let mut used = self.shared.used.lock();
        let own = used.payers.get(&payer).copied().unwrap_or_default();
        let own = own.and(bytes, payer.share()).ok_or(Full::Share)?;
        let all = used.all.and(bytes, CLIENTS).ok_or(Full::Node)?;
        used.payers.insert(payer, own);
        used.all = all;
        self.shared.show(all);
        let taken = Taken {
            shared: Arc::clone(&self.shared),
            payer,
            bytes: AtomicUsize::new(bytes),
        };
        Ok(Permit { taken: Arc::new(taken) })
    }

    /// Admits one of the cluster's own operations; waits for the others if there are too many.
    pub async fn reserve(&self, bytes: usize) -> Reserved {
        let shared = &self.shared;
        let bytes = u32::try_from(bytes.min(RESERVED.bytes)).unwrap_or(u32::MAX);
        // The semaphores are never closed, so this cannot fail.
        let place = Arc::clone(&shared.reserved_places).acquire_owned().await.ok();
        let bytes = Arc::clone(&shared.reserved_bytes).acquire_many_owned(bytes).await.ok();
        Reserved {
            _place: place.map(Arc::new),
            _bytes: bytes.map(Arc::new),
        }
    }
}

impl Shared {
    fn show(&self, all: Load) {
        self.places.set(all.places as i64);
        self.bytes.set(all.bytes as i64);
    }
}

impl Permit {
    /// Replaces the charge by the real size. An operation that was admitted is never refused for its size, so the
    /// budget can be exceeded by the difference between a body and its encoded operation, which is small.
    pub fn settle(&self, bytes: usize) {
        let taken = &self.taken;
        let mut used = taken.shared.used.lock();
        let before = taken.bytes.swap(bytes, Ordering::Relaxed);
        let settled = |load: &mut Load| load.bytes = load.bytes - before + bytes;
        settled(&mut used.all);
        used.payers.entry(taken.payer).and_modify(settled);
        taken.shared.show(used.all);
    }

    /// Raises the charge to `bytes` if it is lower.
    pub fn raise(&self, bytes: usize) {
        if self.taken.bytes.load(Ordering::Relaxed) < bytes {
            self.settle(bytes);
        }
    }
}

impl AsRef<Permit> for Permit {
    fn as_ref(&self) -> &Permit {
        self
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut used = self.shared.used.lock();
        let bytes = self.bytes.load(Ordering::Relaxed);
        let without = |load: Load| Load {
            places: load.places - 1,
            bytes: load.bytes - bytes,
        };
        used.all = without(used.all);
        if let Some(own) = used.payers.get_mut(&self.payer) {
            *own = without(*own);
            if *own == Load::default() {
                used.payers.remove(&self.payer);
            }
        }
        self.shared.show(used.all);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn team(n: u8) -> Payer {
        Payer::Team(TeamId([n; 16]))
    }

    /// Takes permits of `bytes` until one is refused.
    fn fill(budget: &Budget, payer: Payer, bytes: usize) -> (Vec<Permit>, Full) {
        let mut taken = Vec::new();
        loop {
            match budget.take(payer, bytes) {
                Ok(permit) => taken.push(permit),
                Err(full) => return (taken, full),
            }
        }
    }

    fn shown(metrics: &Metrics) -> (i64, i64) {
        (metrics.budget.requests.get(), metrics.budget.bytes.get())
    }

    #[test]
    fn a_team_has_half_of_the_bytes_and_of_the_places() {
        let metrics = Metrics::new();
        let budget = Budget::new(&metrics);
        for bytes in [0, MIB] {
            let (first, full) = fill(&budget, team(1), bytes);
            assert_eq!(full, Full::Share);
            let most = if bytes == 0 { 1_792 } else { 28 };
            assert_eq!(first.len(), most);
            let (second, full) = fill(&budget, team(2), bytes);
            assert_eq!((second.len(), full), (most, Full::Share));
            // The share is checked first: a team that is over its own hears of that.
            assert_eq!(budget.take(team(1), bytes).err(), Some(Full::Share));
            assert_eq!(budget.take(team(3), bytes).err(), Some(Full::Node));
            drop(first);
            assert!(budget.take(team(3), bytes).is_ok());
            drop(second);
            assert_eq!(shown(&metrics), (0, 0));
            assert!(budget.shared.used.lock().payers.is_empty());
        }
    }

    #[test]
    fn strangers_together_have_an_eighth_of_the_bytes() {
        let budget = Budget::new(&Metrics::new());
        let (strangers, full) = fill(&budget, Payer::Nobody, MIB);
        assert_eq!((strangers.len(), full), (7, Full::Share));
        assert!(budget.take(team(1), 28 * MIB).is_ok());
    }

    #[test]
    fn a_charge_is_corrected_to_what_was_read() {
        let metrics = Metrics::new();
        let budget = Budget::new(&metrics);
        let permit = budget.take(team(1), MIB).unwrap();
        assert_eq!(shown(&metrics), (1, MIB as i64));
        permit.settle(100);
        permit.raise(99);
        assert_eq!(shown(&metrics), (1, 100));
        assert!(budget.take(team(1), 28 * MIB - 100).is_ok());
        assert_eq!(budget.take(team(1), 28 * MIB - 99).err(), Some(Full::Share));
        permit.raise(200);
        assert_eq!(shown(&metrics), (1, 200));
        drop(permit);
        assert_eq!(shown(&metrics), (0, 0));
    }

    /// The request is gone, but its entry is not on the disk.
    #[test]
    fn a_charge_lasts_until_its_last_clone() {
        let metrics = Metrics::new();
        let permit = Budget::new(&metrics).take(team(1), 100).unwrap();
        let of_the_entry = Charge::Client(permit.clone());
        drop(permit);
        assert_eq!(shown(&metrics), (1, 100));
        drop(of_the_entry);
        assert_eq!(shown(&metrics), (0, 0));
    }

    #[tokio::test]
    async fn clients_cannot_take_the_reserve() {
        let budget = Budget::new(&Metrics::new());
        let _clients = [fill(&budget, team(1), MIB), fill(&budget, team(2), MIB)];
        // More than the reserve: it takes all of it and waits for nobody.
        let largest = budget.reserve(9 * MIB).await;
        let next = budget.reserve(1);
        tokio::pin!(next);
        assert!(futures::poll!(&mut next).is_pending());
        drop(largest);
        assert!(futures::poll!(&mut next).is_ready());
    }

    #[test]
    fn the_principals_team_pays() {
        use agentpost_proto::command::{ClaimLogin, Principal};
        let mut operation = Operation::internal(ClaimLogin::default());
        assert_eq!(Payer::of(&operation), Payer::Nobody);
        operation.principal = Some(Principal {
            team_id: vec![7; 16].into(),
            ..Principal::default()
        });
        assert_eq!(Payer::of(&operation), team(7));
    }
}
