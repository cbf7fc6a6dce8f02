//! What this node may spend without asking, and what it owes. No time of its own, no waiting: [`super::Leases`]
//! brings both.
//!
//! **Invariant**: a unit is either held, spent or returned. What left the ledger towards a return can never be
//! spent again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use agentpost_proto::command::LeaseReturn;
use agentpost_proto::id::TeamId;
use agentpost_proto::limits;
use bytes::Bytes;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// How long a lease is spent after it was asked for.
const SPENT_WITHIN: Duration = Duration::from_millis(limits::LEASE_SPENT_WITHIN_MS);

/// A granted lease of which something is left.
#[derive(Debug, Clone)]
pub struct Held {
    /// Whose reads.
    pub team: TeamId,
    /// Its id.
    pub id: [u8; 16],
    /// The only day on which it may be spent.
    pub day: u32,
    /// What is left.
    pub units: u64,
    /// Before its request was sent: the grant itself came later.
    pub asked_at: Instant,
}

/// The moment of a question: the day as this node or the state has it, whichever is later, and the monotonic
/// clock.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// UTC.
    pub day: u32,
    /// Monotonic.
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

/// The leases of a node, by the row that counts the agent's reads.
#[derive(Debug, Default)]
pub struct Ledger {
    accounts: HashMap<Bytes, Account>,
    returns: Vec<LeaseReturn>,
}

#[derive(Debug, Default)]
struct Account {
    held: Option<Held>,
    /// Held by whoever asks for the agent's next lease.
    asking: Arc<Mutex<()>>,
}

impl Ledger {
    /// Spends a unit, if one is held. Returns what is left of its lease.
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

    /// Takes a fresh lease in, in the place of the one before.
    pub fn put(&mut self, account: &Bytes, lease: Held) {
        self.retire(account);
        self.accounts.entry(account.clone()).or_default().held = Some(lease);
    }

    /// Gives up what is held: it is returned, not spent.
    pub fn retire(&mut self, account: &[u8]) {
        let held = self.accounts.get_mut(account).and_then(|account| account.held.take());
        self.owe(held.iter().map(Held::returned));
    }

    /// What is held and may still be spent.
    pub fn unspent(&self, account: &[u8], at: Moment) -> u64 {
        let held = self.accounts.get(account).and_then(|account| account.held.as_ref());
        held.filter(|held| held.spendable(at)).map_or(0, |held| held.units)
    }

    /// Whoever holds it is the only one to ask for the agent's next lease. None when there are too many agents.
    pub fn asking(&mut self, account: &Bytes) -> Option<Arc<Mutex<()>>> {
        if self.accounts.len() >= limits::LEASED_AGENTS_MAX && !self.accounts.contains_key(account) {
            return None;
        }
        Some(Arc::clone(&self.accounts.entry(account.clone()).or_default().asking))
    }

    /// Retires what may not be spent any more, and forgets the agents of whom nothing is held or asked.
    pub fn expire(&mut self, at: Moment) {
        self.retire_if(|held| !held.spendable(at));
    }

    /// Retires everything.
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

    /// Puts down what shall be returned, or could not be. Beyond a bound it is forgotten: units are lost then,
    /// and the rows go when their day is over.
    pub fn owe(&mut self, returns: impl IntoIterator<Item = LeaseReturn>) {
        let room = limits::LEASE_RETURNS_WAITING_MAX.saturating_sub(self.returns.len());
        self.returns.extend(returns.into_iter().take(room));
    }

    /// The returns of one entry.
    pub fn take_returns(&mut self) -> Vec<LeaseReturn> {
        let kept = self.returns.len().saturating_sub(limits::LEASES_PER_ENTRY_MAX);
        self.returns.split_off(kept)
    }
}
