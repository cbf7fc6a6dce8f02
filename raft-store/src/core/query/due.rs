//! Queries about what is due. Their cost does not depend on the number of teams, nor on what was removed before.

use agentpost_proto::command::Sweep;

use super::delivery;
use super::queue::{self, Now};
use crate::core::keys::{self, Queue};
use crate::core::kv::{Fatal, Kv, Order};

/// Whether the state has any row that ages: a message, a delivery, an idempotency key, a lease or a login. Only then
/// must the leader carry time forward. Cursors do not count: two months of commands that only carry time would cost
/// more than the row of an unused cursor.
pub fn ages(kv: &impl Kv) -> Result<bool, Fatal> {
    // An open delivery has a message, which is nearly always in the queue of retention. So the scan below, which has
    // no floor, runs only in a state that has been quiet for a month.
    for queue in [
        Queue::Retention,
        Queue::Idempotency,
        Queue::Deliveries,
        Queue::Leases,
        Queue::Logins,
    ] {
        if !queue::is_empty(kv, queue)? {
            return Ok(true);
        }
    }
    let scheduled = kv.range(keys::endpoint_heads(), Order::Ascending).next().transpose()?;
    Ok(scheduled.is_some() || delivery::has_claims(kv)?)
}

/// The next sweep, if it would remove something at these times.
pub fn sweep(kv: &impl Kv, cluster_ms: u64, wall_ms: u64) -> Result<Option<Sweep>, Fatal> {
    let now = Now { cluster_ms, wall_ms };
    for queue in Queue::ALL {
        if queue::first_due(kv, queue, now)?.is_some() {
            return Ok(Some(Sweep {}));
        }
    }
    Ok(None)
}
