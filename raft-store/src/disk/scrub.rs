//! The scrubber reads all data again that a node rarely reads. So a bit that flips on the disk is found while the other
//! nodes still have good copies, and not years later.
//!
//! The state is read from a checkpoint that is opened read-only beside the live database: its files are not removed
//! meanwhile, and the live database's cache is not used. The files of the newest snapshot are compared with their
//! manifest. The complete files of the log are read and compared with their checksums; the newest file was read when the
//! log was opened.

use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::damage::{Damage, is_damage};
use super::error::OpenError;
use super::files;
use super::layout::Layout;
use super::log_store::LogScrub;
use super::options::common_options;
use super::read_all::{Pace, read_all};
use super::snapshot::Snapshots;
use super::state::StateHandle;

/// The scrubber of a shard. Cheap to clone.
#[derive(Clone)]
pub struct Scrub {
    dir: PathBuf,
    state: StateHandle,
    snapshots: Arc<Snapshots>,
    log: LogScrub,
    damage: Damage,
}

impl Scrub {
    /// Removes what an interrupted run left behind.
    pub(crate) fn new(
        layout: &Layout,
        state: StateHandle,
        snapshots: Arc<Snapshots>,
        log: LogScrub,
        damage: Damage,
    ) -> Result<Self, OpenError> {
        let dir = layout.scrub();
        files::remove_dir(&dir).map_err(OpenError::io(&dir))?;
        Ok(Scrub {
            dir,
            state,
            snapshots,
            log,
            damage,
        })
    }

    /// Reads everything once, or until `stop` is set, and returns the number of bytes read. Blocks, for minutes if the
    /// state is large. Damage is reported to [`Damage`]; an error is any other failure to read.
    pub fn run(&self, stop: &AtomicBool) -> io::Result<u64> {
        let mut pace = Pace::gentle(stop);
        self.log.run(|bytes| pace.advance(bytes))?;
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
        // `checkpoint` reports damage itself. Other errors, such as a full disk, are not damage.
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
