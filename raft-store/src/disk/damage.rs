//! Damage that is found while the node runs, and how the next start learns of it.
//!
//! A node that has read wrong bytes cannot continue. It ends within a second, and its supervisor starts it again.
//! Before that it records on disk what the next start must know:
//! - If the log is damaged, it writes the file `QUARANTINE` into the data directory. The node stays out of the cluster
//!   until it joins again under a new id.
//! - If a state or a snapshot is damaged, it adds the name of the directory to the file `REPAIR` in the shard. The next
//!   start replaces that directory (`repair.rs`).

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use tokio::sync::watch;

use super::files;

/// The reason for which the node of this data directory is in quarantine, or `None` if it is not.
pub fn quarantined(data_dir: &Path) -> io::Result<Option<String>> {
    match fs::read(marker(data_dir)) {
        Ok(reason) => Ok(Some(String::from_utf8_lossy(&reason).trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Puts the node of this data directory into quarantine, also for later starts. If it is already, the first reason is
/// kept.
pub fn quarantine(data_dir: &Path, reason: &str) -> io::Result<()> {
    if quarantined(data_dir)?.is_some() {
        return Ok(());
    }
    files::replace_file(&marker(data_dir), format!("{reason}\n").as_bytes())
}

fn marker(data_dir: &Path) -> PathBuf {
    data_dir.join("QUARANTINE")
}

/// Whether RocksDB's error means that bytes are missing or wrong.
pub(crate) fn is_damage(error: &rocksdb::Error) -> bool {
    match error.kind() {
        rocksdb::ErrorKind::Corruption => true,
        rocksdb::ErrorKind::IOError => error.as_ref().contains("No such file"),
        _ => false,
    }
}

/// Receives reports of damage. Cheap to clone. The default ignores all reports.
#[derive(Clone, Default)]
pub struct Damage(Option<Arc<Shared>>);

struct Shared {
    data_dir: PathBuf,
    notes: PathBuf,
    noticed: watch::Sender<Option<String>>,
}

impl Damage {
    /// For a shard whose file `notes` lists the damaged directories.
    pub(crate) fn new(data_dir: &Path, notes: PathBuf) -> Self {
        Damage(Some(Arc::new(Shared {
            data_dir: data_dir.to_owned(),
            notes,
            noticed: watch::Sender::new(None),
        })))
    }

    /// Waits until damage is reported and returns the reason. The process must then end.
    pub async fn noticed(&self) -> String {
        let Some(shared) = &self.0 else {
            return std::future::pending().await;
        };
        let mut noticed = shared.noticed.subscribe();
        // The sender lives as long as `self`.
        match noticed.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => std::future::pending().await,
        }
    }

    /// Reports that the log is damaged. The node goes into quarantine.
    pub(crate) fn log(&self, reason: &str) {
        let Some(shared) = &self.0 else { return };
        let reason = format!("the log is damaged: {reason}");
        shared.tell(&reason, || quarantine(&shared.data_dir, &reason));
    }

    /// Reports that a state or snapshot directory is damaged. The next start does not use it.
    pub(crate) fn directory(&self, dir: &Path, reason: &str) {
        let Some(shared) = &self.0 else { return };
        let name = dir.file_name().map(|name| name.to_string_lossy().into_owned());
        let reason = format!("{} is damaged: {reason}", dir.display());
        shared.tell(&reason, || note(&shared.notes, &name.unwrap_or_default()));
    }

    /// Reports an error of a state database, if the error means damage. Returns the error.
    pub(crate) fn database(&self, dir: &Path, error: rocksdb::Error) -> rocksdb::Error {
        if is_damage(&error) {
            self.directory(dir, error.as_ref());
        }
        error
    }
}

impl Shared {
    /// Records the first damage and ignores later ones, because the process ends after the first. `keep` writes it to
    /// disk before anybody is notified.
    fn tell(&self, reason: &str, keep: impl FnOnce() -> io::Result<()>) {
        self.noticed.send_if_modified(|noticed| {
            if noticed.is_some() {
                return false;
            }
            tracing::error!(reason, "damaged data found; this node stops, and its next start repairs it or goes into quarantine");
            if let Err(error) = keep() {
                tracing::error!(%error, "recording the damage failed; before the next start, check the disk and remove the damaged directory");
            }
            *noticed = Some(reason.to_owned());
            true
        });
    }
}

/// The names of the damaged directories.
pub(crate) fn noted(notes: &Path) -> io::Result<BTreeSet<String>> {
    match fs::read(notes) {
        Ok(text) => Ok(String::from_utf8_lossy(&text).lines().map(str::to_owned).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(error),
    }
}

fn note(notes: &Path, name: &str) -> io::Result<()> {
    let mut names = noted(notes)?;
    if names.insert(name.to_owned()) {
        let lines: Vec<_> = names.into_iter().collect();
        files::replace_file(notes, format!("{}\n", lines.join("\n")).as_bytes())?;
    }
    Ok(())
}

/// The error of a log that failed. A failure is final, because nobody knows which bytes reached the disk.
#[derive(Debug, Clone, Default)]
pub(crate) struct Failure(Arc<OnceLock<String>>);

impl Failure {
    /// Returns the error if the log has failed.
    pub(crate) fn check(&self) -> io::Result<()> {
        match self.0.get() {
            None => Ok(()),
            Some(error) => Err(io::Error::other(error.clone())),
        }
    }

    /// Marks the log as failed: a write may be only partly on disk.
    pub(crate) fn set(&self, error: &str) {
        if self.0.set(error.to_owned()).is_ok() {
            tracing::error!(
                error,
                "writing the log failed; this node stops: check the disk before it starts again"
            );
        }
    }

    /// Marks the log as failed if the thread that holds the answer panics: nobody else would notice.
    pub(crate) fn on_panic(&self, thread: &'static str) -> OnPanic {
        let failure = self.clone();
        OnPanic { thread, failure }
    }
}

/// Reports the panic of a thread of the log.
pub(crate) struct OnPanic {
    thread: &'static str,
    failure: Failure,
}

impl Drop for OnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.failure.set(&format!("the thread {} panicked", self.thread));
        }
    }
}
