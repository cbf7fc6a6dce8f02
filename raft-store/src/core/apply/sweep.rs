//! Sweeps remove what is due in the [queues](super::queue), a bounded number of rows per entry.

use agentpost_proto::command::SweepReply;
use agentpost_proto::record::Idempotency;

use super::message::IDEMPOTENCY_TTL_MS;
use super::{Context, Stop, cursor, delivery, lease, login, queue, retention};
use crate::core::keys::{self, Queue};
use crate::core::kv::Fatal;
use crate::core::query::queue::Now;
use crate::core::view::View;

/// The maximal number of rows that a Sweep entry removes, so that applying it takes little time.
const SWEEP_ROWS_MAX: usize = 256;

/// Removes what is due. The queues share the rows of an entry equally. One with less to do than its share leaves the
/// rest to the others, so none can delay another, and a single busy queue gets nearly all.
pub fn sweep(view: &mut View<'_>, context: &Context<'_>) -> Result<SweepReply, Stop> {
    let now = context.now();
    let (mut left, mut rows) = (SWEEP_ROWS_MAX, 0);
    let mut busy = Queue::ALL.to_vec();
    while left > 0 && !busy.is_empty() {
        let share = left.div_ceil(busy.len());
        for queue in std::mem::take(&mut busy) {
            let share = share.min(left);
            let removed = sweep_queue(view, queue, now, share)?;
            rows += removed as u32;
            left = left.saturating_sub(removed);
            if removed >= share {
                busy.push(queue);
            }
        }
    }
    Ok(SweepReply { rows, full: left == 0 })
}

/// Removes about `rows` rows that are due in one queue. Fewer mean that nothing is left.
fn sweep_queue(view: &mut View<'_>, queue: Queue, now: Now, rows: usize) -> Result<usize, Fatal> {
    match queue {
        Queue::Idempotency => sweep_idempotency(view, now, rows),
        Queue::Expiry => retention::sweep_expired(view, now, rows),
        Queue::Retention => retention::sweep_old(view, now, rows),
        Queue::Deliveries => delivery::sweep_aged(view, now, rows),
        Queue::Leases => lease::sweep(view, now, rows),
        Queue::Logins => login::sweep(view, now, rows),
        Queue::Cursors => cursor::sweep(view, now, rows),
    }
}

fn sweep_idempotency(view: &mut View<'_>, now: Now, rows: usize) -> Result<usize, Fatal> {
    let due = queue::take(view, Queue::Idempotency, now, rows)?;
    for (expiry, _) in &due {
        let key = keys::idempotency_of_expiry(expiry).ok_or_else(|| Fatal::Invariant("a short ix key".to_owned()))?;
        // If the key was used again since, its row is newer and has a later expiry row.
        let row: Option<Idempotency> = view.load(&key)?;
        if row.is_some_and(|row| row.created_ct_ms + IDEMPOTENCY_TTL_MS <= now.cluster_ms) {
            view.delete(key);
        }
    }
    let removed = due.len();
    queue::remove(view, Queue::Idempotency, due.into_iter().map(|(key, _)| key));
    Ok(removed)
}
