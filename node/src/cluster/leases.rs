//! Inbox reads within their daily limit, without a log entry for each.
//!
//! A node leases a block of an agent's reads through the log and spends it on its own. The limit holds over
//! all nodes, because a unit counts as used from its grant on:
//! - a lease is spent for a few seconds only, counted from before it was asked for, and never after its day
//!   was over by the voters' clocks, as this node knows them, or by the replicated one;
//! - a lease whose grant has an unknown outcome is never spent; a crash wastes what was held;
//! - what was not spent is returned, many leases in one entry, every [`PERIOD`] and when the node stops;
//! - nothing is spent while the state that a request reads says that more is used than the limit allows: a
//!   limit that was lowered counts at once.
//!
//! An agent has one lease at a time on a node, and one request for the next, however many readers wait.

mod ledger;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agentpost_proto::command::{ErrorCode, LeaseReads, LeaseReply, Operation, Principal, Rejection, ReturnLeases};
use agentpost_proto::id::TeamId;
use agentpost_proto::operation::NoAnswer;
use agentpost_proto::time;
use agentpost_raft_store::core::apply::team::default_limits;
use agentpost_raft_store::core::kv::{Fatal, Kv};
use agentpost_raft_store::core::{keys, query};
use agentpost_raft_store::disk::state::StateDb;
use bytes::Bytes;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::ledger::{Held, Ledger, Moment};
use crate::base::clock::IdSource;
use crate::shard::proposer::{LEADER_DEADLINE, Proposer};
use crate::shard::reader::Reader;
use crate::shard::replica::Replica;
use crate::shard::this_node::ThisNode;
use crate::shard::wall_time::WallTime;

/// Between two returns.
const PERIOD: Duration = Duration::from_secs(1);
/// The last return of a node that stops.
const CLOSE_DEADLINE: Duration = Duration::from_secs(1);

/// How much of its day an agent has used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Units used, as far as this node knows.
    pub used: u64,
    /// 0 = unlimited.
    pub limit: u64,
}

/// Why there is no unit.
#[derive(Debug, thiserror::Error)]
pub enum NoUnit {
    /// The day is used up, or the caller may not read.
    #[error("{}", .0.message)]
    Rejected(Rejection),
    /// No unit could be had right now.
    #[error("not ready: {0}")]
    NotReady(&'static str),
    /// Ours.
    #[error(transparent)]
    Fatal(#[from] Fatal),
}

/// The leases of this node. Cheap to clone.
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

/// Whose reads.
#[derive(Debug, Clone)]
struct Reads {
    principal: Principal,
    team: TeamId,
    agent: String,
    /// The row that counts them.
    row: Bytes,
}

impl Leases {
    /// Asks through `replica`. Requests run among the `tasks` that serve clients: they outlive a reader who goes away,
    /// so that what was granted is not lost.
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

    /// Takes one read of the agent's day. `state` is what the caller is going to read.
    pub async fn take(
        &self,
        principal: Principal,
        team: TeamId,
        agent: &str,
        state: &StateDb,
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
        // Another reader may have got a lease, or the refusal, meanwhile.
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

    /// How an agent's day stands in `state`, for those who only look.
    pub fn standing(&self, team: TeamId, agent: &str, state: &StateDb) -> Result<Standing, Fatal> {
        let row = keys::read_count(team, agent);
        let at = self.moment_of(self.wall_ms(state)?);
        let used = used(state, &row, at.day)?.saturating_sub(self.ledger().unspent(&row, at));
        Ok(Standing {
            used,
            limit: limit(state, team)?,
        })
    }

    /// Takes a unit of what this node holds. None: a lease must be asked for.
    fn take_held(&self, reads: &Reads, state: &StateDb) -> Result<Option<Standing>, NoUnit> {
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

    /// Asks for a lease and spends its first unit.
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
        let reply = reply.map_err(|_| NoUnit::NotReady("this node cannot reach a quorum right now"))?;
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

    /// Returns what is not spent, until `shutdown`.
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
                Err(error) => tracing::error!(%error, "reading the time failed"),
            }
            shutdown.run_until_cancelled(self.give_back()).await;
        }
    }

    /// Returns everything, before this node stops.
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
                // The next round tries again, which credits nothing twice.
                Err(error) => {
                    tracing::debug!(%error, "leases could not be returned");
                    return self.ledger().owe(leases);
                }
            }
        }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.shared.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn moment_of(&self, wall_ms: u64) -> Moment {
        Moment {
            day: time::day(wall_ms),
            now: self.shared.wall_time.clock().now(),
        }
    }

    /// Replicated wall time, or that of the voters' clocks when it is ahead: nobody has written for a while.
    pub fn wall_ms(&self, state: &StateDb) -> Result<u64, Fatal> {
        Ok(query::applied(state)?.wall_ms.max(self.shared.wall_time.now_ms()))
    }
}

/// What becomes of a read.
#[derive(Debug, PartialEq, Eq)]
enum Decision {
    /// It has its unit.
    Taken(Standing),
    /// It needs a lease.
    Ask,
    /// Nothing is left of this limit: a refusal that needs no entry.
    UsedUp(u64),
}

/// Decides over a read as far as the ledger and the state allow. Every unit that is held counts as used in the
/// state, so while that is within the limit, so is all that is spent.
fn decide(ledger: &mut Ledger, state: &impl Kv, team: TeamId, row: &[u8], at: Moment) -> Result<Decision, Fatal> {
    let limit = limit(state, team)?;
    if limit == 0 {
        return Ok(Decision::Taken(Standing { used: 0, limit }));
    }
    let used = used(state, row, at.day)?;
    if used > limit {
        ledger.retire(row);
    } else if let Some(left) = ledger.spend(row, at) {
        // The grant of a moment ago may not be in this state yet.
        let used = used.saturating_sub(left).max(1);
        return Ok(Decision::Taken(Standing { used, limit }));
    }
    Ok(if used >= limit {
        Decision::UsedUp(limit)
    } else {
        Decision::Ask
    })
}

/// A team's daily reads of an agent; 0 = unlimited.
fn limit(state: &impl Kv, team: TeamId) -> Result<u64, Fatal> {
    let limits = query::team::by_id(state, team)?.and_then(|team| team.limits);
    Ok(limits.unwrap_or_else(default_limits).daily_reads)
}

/// What a row counts of a day.
fn used(state: &impl Kv, row: &[u8], day: u32) -> Result<u64, Fatal> {
    let count = query::team::day_count(state, row)?;
    Ok(if count.day < day { 0 } else { count.used })
}

#[cfg(test)]
mod tests;
