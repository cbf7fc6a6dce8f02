//! The complete files of a transfer that broke off. The next transfer does not send them again, also that of another
//! snapshot or from another leader, if a file has the same name, length and checksum. They are forgotten at the next
//! start, or when the node decides that no transfer goes on with them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use agentpost_proto::peer;
use agentpost_proto::peer::snapshot_meta::File as FileEntry;

use crate::disk::files;

/// The directory of such files. Each was compared with its checksum when it arrived. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    dir: PathBuf,
    /// How many files were kept so far.
    count: Arc<AtomicU64>,
}

impl Kept {
    /// The directory `dir`, which is created when there is something to keep.
    pub(super) fn new(dir: PathBuf) -> Self {
        let count = Arc::default();
        Kept { dir, count }
    }

    fn path(&self, file: &FileEntry) -> PathBuf {
        self.dir
            .join(format!("{:08x}-{}-{}", file.crc32c, file.size, file.name))
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
        files::create_dir(&self.dir)?;
        self.count.fetch_add(1, Ordering::Relaxed);
        fs::rename(from, self.path(file))
    }

    /// Moves a file to its place in a snapshot.
    pub(super) fn take(&self, file: &FileEntry, to: &Path) -> io::Result<()> {
        fs::rename(self.path(file), to)
    }

    /// Removes all files that are left: the snapshot that is being received does not have them.
    pub(super) fn clear(&self) -> io::Result<()> {
        files::remove_dir(&self.dir)
    }

    /// How many files were kept since the start, whether they are here still or not.
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}
