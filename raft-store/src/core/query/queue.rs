//! What a queue holds. Every scan begins at the floor of its queue, below which there is no row: see `apply/queue.rs`.

use agentpost_proto::{limits, time};

use crate::core::keys::{self, Queue};
use crate::core::kv::{Fatal, Kv, Order, Row, Rows};

/// The two times that decide what is due.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// Cluster time in milliseconds.
    pub cluster_ms: u64,
    /// Wall clock time in Unix milliseconds.
    pub wall_ms: u64,
}

impl Now {
    /// The time of the first rows of a queue that are not due yet.
    fn end_of(self, queue: Queue) -> u64 {
        let after = |ms: u64| ms.saturating_add(1);
        match queue {
            Queue::Idempotency | Queue::Retention | Queue::Deliveries | Queue::Logins => after(self.cluster_ms),
            Queue::Expiry => after(self.wall_ms),
            Queue::Leases => u64::from(time::day(self.wall_ms)),
            Queue::Cursors => after(self.cluster_ms.saturating_sub(limits::CURSOR_TTL_MS)),
        }
    }
}

/// The rows of a queue that are due, the earliest first.
pub fn due<'a>(kv: &'a (impl Kv + ?Sized), queue: Queue, now: Now) -> Result<Rows<'a>, Fatal> {
    let floor = kv.get(&keys::queue_floor(queue))?;
    let range = keys::queue_before(queue, floor.as_deref(), now.end_of(queue));
    Ok(kv.range(range, Order::Ascending))
}

/// The first row of a queue, if it is due.
pub fn first_due(kv: &(impl Kv + ?Sized), queue: Queue, now: Now) -> Result<Option<Row>, Fatal> {
    due(kv, queue, now)?.next().transpose()
}

/// Whether a queue has no row.
pub fn is_empty(kv: &(impl Kv + ?Sized), queue: Queue) -> Result<bool, Fatal> {
    let floor = kv.get(&keys::queue_floor(queue))?;
    let rows = keys::queue_from(queue, floor.as_deref());
    let first = kv.range(rows, Order::Ascending).next().transpose()?;
    Ok(first.is_none())
}
