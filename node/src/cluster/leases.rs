//! Counts inbox reads against their daily limit without a log entry for each read.
//!
//! A node leases a block of an agent's reads through the log and spends the units locally. The limit holds over all
//! nodes, because a unit counts as used from its grant on:
//! - a lease is spent for a few seconds only, counted from before it was requested, and never after its day has ended
//!   by replicated wall time or by the voters' clocks as this node knows them;
//! - a lease whose grant has an unknown outcome is never spent; a crash wastes the unspent units;
//! - unspent units are returned, many leases in one entry, every [`PERIOD`] and when the node stops;
//! - nothing is spent while the state that the request reads says that the usage exceeds the limit, so a lowered limit
//!   takes effect at once.
//!
//! On each node an agent has at most one lease and one pending request for the next, however many readers wait.

mod ledger;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use agentpost_proto::command::{ErrorCode, LeaseReads, LeaseReply, Operation, Principal, Rejection, ReturnLeases};
use agentpost_proto::id::TeamId;
use agentpost_proto::operation::NoAnswer;
use agentpost_proto::time;
use agentpost_raft_store::core::apply::team::default_limits;
use agentpost_raft_store::core::kv::{Fatal, Lookup};
use agentpost_raft_store::core::{keys, query};
use bytes::Bytes;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::ledger::{Held, Ledger, Moment};
use crate::base::clock::IdSource;
use crate::shard::local_state::LocalState;
use crate::shard::proposer::{LEADER_DEADLINE, ProposeError, Proposer};
use crate::shard::reader::Reader;
use crate::shard::replica::Replica;
use crate::shard::this_node::ThisNode;
use crate::shard::wall_time::WallTime;

/// Interval of returns.
const PERIOD: Duration = Duration::from_secs(1);
/// Time limit for the last return of a stopping node.
const CLOSE_DEADLINE: Duration = Duration::from_secs(1);

/// An agent's usage of one day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Used units, as this node knows them.
    pub used: u64,
    /// The limit; 0 = unlimited.
    pub limit: u64,
}

/// Why a read got no unit.
#[derive(Debug, thiserror::Error)]
pub enum NoUnit {
    /// The day's limit is used up, or the caller may not read.
    #[error("{}", .0.message)]
    Rejected(Rejection),
    /// No unit can be granted at the moment.
    #[error("not ready: {0}")]
    NotReady(&'static str),
    /// The lease was not requested, because this node or the leader has too many operations under way.
    #[error(transparent)]
    Overloaded(ProposeError),
    /// This node's state could not be read.
    #[error(transparent)]
    Fatal(#[from] Fatal),
}

/// The leases of this node. Clones are cheap and share them.
#[derive(Clone)]
pub struct Leases {
    shared: Arc<Shared>,
}

struct Shared {
    proposer: Proposer,
    reader: Reader,
    this_node: ThisNode,
    wall_time: WallTime,
    ids: IdSource,
    tasks: TaskTracker,
    ledger: Mutex<Ledger>,
}

/// An agent's reads.
#[derive(Debug, Clone)]
struct Reads {
    principal: Principal,
    team: TeamId,
    agent: String,
    /// The key of the row that counts them.
    row: Bytes,
}

impl Leases {
    /// Leases through `replica`. Requests run among the `tasks` that serve clients and outlive a reader that
    /// disconnects, so that a granted lease is not lost.
    pub fn new(replica: &Replica, this_node: ThisNode, wall_time: WallTime, ids: IdSource, tasks: TaskTracker) -> Self {
        let shared = Shared {
            proposer: replica.proposer.clone(),
            reader: replica.reader.clone(),
            this_node,
            wall_time,
            ids,
            tasks,
            ledger: Mutex::default(),
        };
        Leases {
            shared: Arc::new(shared),
        }
    }

    /// Takes one unit of the agent's day. `state` is the state that the caller is going to read.
    pub async fn take(
        &self,
        principal: Principal,
        team: TeamId,
        agent: &str,
        state: &LocalState,
    ) -> Result<Standing, NoUnit> {
        let reads = Reads {
            row: keys::read_count(team, agent),
            agent: agent.to_owned(),
            principal,
            team,
        };
        if let Some(standing) = self.take_held(&reads, state)? {
            return Ok(standing);
        }
        let asking = self.ledger().asking(&reads.row);
        let asking = asking.ok_or(NoUnit::NotReady("too many agents read at once"))?;
        let alone = timeout(LEADER_DEADLINE, asking.lock_owned()).await;
        let alone = alone.map_err(|_| NoUnit::NotReady("the agent's next reads could not be leased in time"))?;
        // Another reader may have got a lease, or the refusal, in the meantime.
        if let Some(standing) = self.take_held(&reads, &self.shared.reader.local())? {
            return Ok(standing);
        }
        let leases = self.clone();
        let granted = self.shared.tasks.spawn(async move {
            let standing = leases.ask(&reads).await;
            drop(alone);
            standing
        });
        granted.await.unwrap_or(Err(NoUnit::NotReady("this node stops")))
    }

    /// An agent's usage of the day in `state`, without taking a unit.
    pub fn standing(&self, team: TeamId, agent: &str, state: &LocalState) -> Result<Standing, Fatal> {
        let row = keys::read_count(team, agent);
        let at = self.moment_of(self.wall_ms(state)?);
        let used = used(state, &row, at.day)?.saturating_sub(self.ledger().unspent(&row, at));
        Ok(Standing {
            used,
            limit: limit(state, team)?,
        })
    }

    /// Takes a unit of the lease that this node holds; `None` if a lease must be requested.
    fn take_held(&self, reads: &Reads, state: &LocalState) -> Result<Option<Standing>, NoUnit> {
        let wall_ms = self.wall_ms(state)?;
        let at = self.moment_of(wall_ms);
        match decide(&mut self.ledger(), state, reads.team, &reads.row, at)? {
            Decision::Taken(standing) => Ok(Some(standing)),
            Decision::Ask => Ok(None),
            Decision::UsedUp(limit) => {
                let agent = &reads.agent;
                let message = format!("agent {agent:?} has used its {limit} inbox reads of this UTC day");
                Err(NoUnit::Rejected(Rejection {
                    retry_after_s: time::until_midnight_s(wall_ms),
                    ..Rejection::new(ErrorCode::QuotaExceeded, message)
                }))
            }
        }
    }

    /// Requests a lease and spends its first unit.
    async fn ask(&self, reads: &Reads) -> Result<Standing, NoUnit> {
        let shared = &self.shared;
        let (id, asked_at) = (shared.ids.random(), shared.wall_time.clock().now());
        let op = LeaseReads {
            agent: reads.agent.clone(),
            lease_id: Bytes::copy_from_slice(&id),
            node: shared.this_node.id(),
            nodes: shared.this_node.members().len() as u32,
        };
        let operation = Operation::of(reads.principal.clone(), op);
        let reply = shared.proposer.propose(operation).await;
        let reply = reply.map_err(|error| match error {
            ProposeError::Overloaded | ProposeError::ShareUsedUp => NoUnit::Overloaded(error),
            _ => NoUnit::NotReady("this node cannot reach a quorum right now"),
        })?;
        let LeaseReply {
            units,
            day,
            used,
            limit,
        } = reply.answer_to::<LeaseReads>().map_err(|error| match error {
            NoAnswer::Rejected(rejection) => NoUnit::Rejected(rejection),
            NoAnswer::Unexpected(_) => NoUnit::NotReady("the leader sent an unexpected reply type"),
        })?;
        if units == 0 {
            return Ok(Standing { used: 0, limit: 0 });
        }
        let lease = Held {
            team: reads.team,
            id,
            day,
            units,
            asked_at,
        };
        let at = self.moment_of(self.wall_ms(&shared.reader.local())?);
        let mut ledger = self.ledger();
        ledger.put(&reads.row, lease);
        let left = ledger.spend(&reads.row, at);
        let left = left.ok_or(NoUnit::NotReady("the day of this read has just ended"))?;
        Ok(Standing {
            used: used.saturating_sub(left),
            limit,
        })
    }

    /// Returns unspent units periodically, until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut period = interval(PERIOD);
        period.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = period.tick() => {}
                () = shutdown.cancelled() => return,
            }
            match self.wall_ms(&self.shared.reader.local()) {
                Ok(wall_ms) => self.ledger().expire(self.moment_of(wall_ms)),
                Err(error) => {
                    tracing::error!(%error, "reading the time from the state failed; the next round tries again")
                }
            }
            shutdown.run_until_cancelled(self.give_back()).await;
        }
    }

    /// Returns all unspent units, before this node stops.
    pub async fn close(&self) {
        self.ledger().retire_all();
        let _ = timeout(CLOSE_DEADLINE, self.give_back()).await;
    }

    async fn give_back(&self) {
        loop {
            let leases = self.ledger().take_returns();
            if leases.is_empty() {
                return;
            }
            let op = ReturnLeases { leases: leases.clone() };
            match self.shared.proposer.propose_internal(op).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => {
                    tracing::error!(%error, "returned leases were refused; their unspent reads stay counted; please report this");
                }
                // The next round tries again; a repeated return credits nothing twice.
                Err(error) => {
                    tracing::debug!(%error, "unspent reads could not be returned; the next round tries again");
                    return self.ledger().owe(leases);
                }
            }
        }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.shared.ledger.lock()
    }

    fn moment_of(&self, wall_ms: u64) -> Moment {
        Moment {
            day: time::day(wall_ms),
            now: self.shared.wall_time.clock().now(),
        }
    }

    /// The later of replicated wall time and majority time; the latter is ahead when nobody has written for a while.
    pub fn wall_ms(&self, state: &LocalState) -> Result<u64, Fatal> {
        Ok(query::applied(state)?.wall_ms.max(self.shared.wall_time.now_ms()))
    }
}

/// The decision on a read.
#[derive(Debug, PartialEq, Eq)]
enum Decision {
    /// The read has its unit.
    Taken(Standing),
    /// A lease must be requested.
    Ask,
    /// The limit is used up. The refusal needs no log entry.
    UsedUp(u64),
}

/// Decides on a read from the ledger and the state. Every unit that the ledger holds counts as used in the state, so
/// while the state's usage is within the limit, all spent units are.
fn decide(ledger: &mut Ledger, state: &impl Lookup, team: TeamId, row: &[u8], at: Moment) -> Result<Decision, Fatal> {
    let limit = limit(state, team)?;
    if limit == 0 {
        return Ok(Decision::Taken(Standing { used: 0, limit }));
    }
    let used = used(state, row, at.day)?;
    if used > limit {
        ledger.retire(row);
    } else if let Some(left) = ledger.spend(row, at) {
        // This state may not contain the latest grant yet.
        let used = used.saturating_sub(left).max(1);
        return Ok(Decision::Taken(Standing { used, limit }));
    }
    Ok(if used >= limit {
        Decision::UsedUp(limit)
    } else {
        Decision::Ask
    })
}

/// The daily reads of an agent in this team; 0 = unlimited.
fn limit(state: &impl Lookup, team: TeamId) -> Result<u64, Fatal> {
    let limits = query::team::by_id(state, team)?.and_then(|team| team.limits);
    Ok(limits.unwrap_or_else(default_limits).daily_reads)
}

/// The units that a row counts for a day.
fn used(state: &impl Lookup, row: &[u8], day: u32) -> Result<u64, Fatal> {
    let count = query::team::day_count(state, row)?;
    Ok(if count.day < day { 0 } else { count.used })
}

#[cfg(test)]
mod tests;
