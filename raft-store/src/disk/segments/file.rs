//! The changes of the files of segments. The writer makes all of them here, so that a test knows every state of the
//! directory that a crash may leave.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
#[cfg(test)]
use std::path::PathBuf;

use rustix::fs::{FallocateFlags, fallocate};

use super::path;
use crate::disk::files;

/// The file of a segment, open for writing.
pub(super) struct SegmentFile {
    file: File,
    /// The directory and the number of the segment.
    #[cfg(test)]
    place: (PathBuf, u64),
}

impl SegmentFile {
    /// Creates the file. It is durable after [`SegmentFile::sync`] and [`sync_dir`].
    pub(super) fn create(dir: &Path, number: u64) -> io::Result<Self> {
        let file = Self::of(File::create_new(path(dir, number))?, dir, number);
        #[cfg(test)]
        file.note(changes::Change::Create);
        Ok(file)
    }

    pub(super) fn open(dir: &Path, number: u64) -> io::Result<Self> {
        let file = File::options().write(true).open(path(dir, number))?;
        Ok(Self::of(file, dir, number))
    }

    #[cfg_attr(not(test), expect(unused_variables, reason = "only a test needs the place"))]
    fn of(file: File, dir: &Path, number: u64) -> Self {
        SegmentFile {
            file,
            #[cfg(test)]
            place: (dir.to_owned(), number),
        }
    }

    pub(super) fn get(&self) -> &File {
        &self.file
    }

    pub(super) fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)?;
        #[cfg(test)]
        self.note(changes::Change::Write(offset, bytes.to_vec()));
        Ok(())
    }

    /// Allocates space up to `length`, which the file then has.
    pub(super) fn allocate(&self, length: u64) -> io::Result<()> {
        fallocate(&self.file, FallocateFlags::empty(), 0, length)?;
        #[cfg(test)]
        self.note(changes::Change::Length(length));
        Ok(())
    }

    pub(super) fn set_len(&self, length: u64) -> io::Result<()> {
        self.file.set_len(length)?;
        #[cfg(test)]
        self.note(changes::Change::Length(length));
        Ok(())
    }

    /// Makes the bytes and the length durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_all()?;
        #[cfg(test)]
        self.note(changes::Change::Sync);
        Ok(())
    }

    #[cfg(test)]
    fn note(&self, change: changes::Change) {
        changes::note(&self.place.0, self.place.1, change);
    }
}

/// Removes a segment, which is durable after [`sync_dir`]. It may be gone already.
pub(super) fn remove(dir: &Path, number: u64) -> io::Result<()> {
    match fs::remove_file(path(dir, number)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    #[cfg(test)]
    changes::note(dir, number, changes::Change::Remove);
    Ok(())
}

/// Makes the creations and removals in `dir` durable.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    files::sync_dir(dir)?;
    #[cfg(test)]
    changes::note(dir, 0, changes::Change::SyncDir);
    Ok(())
}

/// Records the changes of the directories for which a test asked.
#[cfg(test)]
pub(crate) mod changes {
    use std::collections::BTreeMap;

    use parking_lot::Mutex;

    use super::{Path, PathBuf};

    #[derive(Debug, Clone)]
    pub(crate) enum Change {
        Create,
        /// These bytes at this offset.
        Write(u64, Vec<u8>),
        Length(u64),
        Sync,
        Remove,
        /// Creations and removals are durable now, whatever the number of the segment.
        SyncDir,
    }

    /// The changes of each directory, with the number of the segment.
    static RECORDED: Mutex<BTreeMap<PathBuf, Vec<(u64, Change)>>> = Mutex::new(BTreeMap::new());

    pub(crate) fn record(dir: &Path) {
        RECORDED.lock().insert(dir.to_owned(), Vec::new());
    }

    pub(crate) fn note(dir: &Path, number: u64, change: Change) {
        if let Some(changes) = RECORDED.lock().get_mut(dir) {
            changes.push((number, change));
        }
    }

    /// The number of changes until now.
    pub(crate) fn count(dir: &Path) -> usize {
        RECORDED.lock().get(dir).map_or(0, Vec::len)
    }

    /// Ends the recording.
    pub(crate) fn take(dir: &Path) -> Vec<(u64, Change)> {
        RECORDED.lock().remove(dir).unwrap_or_default()
    }
}
