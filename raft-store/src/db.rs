//! Opening the databases, with options and format version.

use std::ops::Range;

use bytes::Bytes;

use crate::kv::{Fatal, Kv, Order, Rows};

/// The state database.
pub struct StateDb {}

impl Kv for StateDb {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Fatal> {
        unimplemented!("{key:?}")
    }

    fn range(&self, range: Range<Vec<u8>>, order: Order) -> Rows<'_> {
        unimplemented!("{range:?} {order:?}")
    }

    fn frozen(&self) -> Box<dyn Kv + '_> {
        unimplemented!("a RocksDB snapshot")
    }
}
