//! Damage that shows while the node runs, and what is remembered of it for the next start.
//!
//! A node that read wrong bytes cannot go on: it ends within a second and its supervisor starts it again. What the
//! next start has to know is on disk before that:
//! - the log is damaged: the file `QUARANTINE` in the data directory. The node stays out until it joins again under a
//!   new id;
//! - a state or a snapshot is damaged: the file `REPAIR` in the shard names the directory. The next start does not use
//!   it and goes on from what else there is (`repair.rs`).

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use tokio::sync::watch;

use super::files;

/// Why the node of this data directory must not take part, if it must not.
pub fn quarantined(data_dir: &Path) -> io::Result<Option<String>> {
    match fs::read(marker(data_dir)) {
        Ok(reason) => Ok(Some(String::from_utf8_lossy(&reason).trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Keeps the node of this data directory out, over restarts. The first reason stays.
pub fn quarantine(data_dir: &Path, reason: &str) -> io::Result<()> {
    if quarantined(data_dir)?.is_some() {
        return Ok(());
    }
    files::replace_file(&marker(data_dir), format!("{reason}\n").as_bytes())
}

fn marker(data_dir: &Path) -> PathBuf {
    data_dir.join("QUARANTINE")
}

/// Whether RocksDB means that bytes are missing or wrong.
pub(crate) fn is_damage(error: &rocksdb::Error) -> bool {
    match error.kind() {
        rocksdb::ErrorKind::Corruption => true,
        rocksdb::ErrorKind::IOError => error.as_ref().contains("No such file"),
        _ => false,
    }
}

/// Where damage is reported. Cheap to clone; the default reports to nobody.
#[derive(Clone, Default)]
pub struct Damage(Option<Arc<Shared>>);

struct Shared {
    data_dir: PathBuf,
    notes: PathBuf,
    noticed: watch::Sender<Option<String>>,
}

impl Damage {
    /// Of the shard that remembers in `notes` which directories are bad.
    pub(crate) fn new(data_dir: &Path, notes: PathBuf) -> Self {
        Damage(Some(Arc::new(Shared {
            data_dir: data_dir.to_owned(),
            notes,
            noticed: watch::Sender::new(None),
        })))
    }

    /// Waits until damage was noticed; the process must then end. Tells what.
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

    /// The log is damaged: this node is out.
    pub(crate) fn log(&self, reason: &str) {
        let Some(shared) = &self.0 else { return };
        let reason = format!("the log is damaged: {reason}");
        shared.tell(&reason, || quarantine(&shared.data_dir, &reason));
    }

    /// A state or snapshot directory is damaged: the next start does without it.
    pub(crate) fn directory(&self, dir: &Path, reason: &str) {
        let Some(shared) = &self.0 else { return };
        let name = dir.file_name().map(|name| name.to_string_lossy().into_owned());
        let reason = format!("{} is damaged: {reason}", dir.display());
        shared.tell(&reason, || note(&shared.notes, &name.unwrap_or_default()));
    }

    /// An error of a database in such a directory.
    pub(crate) fn database(&self, dir: &Path, error: rocksdb::Error) -> rocksdb::Error {
        if is_damage(&error) {
            self.directory(dir, error.as_ref());
        }
        error
    }
}

impl Shared {
    /// Only the first damage counts: the process ends with it. What is to `keep` is on disk before anybody knows.
    fn tell(&self, reason: &str, keep: impl FnOnce() -> io::Result<()>) {
        self.noticed.send_if_modified(|noticed| {
            if noticed.is_some() {
                return false;
            }
            tracing::error!(reason, "damage noticed; this node must stop");
            if let Err(error) = keep() {
                tracing::error!(%error, "the next start will not know of the damage");
            }
            *noticed = Some(reason.to_owned());
            true
        });
    }
}

/// The directories that were found damaged.
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

/// Why a log failed, once it did. A log that failed once has failed: nobody knows which bytes the disk has.
#[derive(Debug, Clone, Default)]
pub(crate) struct Failure(Arc<OnceLock<String>>);

impl Failure {
    /// The error that ended the log, if one did.
    pub(crate) fn check(&self) -> io::Result<()> {
        match self.0.get() {
            None => Ok(()),
            Some(error) => Err(io::Error::other(error.clone())),
        }
    }

    /// Ends the log: a write may be half on disk.
    pub(crate) fn set(&self, error: &str) {
        if self.0.set(error.to_owned()).is_ok() {
            tracing::error!(error, "the log failed; this node must stop");
        }
    }
}
