//! The hot rows that apply remembers between batches.
//!
//! It also remembers that a row is absent. The memory is bounded in bytes. When it is full, the least recently used rows
//! are forgotten, one at a time: if many were forgotten at once, the next commands would read them all again.

use bytes::Bytes;
use lru::LruCache;

/// The most memory that the rows may take.
const BYTES_MAX: usize = 32 << 20;
/// Memory of a row beside its key and value: two `Bytes`, the links of the list, the slot of the table, and what the
/// allocator rounds up.
const ROW_BYTES: usize = 160;

/// Rows by key, the most recently used ones.
#[derive(Debug)]
pub(super) struct HotRows {
    rows: LruCache<Bytes, Option<Bytes>>,
    bytes: usize,
    bytes_max: usize,
}

impl Default for HotRows {
    fn default() -> Self {
        Self::of(BYTES_MAX)
    }
}

impl HotRows {
    fn of(bytes_max: usize) -> Self {
        HotRows {
            rows: LruCache::unbounded(),
            bytes: 0,
            bytes_max,
        }
    }

    /// The row as the database has it; the outer `None` if it is not cached.
    pub(super) fn get(&mut self, key: &[u8]) -> Option<Option<Bytes>> {
        self.rows.get(key).cloned()
    }

    pub(super) fn insert(&mut self, key: Bytes, value: Option<Bytes>) {
        self.bytes += cost(&key, value.as_ref());
        if let Some((key, replaced)) = self.rows.push(key, value) {
            self.bytes -= cost(&key, replaced.as_ref());
        }
        while self.bytes > self.bytes_max
            && let Some((key, value)) = self.rows.pop_lru()
        {
            self.bytes -= cost(&key, value.as_ref());
        }
    }

    pub(super) fn clear(&mut self) {
        self.rows.clear();
        self.bytes = 0;
    }
}

fn cost(key: &Bytes, value: Option<&Bytes>) -> usize {
    ROW_BYTES + key.len() + value.map_or(0, Bytes::len)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ROWS: usize = 10;

    fn key(n: usize) -> Bytes {
        Bytes::from(vec![b'k'; 10 + n])
    }

    #[test]
    fn a_full_cache_forgets_the_least_recently_used_row() {
        let value = Some(Bytes::from_static(&[0; 80]));
        let mut rows = HotRows::of(ROWS * 260);
        (0..ROWS).for_each(|n| rows.insert(key(n), value.clone()));
        assert_eq!(rows.get(&key(0)), Some(value.clone()));
        rows.insert(key(ROWS), None);
        assert_eq!(rows.get(&key(1)), None, "used less recently than the first row");
        assert_eq!(rows.get(&key(0)), Some(value.clone()));
        assert_eq!(rows.get(&key(ROWS)), Some(None));
        rows.insert(key(2), Some(Bytes::from(vec![0; ROWS * 260])));
        assert_eq!(
            (rows.get(&key(2)), rows.bytes),
            (None, 0),
            "larger than the whole cache"
        );
    }

    proptest! {
        #[test]
        fn a_cached_row_is_the_last_one_written(
            steps in proptest::collection::vec((0..30usize, proptest::option::of(0..200usize)), 0..200),
        ) {
            let mut rows = HotRows::of(ROWS * 260);
            let mut written = std::collections::BTreeMap::new();
            for (n, value) in steps {
                let value = value.map(|bytes| Bytes::from(vec![1; bytes]));
                written.insert(n, value.clone());
                rows.insert(key(n), value);
                prop_assert!(rows.bytes <= rows.bytes_max);
                let held: usize = rows.rows.iter().map(|(key, value)| cost(key, value.as_ref())).sum();
                prop_assert_eq!(rows.bytes, held);
                for (n, value) in &written {
                    let cached = rows.rows.peek(&key(*n));
                    prop_assert!(cached.is_none_or(|cached| cached == value));
                }
            }
        }
    }
}
