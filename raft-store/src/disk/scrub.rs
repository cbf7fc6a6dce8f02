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
use std::sync::atomic::AtomicBool;

use super::damage::{Damage, is_damage};
use super::error::OpenError;
use super::files;
use super::layout::Layout;
use super::options::common_options;
use super::read_all::{Pace, read_all};
use super::snapshot::Snapshots;
use super::state::StateHandle;

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
        Ok(pace.bytes())
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
