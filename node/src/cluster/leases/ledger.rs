//! The units that this node may spend locally, and the leases that it must return. Pure: [`super::Leases`] supplies
//! time and waiting.
//!
//! **Invariant**: a unit is either held, spent or returned. A unit that left the ledger for a return can never be
//! spent.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use agentpost_proto::command::LeaseReturn;
use agentpost_proto::id::TeamId;
use agentpost_proto::limits::LEASES_PER_ENTRY_MAX;
use bytes::Bytes;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// Upper bound on the agents for which a node holds leases. Reads of further agents are answered with 503.
pub(super) const LEASED_AGENTS_MAX: usize = 65_536;
/// Upper bound on the leases that wait on one node to be returned while there is no quorum. The unspent units of
/// further leases are lost.
pub(super) const RETURNS_WAITING_MAX: usize = 65_536;
/// The time for which a node may spend a lease, from its request on, by the monotonic clock.
pub(super) const SPENT_WITHIN: Duration = Duration::from_secs(5);

/// A granted lease with unspent units.
#[derive(Debug, Clone)]
pub struct Held {
    pub team: TeamId,
    pub id: [u8; 16],
    /// The only day (UTC) on which it may be spent.
    pub day: u32,
    /// Unspent units.
    pub units: u64,
    /// The time before its request was sent; the grant itself came later.
    pub asked_at: Instant,
}

/// The time of a request: the later of this node's and the state's day, and the monotonic clock.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// Days since 1970-01-01 in UTC.
    pub day: u32,
    /// Monotonic time.
    pub now: Instant,
}

impl Held {
    fn spendable(&self, at: Moment) -> bool {
        self.units > 0 && at.day <= self.day && at.now.saturating_duration_since(self.asked_at) < SPENT_WITHIN
    }

    fn returned(&self) -> LeaseReturn {
        LeaseReturn {
            team_id: self.team.to_bytes(),
            day: self.day,
            lease_id: Bytes::copy_from_slice(&self.id),
            unused: self.units,
        }
    }
}

/// The leases of a node, by the key of the row that counts the agent's reads.
#[derive(Debug, Default)]
pub struct Ledger {
    accounts: HashMap<Bytes, Account>,
    returns: Vec<LeaseReturn>,
}

#[derive(Debug, Default)]
struct Account {
    held: Option<Held>,
    /// Locked by the task that requests the agent's next lease.
    asking: Arc<Mutex<()>>,
}

impl Ledger {
    /// Spends a unit, if one is held. Returns the number of units left in its lease.
    pub fn spend(&mut self, account: &[u8], at: Moment) -> Option<u64> {
        let held = &mut self.accounts.get_mut(account)?.held;
        let lease = held.as_mut()?;
        let left = lease.spendable(at).then(|| {
            lease.units -= 1;
            lease.units
        });
        if left.is_none_or(|left| left == 0) {
            self.retire(account);
        }
        left
    }

    /// Stores a new lease in place of the one before.
    pub fn put(&mut self, account: &Bytes, lease: Held) {
        self.retire(account);
        self.accounts.entry(account.clone()).or_default().held = Some(lease);
    }

    /// Moves a held lease to the returns, so that it cannot be spent.
    pub fn retire(&mut self, account: &[u8]) {
        let held = self.accounts.get_mut(account).and_then(|account| account.held.take());
        self.owe(held.iter().map(Held::returned));
    }

    /// The units that are held and may still be spent.
    pub fn unspent(&self, account: &[u8], at: Moment) -> u64 {
        let held = self.accounts.get(account).and_then(|account| account.held.as_ref());
        held.filter(|held| held.spendable(at)).map_or(0, |held| held.units)
    }

    /// The lock of the task that requests the agent's next lease. `None` if leases of too many agents are tracked.
    pub fn asking(&mut self, account: &Bytes) -> Option<Arc<Mutex<()>>> {
        if self.accounts.len() >= LEASED_AGENTS_MAX && !self.accounts.contains_key(account) {
            return None;
        }
        Some(Arc::clone(&self.accounts.entry(account.clone()).or_default().asking))
    }

    /// Retires leases that may no longer be spent, and forgets agents without a lease or a request.
    pub fn expire(&mut self, at: Moment) {
        self.retire_if(|held| !held.spendable(at));
    }

    pub fn retire_all(&mut self) {
        self.retire_if(|_| true);
    }

    fn retire_if(&mut self, ended: impl Fn(&Held) -> bool) {
        let mut returned = Vec::new();
        self.accounts.retain(|_, account| {
            returned.extend(account.held.take_if(|held| ended(held)).map(|held| held.returned()));
            account.held.is_some() || Arc::strong_count(&account.asking) > 1
        });
        self.owe(returned);
    }

    /// Queues leases to return, also those whose return failed. Beyond a bound they are dropped: their units are lost,
    /// and their rows are removed when the day is over.
    pub fn owe(&mut self, returns: impl IntoIterator<Item = LeaseReturn>) {
        let room = RETURNS_WAITING_MAX.saturating_sub(self.returns.len());
        self.returns.extend(returns.into_iter().take(room));
    }

    /// Takes the returns for one log entry.
    pub fn take_returns(&mut self) -> Vec<LeaseReturn> {
        let kept = self.returns.len().saturating_sub(LEASES_PER_ENTRY_MAX);
        self.returns.split_off(kept)
    }
}
