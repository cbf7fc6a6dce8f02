//! The complete files of a transfer that broke off. The next transfer does not send them again, also that of another
//! snapshot or from another leader, if a file has the same name, length and checksum. They are forgotten at the next
//! start.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use agentpost_proto::peer;
use agentpost_proto::peer::snapshot_meta::File as FileEntry;

use crate::disk::files;

/// The directory of such files. Each was compared with its checksum when it arrived.
#[derive(Debug, Clone)]
pub(super) struct Kept(PathBuf);

impl Kept {
    /// The directory `dir`, which is created when there is something to keep.
    pub(super) fn new(dir: PathBuf) -> Self {
        Kept(dir)
    }

    fn path(&self, file: &FileEntry) -> PathBuf {
        self.0.join(format!("{:08x}-{}-{}", file.crc32c, file.size, file.name))
    }

    /// The numbers of the files of a snapshot that are here.
    pub(super) fn held(&self, meta: &peer::SnapshotMeta) -> Vec<u32> {
        let numbered = (0..).zip(&meta.files);
        numbered
            .filter(|(_, file)| file.size > 0 && self.path(file).is_file())
            .map(|(number, _)| number)
            .collect()
    }

    /// Keeps a complete file.
    pub(super) fn put(&self, from: &Path, file: &FileEntry) -> io::Result<()> {
        files::create_dir(&self.0)?;
        fs::rename(from, self.path(file))
    }

    /// Moves a file to its place in a snapshot.
    pub(super) fn take(&self, file: &FileEntry, to: &Path) -> io::Result<()> {
        fs::rename(self.path(file), to)
    }

    /// Removes all files that are left: the snapshot that is being received does not have them.
    pub(super) fn clear(&self) -> io::Result<()> {
        files::remove_dir(&self.0)
    }
}
