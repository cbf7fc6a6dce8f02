//! Receiving a snapshot. Everything here blocks on the disk.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use agentpost_proto::peer;

use super::install::{Prepared, States};
use super::kept::Kept;
use super::manifest::{self, invalid};
use super::{Checked, SnapshotData};
use crate::disk::files::{self, DirGuard};

/// A snapshot that is being received. If it is dropped before it is finished, its complete files are kept for the next
/// transfer, unless something was wrong with it, and its directory is removed.
pub struct Receiver {
    /// `None` once it is finished.
    dir: Option<DirGuard>,
    kept: Kept,
    states: Arc<States>,
    /// Whether something was wrong.
    refused: bool,
    meta: peer::SnapshotMeta,
    /// The index of the file that is being written; the number of files once all are complete.
    at: usize,
    file: Option<File>,
    size: u64,
    crc32c: u32,
}

impl Receiver {
    /// Begins to receive the files of `meta` into the directory `dir`, which is emptied first. The files with the numbers
    /// `held` are taken from `kept`. If one of them is missing, the others go back.
    pub(super) fn begin(
        dir: &Path,
        meta: peer::SnapshotMeta,
        held: &[u32],
        kept: Kept,
        states: Arc<States>,
    ) -> io::Result<Self> {
        manifest::check(&meta)?;
        files::remove_dir(dir)?;
        files::create_dir(dir)?;
        let mut receiver = Receiver {
            dir: Some(DirGuard::doomed(dir.to_owned())),
            kept,
            states,
            refused: false,
            // No file is being written yet.
            at: meta.files.len(),
            meta,
            file: None,
            size: 0,
            crc32c: 0,
        };
        for number in held {
            let file = receiver.meta.files.get(*number as usize);
            let file = file.ok_or_else(|| invalid(format!("it has no file {number}")))?;
            receiver.kept.take(file, &dir.join(&file.name))?;
        }
        receiver.kept.clear()?;
        receiver.at = 0;
        receiver.open_next()?;
        Ok(receiver)
    }

    /// Takes the next bytes of a file. The files must come in the order of the manifest.
    pub fn chunk(&mut self, file_no: u32, data: &[u8]) -> io::Result<()> {
        let taken = self.take(file_no, data);
        self.refused |= taken.is_err();
        taken
    }

    fn take(&mut self, file_no: u32, data: &[u8]) -> io::Result<()> {
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

    /// Checks that every file is complete and that the database holds what the manifest claims, and prepares the state
    /// that the snapshot will become. Both directories are removed when the result is dropped, unless the snapshot is installed.
    pub fn finish(mut self) -> io::Result<SnapshotData> {
        if let Some(missing) = self.meta.files.get(self.at) {
            return Err(invalid(format!("it ends before the end of {}", missing.name)));
        }
        self.refused = true;
        let dir = self.path();
        let covered = manifest::covered(dir)?;
        let claimed = peer::SnapshotMeta {
            files: Vec::new(),
            ..self.meta.clone()
        };
        if covered != claimed {
            return Err(invalid(format!("it covers {covered:?} and claims {claimed:?}")));
        }
        manifest::write(dir, &self.meta)?;
        let meta = std::mem::take(&mut self.meta);
        let dir = self.dir.take().ok_or_else(|| invalid("it was finished before"))?;
        let data = SnapshotData::new(dir, meta, Checked::Content);
        let prepared = Prepared::new(self.states.prepare(&data)?);
        Ok(SnapshotData { prepared, ..data })
    }

    fn path(&self) -> &Path {
        self.dir.as_ref().map_or(Path::new(""), DirGuard::path)
    }

    /// Opens the next file that is neither empty nor held, and creates the empty files before it.
    fn open_next(&mut self) -> io::Result<()> {
        (self.file, self.size, self.crc32c) = (None, 0, 0);
        while let Some(next) = self.meta.files.get(self.at) {
            let path = self.path().join(&next.name);
            if path.exists() {
                self.at += 1;
                continue;
            }
            let file = File::create_new(path)?;
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

impl Drop for Receiver {
    fn drop(&mut self) {
        let Some(dir) = self.dir.as_ref().filter(|_| !self.refused) else {
            return;
        };
        for (number, file) in self.meta.files.iter().enumerate() {
            let path = dir.path().join(&file.name);
            // A file behind the one that is being written is there only if it was held.
            let complete = number != self.at && file.size > 0 && path.is_file();
            if complete && let Err(error) = self.kept.put(&path, file) {
                tracing::warn!(file = file.name, %error, "keeping a received file failed; it is sent again");
            }
        }
    }
}
