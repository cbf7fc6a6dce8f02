//! The ordered map under `apply` and the queries. It has two implementations: RocksDB (`disk/state.rs`) and
//! [`Memory`]. The replay test applies one log to both and expects the same bytes.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;

/// The state could not be read, written or decoded. The node must stop: it must never answer differently from its
/// peers.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// The database failed.
    #[error("state database: {0}")]
    Database(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A stored value does not decode.
    #[error("undecodable {what}: {source}")]
    Decode {
        /// The value's type.
        what: &'static str,
        source: prost::DecodeError,
    },
    /// The rows contradict each other. `apply` never writes such rows, so this is a bug or damage.
    #[error("broken invariant: {0}")]
    Invariant(String),
}

/// A key and its value.
pub type Row = (Bytes, Bytes);
/// Rows of a range, in the order asked for.
pub type Rows<'a> = Box<dyn Iterator<Item = Result<Row, Fatal>> + 'a>;

/// The direction of a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Smallest key first.
    Ascending,
    /// Largest key first.
    Descending,
}

/// Read access to single rows. A query that needs no more than this is short, whatever the state holds.
pub trait Lookup {
    /// The value at `key`.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Fatal>;
}

/// Read access to an ordered map.
pub trait Kv: Lookup {
    /// The rows with `start <= key < end`.
    fn range(&self, range: Range<Vec<u8>>, order: Order) -> Rows<'_>;
    /// The map as it is now, unchanged by later writes. A query that needs several reads takes them all from one such
    /// copy.
    fn frozen(&self) -> Box<dyn Kv + '_>;
}

impl<K: Lookup + ?Sized> Lookup for &K {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Fatal> {
        (**self).get(key)
    }
}

impl<K: Kv + ?Sized> Kv for &K {
    fn range(&self, range: Range<Vec<u8>>, order: Order) -> Rows<'_> {
        (**self).range(range, order)
    }

    fn frozen(&self) -> Box<dyn Kv + '_> {
        (**self).frozen()
    }
}

/// Writes that become visible together, ordered by key, each key once. `None` deletes.
pub type Writes = Vec<(Bytes, Option<Bytes>)>;

/// An ordered map in memory.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Memory {
    rows: BTreeMap<Bytes, Bytes>,
}

impl Memory {
    /// Applies all writes.
    pub fn write(&mut self, writes: Writes) {
        for (key, value) in writes {
            match value {
                Some(value) => self.rows.insert(key, value),
                None => self.rows.remove(&key),
            };
        }
    }

    /// All rows, in key order.
    pub fn rows(&self) -> impl Iterator<Item = (&Bytes, &Bytes)> {
        self.rows.iter()
    }
}

impl Lookup for Memory {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Fatal> {
        Ok(self.rows.get(key).cloned())
    }
}

impl Kv for Memory {
    fn range(&self, range: Range<Vec<u8>>, order: Order) -> Rows<'_> {
        if range.start >= range.end {
            return Box::new(std::iter::empty());
        }
        let rows = self.rows.range::<[u8], _>((
            std::ops::Bound::Included(range.start.as_slice()),
            std::ops::Bound::Excluded(range.end.as_slice()),
        ));
        let row = |(key, value): (&Bytes, &Bytes)| Ok((key.clone(), value.clone()));
        match order {
            Order::Ascending => Box::new(rows.map(row)),
            Order::Descending => Box::new(rows.rev().map(row)),
        }
    }

    fn frozen(&self) -> Box<dyn Kv + '_> {
        Box::new(self)
    }
}
