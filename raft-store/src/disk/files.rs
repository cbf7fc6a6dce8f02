//! File operations whose results must survive a power cut. All of them block.
//!
//! A file is durable when both its bytes and the directory that contains it are synced. A rename is the only atomic
//! change of a directory, so everything that must never be seen half done is built under another name and then renamed.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Makes the names in `dir` durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Makes the bytes of an existing file durable.
pub(crate) fn sync_file(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Creates a directory and its missing parents, and makes their names durable.
pub(crate) fn create_dir(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let parent = match dir.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Err(io::Error::from(io::ErrorKind::NotFound)),
    };
    create_dir(parent)?;
    match fs::create_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        other => other?,
    }
    sync_dir(parent)
}

/// Replaces a small file. After a crash it contains either the old bytes or the new ones.
pub(crate) fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let staged = path.with_extension("tmp");
    let mut file = File::create(&staged)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    rename(&staged, path)
}

/// Renames within one parent directory, durably.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    match to.parent() {
        Some(parent) => sync_dir(parent),
        None => Ok(()),
    }
}

/// Removes a directory and its contents, if it exists.
pub(crate) fn remove_dir(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The names in a directory, sorted. Names that are not UTF-8 are skipped, because this program creates none.
pub(crate) fn names(dir: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        if let Ok(name) = entry?.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Drops a value on a thread of its own, because that may close a database or remove gigabytes of files.
pub(crate) fn drop_beside(value: impl Send + 'static) {
    let dropping = std::thread::Builder::new().name(REMOVER.to_owned());
    if let Err(error) = dropping.spawn(move || drop(value)) {
        tracing::warn!(%error, "starting a thread failed, so files were removed on another one; raise the limit of threads");
    }
}

/// The name of the threads of [`drop_beside`].
const REMOVER: &str = "remove-files";

/// A directory that may still be in use. If it is doomed, it is removed when the guard is dropped.
#[derive(Debug)]
pub(crate) struct DirGuard {
    path: PathBuf,
    doomed: AtomicBool,
}

impl DirGuard {
    /// A guard that keeps the directory.
    pub(crate) fn keep(path: PathBuf) -> Self {
        DirGuard {
            path,
            doomed: AtomicBool::new(false),
        }
    }

    /// A guard that removes the directory, unless [`DirGuard::spare`] is called.
    pub(crate) fn doomed(path: PathBuf) -> Self {
        DirGuard {
            path,
            doomed: AtomicBool::new(true),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn is_doomed(&self) -> bool {
        self.doomed.load(Ordering::Relaxed)
    }

    pub(crate) fn doom(&self) {
        self.doomed.store(true, Ordering::Relaxed);
    }

    pub(crate) fn spare(&self) {
        self.doomed.store(false, Ordering::Relaxed);
    }
}

impl Drop for DirGuard {
    fn drop(&mut self) {
        if !self.is_doomed() {
            return;
        }
        #[cfg(test)]
        removals::note(&self.path);
        // If this fails, the next start removes the directory.
        if let Err(error) = remove_dir(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "removing an unused directory failed; the next start tries again");
        }
    }
}

/// Which threads removed directories, for tests.
#[cfg(test)]
pub(crate) mod removals {
    use std::path::{Path, PathBuf};

    use parking_lot::Mutex;

    static SEEN: Mutex<Vec<(PathBuf, bool)>> = Mutex::new(Vec::new());

    pub(super) fn note(dir: &Path) {
        let beside = std::thread::current().name() == Some(super::REMOVER);
        SEEN.lock().push((dir.to_owned(), beside));
    }

    /// Whether the directory was removed on a thread of [`drop_beside`](super::drop_beside), or `None` if it was not
    /// removed.
    pub(crate) fn was_beside(dir: &Path) -> Option<bool> {
        let seen = SEEN.lock();
        seen.iter().find(|(path, _)| path == dir).map(|(_, beside)| *beside)
    }
}
