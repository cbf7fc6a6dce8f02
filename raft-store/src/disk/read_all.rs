//! Reading every block of a database, at a limited rate.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rocksdb::ReadOptions;

/// Bytes that are read without a limit before the rate limit begins.
const FREE_BYTES: u64 = 128 << 20;
/// The rate limit, which leaves the disk and the CPU to others.
const BYTES_PER_S: u64 = 64 << 20;
/// Bytes that are read between two pauses.
const STRIDE_BYTES: u64 = 4 << 20;
const READ_AHEAD_BYTES: usize = 1 << 20;

/// Limits the rate of a long read, and stops it on request.
pub(crate) struct Pace<'a> {
    stop: &'a AtomicBool,
    /// Bytes read so far.
    bytes: u64,
    /// Bytes until the next pause.
    left: u64,
    paced: bool,
}

impl<'a> Pace<'a> {
    /// No rate limit.
    pub(crate) fn free(stop: &'a AtomicBool) -> Self {
        Pace {
            stop,
            bytes: 0,
            left: u64::MAX,
            paced: false,
        }
    }

    pub(crate) fn gentle(stop: &'a AtomicBool) -> Self {
        Pace {
            stop,
            bytes: 0,
            left: FREE_BYTES,
            paced: true,
        }
    }

    /// Bytes read so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Counts bytes that were read, and pauses if necessary. Returns whether to continue.
    pub(crate) fn advance(&mut self, bytes: usize) -> bool {
        let bytes = bytes as u64;
        self.bytes += bytes;
        self.left = self.left.saturating_sub(bytes);
        if self.paced && self.left == 0 {
            self.left = STRIDE_BYTES;
            std::thread::sleep(Duration::from_millis(STRIDE_BYTES * 1_000 / BYTES_PER_S));
        }
        !self.stop.load(Ordering::Relaxed)
    }
}

/// Reads every block of a database. An iterator reads all rows; it does not read the filters, so a lookup of an absent
/// key in the range of each file reads those.
pub(crate) fn read_all(db: &rocksdb::DB, pace: &mut Pace<'_>) -> Result<(), rocksdb::Error> {
    let mut options = ReadOptions::default();
    options.fill_cache(false);
    options.set_readahead_size(READ_AHEAD_BYTES);
    let mut rows = db.raw_iterator_opt(options);
    rows.seek_to_first();
    while let Some((key, value)) = rows.item() {
        if !pace.advance(key.len() + value.len()) {
            return Ok(());
        }
        rows.next();
    }
    rows.status()?;
    for file in db.live_files()? {
        if let Some(mut absent) = file.start_key {
            absent.push(0);
            db.get_pinned(absent)?;
        }
    }
    Ok(())
}
