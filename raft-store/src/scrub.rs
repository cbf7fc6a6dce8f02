//! Reads everything again that a node seldom reads, so that a bit which flipped on the disk is found while the other
//! nodes are sound, and not years later when they are not.
//!
//! The state is read through a checkpoint, opened for reading beside the live database: its files stay while
//! they are read, and nothing comes from the live database's cache. Every block of rows is read by an iterator;
//! filters, which no iterator asks, by looking for a key that is not there in each file's range. The newest
//! snapshot's files are compared with their manifest. The log is not read here: all of it was when it was opened, and
//! what is read of it is checked each time.

use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rocksdb::ReadOptions;

use crate::damage::{Damage, is_damage};
use crate::db::{Layout, OpenError, StateHandle, common_options};
use crate::files;
use crate::snapshot::Snapshots;

/// What is read as fast as the disk gives it.
const FREE_BYTES: u64 = 128 << 20;
/// Above that: the disk and a core belong to others.
const BYTES_PER_S: u64 = 64 << 20;
/// Between two pauses.
const STRIDE_BYTES: u64 = 4 << 20;
const READ_AHEAD_BYTES: usize = 1 << 20;

/// How fast something is read, and whether to stop.
pub(crate) struct Pace<'a> {
    stop: &'a AtomicBool,
    /// Read so far.
    bytes: u64,
    /// Bytes until the next pause.
    left: u64,
    paced: bool,
}

impl<'a> Pace<'a> {
    /// As fast as the disk.
    pub(crate) fn free(stop: &'a AtomicBool) -> Self {
        Pace {
            stop,
            bytes: 0,
            left: u64::MAX,
            paced: false,
        }
    }

    fn gentle(stop: &'a AtomicBool) -> Self {
        Pace {
            stop,
            bytes: 0,
            left: FREE_BYTES,
            paced: true,
        }
    }

    /// So many bytes more were read; says whether to go on.
    pub(crate) fn on(&mut self, bytes: usize) -> bool {
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

/// Reads every block of a database.
pub(crate) fn read_all(db: &rocksdb::DB, pace: &mut Pace<'_>) -> Result<(), rocksdb::Error> {
    let mut options = ReadOptions::default();
    options.fill_cache(false);
    options.set_readahead_size(READ_AHEAD_BYTES);
    let mut rows = db.raw_iterator_opt(options);
    rows.seek_to_first();
    while let Some((key, value)) = rows.item() {
        if !pace.on(key.len() + value.len()) {
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

/// Reads a shard again. It blocks, for minutes if there is much.
#[derive(Clone)]
pub struct Scrub {
    dir: PathBuf,
    state: StateHandle,
    snapshots: Arc<Snapshots>,
    damage: Damage,
}

impl Scrub {
    /// Sweeps away what a crash left of an earlier one.
    pub(crate) fn new(
        layout: &Layout,
        state: StateHandle,
        snapshots: Arc<Snapshots>,
        damage: Damage,
    ) -> Result<Self, OpenError> {
        let dir = layout.scrub();
        files::remove_dir(&dir).map_err(OpenError::io(&dir))?;
        Ok(Scrub {
            dir,
            state,
            snapshots,
            damage,
        })
    }

    /// Reads everything once, or until `stop`; returns how many bytes. Damage is reported where the node waits for
    /// it; an error is anything else that kept it from reading.
    pub fn run(&self, stop: &AtomicBool) -> io::Result<u64> {
        let mut pace = Pace::gentle(stop);
        self.read_state(&mut pace)?;
        if let Some(newest) = self.snapshots.kept()
            && let Err(error) = newest.verify(&mut pace)
        {
            if !matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::NotFound) {
                return Err(error);
            }
            self.damage.directory(newest.dir(), &error.to_string());
        }
        Ok(pace.bytes)
    }

    fn read_state(&self, pace: &mut Pace<'_>) -> io::Result<()> {
        let db = self.state.current();
        files::remove_dir(&self.dir)?;
        // It reports damage itself; a full disk is none.
        db.checkpoint(&self.dir).map_err(io::Error::other)?;
        let read =
            rocksdb::DB::open_for_read_only(&common_options(), &self.dir, false).and_then(|copy| read_all(&copy, pace));
        files::remove_dir(&self.dir)?;
        match read {
            Err(error) if !is_damage(&error) => Err(io::Error::other(error)),
            Err(error) => {
                self.damage.directory(db.dir(), error.as_ref());
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }
}
