//! Helpers of the unit tests of this layer.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use bytes::Bytes;
use futures::stream;
use openraft::EntryPayload;
use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage, RaftStateMachine};
use openraft::type_config::TypeConfigExt;
use openraft::type_config::alias::OneshotReceiverOf;

use crate::disk::files;
use crate::disk::log_store::LogStore;
use crate::disk::memory_budget::MemoryBudget;
use crate::disk::open::{self, Stores};
use crate::disk::options::Options;
use crate::disk::state_machine::StateMachine;
use crate::disk::types::{Entry, LeaderId, LogId, Membership, Proposal, TypeConfig};

/// Options for small databases, because tests open many.
pub(crate) fn options() -> Options {
    Options {
        state_memory: MemoryBudget::new(4 << 20),
        ..Options::default()
    }
}

pub(crate) fn open(dir: &Path) -> Stores {
    open::shard(dir, options()).unwrap()
}

pub(crate) fn log_id(term: u64, index: u64) -> LogId {
    let leader_id = LeaderId { term, node_id: 1 };
    LogId { leader_id, index }
}

pub(crate) fn blank(term: u64, index: u64) -> Entry {
    Entry {
        log_id: log_id(term, index),
        payload: EntryPayload::Blank,
    }
}

pub(crate) fn normal(term: u64, index: u64, bytes: usize) -> Entry {
    Entry {
        log_id: log_id(term, index),
        payload: EntryPayload::Normal(Proposal::new(Bytes::from(vec![b'x'; bytes]))),
    }
}

pub(crate) fn membership(term: u64, index: u64, voters: &[u64]) -> Entry {
    let voters: BTreeSet<u64> = voters.iter().copied().collect();
    let membership: Membership = Membership::new_with_defaults(vec![voters], []);
    Entry {
        log_id: log_id(term, index),
        payload: EntryPayload::Membership(membership),
    }
}

/// Appends entries. The receiver completes when they are durable.
pub(crate) async fn start_append(
    log: &mut LogStore,
    entries: Vec<Entry>,
) -> io::Result<OneshotReceiverOf<TypeConfig, io::Result<()>>> {
    let (flushed, durable) = TypeConfig::oneshot();
    log.append(entries, IOFlushed::<TypeConfig>::signal(flushed)).await?;
    Ok(durable)
}

/// Appends entries and waits until they are durable.
pub(crate) async fn append(log: &mut LogStore, entries: Vec<Entry>) -> io::Result<()> {
    start_append(log, entries).await?.await.unwrap()
}

/// The ids of all entries of the log.
pub(crate) async fn ids(log: &mut LogStore) -> Vec<LogId> {
    let mut reader = log.get_log_reader().await;
    let entries = reader.try_get_log_entries(..).await.unwrap();
    entries.iter().map(|entry| entry.log_id).collect()
}

pub(crate) async fn apply(machine: &mut StateMachine, entries: Vec<Entry>) -> io::Result<()> {
    machine
        .apply(stream::iter(entries.into_iter().map(|entry| Ok((entry, None)))))
        .await
}

/// Copies the files in the state in which a crash of the process would leave them now. If files are removed meanwhile,
/// the copy begins again.
pub(crate) fn crash_copy(from: &Path, to: &Path) {
    while copy(from, to).is_err() {
        fs::remove_dir_all(to).unwrap();
    }
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    let before = files::names(from)?;
    for name in &before {
        let (source, target) = (from.join(name), to.join(name));
        if source.is_dir() {
            copy(&source, &target)?;
        } else if name != "LOCK" {
            fs::copy(&source, &target)?;
        }
    }
    if files::names(from)? == before {
        Ok(())
    } else {
        Err(io::Error::other("changed meanwhile"))
    }
}

/// The length of a file without the zeros at its end: the newest file of the log has space for more.
pub(crate) fn used(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
}
