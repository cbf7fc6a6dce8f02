//! The view that `apply` reads and writes: the state before the batch, overlaid with the batch's own writes.
//!
//! Writes are buffered in an ordered map, so a row that many commands change (a team's counters) reaches the database
//! once per batch, in key order. Each command begins with a savepoint, so that a rejected command leaves no writes.

mod recent_ids;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;

use agentpost_proto::id::{MessageId, TeamId};
use agentpost_proto::record;
use bytes::Bytes;
use prost::Message;
use twox_hash::XxHash3_64;

use self::recent_ids::RecentIds;
use crate::core::keys;
use crate::core::kv::{Fatal, Kv, Order, Row, Rows, Writes};

/// A cache of hot rows that outlives a batch. It also caches that a row is absent, and always agrees with the database.
#[derive(Debug, Default)]
pub struct HotCache {
    #[expect(
        clippy::disallowed_types,
        reason = "looked up by key, never walked, so its order cannot show"
    )]
    rows: RefCell<std::collections::HashMap<Bytes, Option<Bytes>>>,
    ids: RefCell<RecentIds>,
}

impl HotCache {
    /// The cache is cleared when it holds this many rows.
    const ROWS_MAX: usize = 200_000;

    fn get(&self, key: &[u8], base: &(dyn Kv + Sync)) -> Result<Option<Bytes>, Fatal> {
        if let Some(value) = self.rows.borrow().get(key) {
            return Ok(value.clone());
        }
        let value = base.get(key)?;
        self.insert(Bytes::copy_from_slice(key), value.clone());
        Ok(value)
    }

    fn insert(&self, key: Bytes, value: Option<Bytes>) {
        let mut rows = self.rows.borrow_mut();
        if rows.len() >= Self::ROWS_MAX {
            rows.clear();
        }
        rows.insert(key, value);
    }

    /// Forgets everything. Call it when the database was replaced.
    pub fn clear(&mut self) {
        self.rows.get_mut().clear();
        self.ids.get_mut().clear();
    }
}

/// A position in the writes of a batch, to which a rejected command is rolled back.
#[derive(Debug, Clone, Copy)]
pub struct Savepoint {
    serial: u32,
    undo: usize,
    fresh: usize,
    state_hash: u64,
}

/// A batch's write to one row.
struct Write {
    /// The savepoint after which this batch first wrote the row. A rollback to that savepoint, or to an older one,
    /// removes the write.
    serial: u32,
    value: Option<Bytes>,
}

/// The state during one batch.
pub struct View<'a> {
    base: &'a (dyn Kv + Sync),
    cache: &'a mut HotCache,
    writes: BTreeMap<Bytes, Write>,
    /// The previous values of rows that were first written before the newest savepoint.
    undo: Vec<(Bytes, Option<Bytes>)>,
    /// The serial of the newest savepoint.
    serial: u32,
    /// How many rows the batch writes.
    fresh: usize,
    /// The applied row, decoded. It is written once, at the end. Its state hash is chained over every write.
    pub(crate) applied: record::Applied,
    bytes: usize,
}

impl<'a> View<'a> {
    /// A view of `base`, without writes yet.
    pub fn new(base: &'a (dyn Kv + Sync), cache: &'a mut HotCache) -> Result<Self, Fatal> {
        let applied = load(base, &keys::applied())?.unwrap_or_default();
        Ok(View {
            base,
            cache,
            writes: BTreeMap::new(),
            undo: Vec::new(),
            serial: 0,
            fresh: 0,
            applied,
            bytes: 0,
        })
    }

    /// Writes a row.
    pub fn put(&mut self, key: Bytes, value: Bytes) {
        self.bytes += key.len() + value.len();
        self.write(key, Some(value));
    }

    /// Writes a protobuf row.
    pub fn store(&mut self, key: Bytes, value: &impl Message) {
        self.put(key, Bytes::from(value.encode_to_vec()));
    }

    /// Removes a row.
    pub fn delete(&mut self, key: Bytes) {
        self.write(key, None);
    }

    fn write(&mut self, key: Bytes, value: Option<Bytes>) {
        let hash = XxHash3_64::oneshot_with_seed(self.applied.state_hash, &key);
        self.applied.state_hash = match &value {
            Some(value) => XxHash3_64::oneshot_with_seed(hash, value),
            None => !hash,
        };
        match self.writes.entry(key) {
            Entry::Vacant(row) => {
                let serial = self.serial;
                row.insert(Write { serial, value });
                self.fresh += 1;
            }
            Entry::Occupied(mut row) => {
                let previous = std::mem::replace(&mut row.get_mut().value, value);
                if row.get().serial < self.serial {
                    self.undo.push((row.key().clone(), previous));
                }
            }
        }
    }

    /// Reads a protobuf row.
    pub fn load<T: Message + Default>(&self, key: &[u8]) -> Result<Option<T>, Fatal> {
        load(self, key)
    }

    /// Whether a message with this id may already be stored. `false` is certain; after `true` the row decides. Call it
    /// once per id, just before the message is stored.
    pub fn may_hold(&self, team: TeamId, id: MessageId) -> Result<bool, Fatal> {
        if let Some(answer) = self.cache.ids.borrow_mut().note(team, id) {
            return Ok(answer);
        }
        let greatest = self
            .range(keys::message_ids(team), Order::Descending)
            .next()
            .transpose()?;
        let greatest = greatest.and_then(|(key, _)| keys::trailing_message_id(&key));
        let mut ids = self.cache.ids.borrow_mut();
        ids.watch(team, greatest);
        Ok(ids.note(team, id).unwrap_or(true))
    }

    /// Begins a savepoint after the writes so far.
    pub fn savepoint(&mut self) -> Savepoint {
        self.serial += 1;
        Savepoint {
            serial: self.serial,
            undo: self.undo.len(),
            fresh: self.fresh,
            state_hash: self.applied.state_hash,
        }
    }

    /// Undoes every write since `savepoint`. It may walk the whole batch, because it is rare.
    pub fn rollback(&mut self, savepoint: Savepoint) {
        self.applied.state_hash = savepoint.state_hash;
        for (key, previous) in self.undo.drain(savepoint.undo..).rev() {
            if let Some(write) = self.writes.get_mut(&key) {
                write.value = previous;
            }
        }
        if self.fresh > savepoint.fresh {
            self.writes.retain(|_, write| write.serial < savepoint.serial);
            self.fresh = savepoint.fresh;
        }
    }

    /// Bytes written so far. The caller ends the batch when they are many.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// All writes of the batch, including the applied row.
    pub fn into_writes(mut self) -> Writes {
        let applied = Bytes::from(std::mem::take(&mut self.applied).encode_to_vec());
        let mut writes: Writes = Vec::with_capacity(self.writes.len() + 1);
        writes.push((keys::applied(), Some(applied)));
        for (key, Write { value, .. }) in self.writes {
            if keys::is_hot(&key) {
                self.cache.insert(key.clone(), value.clone());
            }
            writes.push((key, value));
        }
        writes
    }
}

/// Reads and decodes a row of any map.
pub fn load<T: Message + Default>(kv: &(impl Kv + ?Sized), key: &[u8]) -> Result<Option<T>, Fatal> {
    kv.get(key)?.map(|bytes| decode(bytes)).transpose()
}

/// Decodes a stored value.
pub fn decode<T: Message + Default>(bytes: Bytes) -> Result<T, Fatal> {
    T::decode(bytes).map_err(|source| Fatal::Decode {
        what: std::any::type_name::<T>(),
        source,
    })
}

impl Kv for View<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Fatal> {
        match self.writes.get(key) {
            Some(write) => Ok(write.value.clone()),
            None if keys::is_hot(key) => self.cache.get(key, self.base),
            None => self.base.get(key),
        }
    }

    fn range(&self, range: Range<Vec<u8>>, order: Order) -> Rows<'_> {
        let mut over: Vec<(Bytes, Option<Bytes>)> = Vec::new();
        if range.start < range.end {
            let (start, end) = (Bytes::copy_from_slice(&range.start), Bytes::copy_from_slice(&range.end));
            over.extend(
                self.writes
                    .range(start..end)
                    .map(|(k, write)| (k.clone(), write.value.clone())),
            );
        }
        if order == Order::Ascending {
            over.reverse(); // taken from the back
        }
        Box::new(Overlay {
            base: self.base.range(range, order).peekable(),
            over,
            order,
        })
    }

    fn frozen(&self) -> Box<dyn Kv + '_> {
        Box::new(self)
    }
}

/// Merges the rows of the base with the writes over them. Both are in the same order.
struct Overlay<'a> {
    base: std::iter::Peekable<Rows<'a>>,
    over: Vec<(Bytes, Option<Bytes>)>,
    order: Order,
}

impl Iterator for Overlay<'_> {
    type Item = Result<Row, Fatal>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let Some((over_key, _)) = self.over.last() else {
                return self.base.next();
            };
            match self.base.peek() {
                Some(Err(_)) => return self.base.next(),
                Some(Ok((base_key, _))) if comes_first(base_key, over_key, self.order) => {
                    return self.base.next();
                }
                Some(Ok((base_key, _))) if base_key == over_key => drop(self.base.next()),
                _ => {}
            }
            if let Some((key, Some(value))) = self.over.pop() {
                return Some(Ok((key, value)));
            }
        }
    }
}

fn comes_first(a: &Bytes, b: &Bytes, order: Order) -> bool {
    match order {
        Order::Ascending => a < b,
        Order::Descending => a > b,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::core::kv::Memory;
    use proptest::prelude::*;

    fn key(n: u8) -> Bytes {
        Bytes::from(vec![b'x', b'x', n])
    }

    proptest! {
        #[test]
        fn a_view_reads_like_the_map_that_it_will_become(
            base in proptest::collection::btree_map(0..30u8, any::<u8>(), 0..20),
            steps in proptest::collection::vec((0..30u8, proptest::option::of(any::<u8>())), 0..40),
            keep in 0..40usize,
            bounds in (0..30u8, 0..30u8),
        ) {
            let mut memory = Memory::default();
            memory.write(base.into_iter().map(|(k, v)| (key(k), Some(Bytes::from(vec![v])))).collect());
            let before = memory.clone();
            let mut cache = HotCache::default();
            let mut view = View::new(&before, &mut cache).unwrap();
            let mut mark = view.savepoint();
            for (i, (k, v)) in steps.iter().enumerate() {
                if i == keep { mark = view.savepoint(); }
                match v {
                    Some(v) => view.put(key(*k), Bytes::from(vec![*v])),
                    None => view.delete(key(*k)),
                }
                if i < keep {
                    memory.write([(key(*k), v.map(|v| Bytes::from(vec![v])))].into_iter().collect());
                }
            }
            if steps.len() > keep { view.rollback(mark); }
            let range = key(bounds.0).to_vec()..key(bounds.1).to_vec();
            for order in [Order::Ascending, Order::Descending] {
                let seen: Vec<Row> = view.range(range.clone(), order).map(Result::unwrap).collect();
                let expected: Vec<Row> = memory.range(range.clone(), order).map(Result::unwrap).collect();
                prop_assert_eq!(seen, expected);
            }
            for n in 0..30 {
                prop_assert_eq!(view.get(&key(n)).unwrap(), memory.get(&key(n)).unwrap());
            }
        }
    }
}
