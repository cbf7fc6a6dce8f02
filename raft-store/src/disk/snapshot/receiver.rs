//! Receiving a snapshot. Everything here blocks on the disk.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use agentpost_proto::peer;

use super::manifest::{self, invalid};
use super::{Checked, SnapshotData};
use crate::disk::files::{self, DirGuard};

/// A snapshot that is being received. Its directory is removed if it is dropped before it is finished.
pub struct Receiver {
    dir: DirGuard,
    meta: peer::SnapshotMeta,
    /// The index of the file that is being written; the number of files once all are complete.
    at: usize,
    file: Option<File>,
    size: u64,
    crc32c: u32,
}

impl Receiver {
    /// Begins to receive the files of `meta` into the directory `dir`, which is emptied first.
    pub fn begin(dir: &Path, meta: peer::SnapshotMeta) -> io::Result<Self> {
        manifest::check(&meta)?;
        files::remove_dir(dir)?;
        files::create_dir(dir)?;
        let mut receiver = Receiver {
            dir: DirGuard::doomed(dir.to_owned()),
            meta,
            at: 0,
            file: None,
            size: 0,
            crc32c: 0,
        };
        receiver.open_next()?;
        Ok(receiver)
    }

    /// Takes the next bytes of a file. The files must come in the order of the manifest.
    pub fn chunk(&mut self, file_no: u32, data: &[u8]) -> io::Result<()> {
        let expected = self.meta.files.get(self.at);
        let (Some(expected), Some(file)) = (expected, self.file.as_mut()) else {
            return Err(invalid("bytes after the last file"));
        };
        if file_no as usize != self.at {
            return Err(invalid(format!(
                "bytes of file {file_no} while file {} is being sent",
                self.at
            )));
        }
        self.size += data.len() as u64;
        if self.size > expected.size {
            return Err(invalid(format!(
                "{} is longer than {} bytes",
                expected.name, expected.size
            )));
        }
        file.write_all(data)?;
        self.crc32c = crc32c::crc32c_append(self.crc32c, data);
        if self.size < expected.size {
            return Ok(());
        }
        if self.crc32c != expected.crc32c {
            return Err(invalid(format!("{} does not match its checksum", expected.name)));
        }
        file.sync_all()?;
        self.at += 1;
        self.open_next()
    }

    /// Checks that every file is complete and that the database holds what the manifest claims. The directory is
    /// removed when the result is dropped, unless the snapshot is installed.
    pub fn finish(self) -> io::Result<SnapshotData> {
        if let Some(missing) = self.meta.files.get(self.at) {
            return Err(invalid(format!("it ends before the end of {}", missing.name)));
        }
        let dir = self.dir.path();
        let covered = manifest::covered(dir)?;
        let claimed = peer::SnapshotMeta {
            files: Vec::new(),
            ..self.meta.clone()
        };
        if covered != claimed {
            return Err(invalid(format!("it covers {covered:?} and claims {claimed:?}")));
        }
        manifest::write(dir, &self.meta)?;
        Ok(SnapshotData::new(self.dir, self.meta, Checked::Content))
    }

    /// Opens the next file that is not empty, and creates the empty files before it.
    fn open_next(&mut self) -> io::Result<()> {
        (self.file, self.size, self.crc32c) = (None, 0, 0);
        while let Some(next) = self.meta.files.get(self.at) {
            let file = File::create_new(self.dir.path().join(&next.name))?;
            if next.size > 0 {
                self.file = Some(file);
                return Ok(());
            }
            file.sync_all()?;
            self.at += 1;
        }
        Ok(())
    }
}
