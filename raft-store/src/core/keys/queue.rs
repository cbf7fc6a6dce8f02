//! Keys of queues: rows that wait for a time. The time, 8 bytes, follows the tag.

use std::ops::Range;

use bytes::Bytes;

use super::{
    Builder, CURSOR_USE, DELIVERY_AGEING, IDEMPOTENCY_EXPIRY, LEASE, LOGIN_EXPIRY, MESSAGE_EXPIRY, QUEUE_FLOOR,
    RETENTION_END, Tag,
};

/// A queue of the shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// `ix`: idempotency keys.
    Idempotency,
    /// `mx`: messages with an expiry.
    Expiry,
    /// `rt`: the messages of each team.
    Retention,
    /// `dx`: deliveries that have ended.
    Deliveries,
    /// `le`: leases of reads.
    Leases,
    /// `lx`: logins.
    Logins,
    /// `cx`: cursors.
    Cursors,
}

impl Queue {
    /// All queues.
    pub const ALL: [Queue; 7] = [
        Queue::Idempotency,
        Queue::Expiry,
        Queue::Retention,
        Queue::Deliveries,
        Queue::Leases,
        Queue::Logins,
        Queue::Cursors,
    ];

    fn tag(self) -> Tag {
        match self {
            Queue::Idempotency => IDEMPOTENCY_EXPIRY,
            Queue::Expiry => MESSAGE_EXPIRY,
            Queue::Retention => RETENTION_END,
            Queue::Deliveries => DELIVERY_AGEING,
            Queue::Leases => LEASE,
            Queue::Logins => LOGIN_EXPIRY,
            Queue::Cursors => CURSOR_USE,
        }
    }
}

/// `qf`.
pub fn queue_floor(queue: Queue) -> Bytes {
    Builder::new(QUEUE_FLOOR).bytes(&queue.tag()).key()
}

/// The rows of a queue from `floor` on, or all of them without a floor.
pub fn queue_from(queue: Queue, floor: Option<&[u8]>) -> Range<Vec<u8>> {
    let all = Builder::new(queue.tag()).prefix();
    floor.map_or(all.start, <[u8]>::to_vec)..all.end
}

/// The rows of a queue from `floor` on with a time before `time`.
pub fn queue_before(queue: Queue, floor: Option<&[u8]>, time: u64) -> Range<Vec<u8>> {
    let before = Builder::new(queue.tag()).numbers_until(time);
    floor.map_or(before.start, <[u8]>::to_vec)..before.end
}

/// The smallest key after `key`.
pub fn after(key: &[u8]) -> Bytes {
    Bytes::from([key, &[0]].concat())
}

/// The time of a row of a queue.
pub fn time_of(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(key.get(2..10)?.try_into().ok()?))
}
