//! The view that `apply` reads and writes: the state before the batch, overlaid with the batch's own writes.
//!
//! Writes are buffered in an ordered map, so a row that many commands change (a team's counters) reaches the database
//! once per batch, in key order. Each command begins with a savepoint, so that a rejected command leaves no writes. What
//! a read, a scan or a rollback costs depends on the rows that it takes, never on the writes of the rest of the batch.

mod hot_rows;
mod overlay;
mod recent_ids;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::{Bound, Range};

use agentpost_proto::id::{MessageId, TeamId};
use agentpost_proto::record;
use bytes::Bytes;
use prost::Message;
use twox_hash::XxHash3_64;

use self::hot_rows::HotRows;
use self::overlay::Overlay;
use self::recent_ids::RecentIds;
use crate::core::keys;
use crate::core::kv::{Fatal, Kv, Lookup, Order, Rows, Writes};

/// What apply remembers between batches, so that most commands read nothing from the database. It always agrees with the
/// database: it changes the cost of a command and never its result.
#[derive(Debug, Default)]
pub struct HotCache {
    rows: RefCell<HotRows>,
    ids: RefCell<RecentIds>,
}

impl HotCache {
    fn get(&self, key: &[u8], base: &(dyn Kv + Sync)) -> Result<Option<Bytes>, Fatal> {
        let mut rows = self.rows.borrow_mut();
        if let Some(value) = rows.get(key) {
            return Ok(value);
        }
        let value = base.get(key)?;
        rows.insert(Bytes::copy_from_slice(key), value.clone());
        Ok(value)
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
    undo: usize,
    state_hash: u64,
}

/// A batch's write to one row.
struct Write {
    /// The serial of the savepoint after which the row was last written. A row that is written twice after one savepoint
    /// needs only one entry in the undo list.
    serial: u32,
    value: Option<Bytes>,
}

/// The state during one batch.
pub struct View<'a> {
    base: &'a (dyn Kv + Sync),
    cache: &'a mut HotCache,
    writes: BTreeMap<Bytes, Write>,
    /// What undoes the writes of the current command, in their order: the batch's previous write to the row, or `None` if
    /// the batch had not written the row.
    undo: Vec<(Bytes, Option<Write>)>,
    /// The serial of the newest savepoint.
    serial: u32,
    /// The applied row, decoded. It is written once, at the end. Its state hash is chained over every write.
    pub(crate) applied: record::Applied,
    bytes: usize,
    touched: Cell<u64>,
    /// Whether the writes are thrown away, so that only the first one matters.
    is_preview: bool,
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
            applied,
            bytes: 0,
            touched: Cell::new(0),
            is_preview: false,
        })
    }

    /// A view whose writes are thrown away. A batch of messages stops after the first one that writes.
    pub(crate) fn preview(base: &'a (dyn Kv + Sync), cache: &'a mut HotCache) -> Result<Self, Fatal> {
        let view = Self::new(base, cache)?;
        Ok(View {
            is_preview: true,
            ..view
        })
    }

    /// Whether a preview knows already that the command writes.
    pub(crate) fn is_decided(&self) -> bool {
        self.is_preview && !self.is_unwritten()
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
        touch(&self.touched);
        let hash = XxHash3_64::oneshot_with_seed(self.applied.state_hash, &key);
        self.applied.state_hash = match &value {
            Some(value) => XxHash3_64::oneshot_with_seed(hash, value),
            None => !hash,
        };
        let serial = self.serial;
        let write = Write { serial, value };
        match self.writes.entry(key) {
            Entry::Vacant(row) => {
                self.undo.push((row.key().clone(), None));
                row.insert(write);
            }
            Entry::Occupied(mut row) => {
                let previous = std::mem::replace(row.get_mut(), write);
                if previous.serial < serial {
                    self.undo.push((row.key().clone(), Some(previous)));
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

    /// Begins a command. The commands before it were accepted, so what would undo them is forgotten.
    pub fn begin_command(&mut self) -> Savepoint {
        self.undo.clear();
        self.savepoint()
    }

    /// Begins a savepoint within a command.
    pub fn savepoint(&mut self) -> Savepoint {
        self.serial += 1;
        Savepoint {
            undo: self.undo.len(),
            state_hash: self.applied.state_hash,
        }
    }

    /// Undoes every write since `savepoint`, which belongs to the current command. The cost depends on these writes
    /// alone, not on the batch.
    pub fn rollback(&mut self, savepoint: Savepoint) {
        self.applied.state_hash = savepoint.state_hash;
        for (key, previous) in self.undo.drain(savepoint.undo..).rev() {
            touch(&self.touched);
            match previous {
                Some(write) => drop(self.writes.insert(key, write)),
                None => drop(self.writes.remove(&key)),
            }
        }
    }

    /// Whether no command has written a row.
    pub(crate) fn is_unwritten(&self) -> bool {
        self.writes.is_empty()
    }

    /// Bytes written so far. The caller ends the batch when they are many.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Rows read, written, stepped over and undone so far, and scans begun. This is the cost of the batch without a
    /// clock: a test can bound it, and it is the same on every machine.
    pub fn touched(&self) -> u64 {
        self.touched.get()
    }

    /// All writes of the batch, including the applied row.
    pub fn into_writes(mut self) -> Writes {
        let applied = Bytes::from(std::mem::take(&mut self.applied).encode_to_vec());
        let mut writes: Writes = Vec::with_capacity(self.writes.len() + 1);
        writes.push((keys::applied(), Some(applied)));
        for (key, Write { value, .. }) in self.writes {
            if keys::is_hot(&key) {
                self.cache.rows.get_mut().insert(key.clone(), value.clone());
            }
            writes.push((key, value));
        }
        writes
    }
}

fn touch(touched: &Cell<u64>) {
    touched.set(touched.get() + 1);
}

/// Reads and decodes a row of any map.
pub fn load<T: Message + Default>(kv: &(impl Lookup + ?Sized), key: &[u8]) -> Result<Option<T>, Fatal> {
    kv.get(key)?.map(|bytes| decode(bytes)).transpose()
}

/// Decodes a stored value.
pub fn decode<T: Message + Default>(bytes: Bytes) -> Result<T, Fatal> {
    T::decode(bytes).map_err(|source| Fatal::Decode {
        what: std::any::type_name::<T>(),
        source,
    })
}

impl Lookup for View<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Fatal> {
        touch(&self.touched);
        match self.writes.get(key) {
            Some(write) => Ok(write.value.clone()),
            None if keys::is_hot(key) => self.cache.get(key, self.base),
            None => self.base.get(key),
        }
    }
}

impl Kv for View<'_> {
    fn range(&self, range: Range<Vec<u8>>, order: Order) -> Rows<'_> {
        touch(&self.touched);
        let (start, end) = (range.start.as_slice(), range.end.as_slice());
        // `BTreeMap::range` panics when the end lies before the start.
        let bounds = (Bound::Included(start), Bound::Excluded(end.max(start)));
        let over = self.writes.range::<[u8], _>(bounds);
        let over = over.map(|(key, write)| (key, write.value.as_ref()));
        let base = self.base.range(range, order);
        match order {
            Order::Ascending => Box::new(Overlay::new(base, over, order, &self.touched)),
            Order::Descending => Box::new(Overlay::new(base, over.rev(), order, &self.touched)),
        }
    }

    fn frozen(&self) -> Box<dyn Kv + '_> {
        Box::new(self)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
