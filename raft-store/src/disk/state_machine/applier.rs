//! Applies entries, on a thread of its own.
//!
//! An apply reads and writes RocksDB, and RocksDB makes its caller wait while a slow disk flushes. On a thread of
//! openraft's runtime that would hold up heartbeats, votes and appends, and everything else that the runtime had given
//! to the thread. Here it delays only the entries that come after.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use agentpost_proto::command::Reply;
use bytes::Bytes;
use openraft::EntryPayload;
use openraft::storage::EntryResponder;
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::oneshot;

use crate::core::apply::{apply_blank, apply_command, apply_membership};
use crate::core::effect::Effect;
use crate::core::keys;
use crate::core::kv::Fatal;
use crate::core::view::{HotCache, View};
use crate::disk::snapshot::membership_row;
use crate::disk::state::StateHandle;
use crate::disk::types::{TypeConfig, log_id_to_proto};

/// The approximate maximal number of bytes in one write. Much larger batches are slower, because their
/// ordered map does not fit into the CPU caches.
pub(super) const BATCH_BYTES_MAX: usize = 1 << 20;

/// Receives the effects of applied entries.
pub type EffectSink = Arc<dyn Fn(&[Effect]) + Send + Sync>;

/// An entry, and its caller if there is one on this node.
pub(super) type Item = EntryResponder<TypeConfig>;

/// The state and what is needed to change it.
struct Applier {
    state: StateHandle,
    cache: HotCache,
    effects: Option<EffectSink>,
}

/// The thread. Dropping it waits for the apply that runs.
pub(super) struct ApplyThread {
    /// Only this thread applies, so the lock is never contended: openraft gives one command at a time.
    applier: Arc<Mutex<Applier>>,
    /// `None` only while this is dropped.
    jobs: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
}

struct Job {
    entries: Vec<Item>,
    done: oneshot::Sender<Result<(), Fatal>>,
}

impl ApplyThread {
    /// Starts the thread.
    pub(super) fn spawn(state: StateHandle) -> io::Result<Self> {
        let applier = Arc::new(Mutex::new(Applier {
            state,
            cache: HotCache::default(),
            effects: None,
        }));
        let (jobs, queue) = sync_channel(1);
        let own = Arc::clone(&applier);
        let thread = std::thread::Builder::new()
            .name("raft-apply".to_owned())
            .spawn(move || run(&own, &queue))?;
        Ok(ApplyThread {
            applier,
            jobs: Some(jobs),
            thread: Some(thread),
        })
    }

    pub(super) fn set_effects(&self, sink: EffectSink) {
        self.applier.lock().effects = Some(sink);
    }

    /// Forgets what is cached of the state, because a snapshot has replaced it.
    pub(super) fn forget(&self) {
        self.applier.lock().cache.clear();
    }

    /// Applies entries; returns when they are written and their callers have their replies.
    pub(super) async fn apply(&self, entries: Vec<Item>) -> io::Result<()> {
        let (done, applied) = oneshot::channel();
        let sent = self.jobs.as_ref().map(|jobs| jobs.send(Job { entries, done }));
        match (sent, applied.await) {
            (Some(Ok(())), Ok(applied)) => applied.map_err(io::Error::other),
            // The panic itself is in the log.
            _ => Err(io::Error::other("the thread that applies entries panicked")),
        }
    }
}

impl Drop for ApplyThread {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // An error means that the thread panicked, which its last job has reported.
            drop(thread.join());
        }
    }
}

fn run(applier: &Mutex<Applier>, queue: &Receiver<Job>) {
    while let Ok(Job { entries, done }) = queue.recv() {
        let applied = applier.lock().apply_all(entries);
        // An error means that openraft has stopped.
        drop(done.send(applied));
    }
}

impl Applier {
    fn apply_all(&mut self, entries: Vec<Item>) -> Result<(), Fatal> {
        let mut rest = entries.into_iter();
        while rest.len() > 0 {
            self.apply_batch(&mut rest)?;
        }
        Ok(())
    }

    /// Applies entries up to the size of one write, and writes.
    fn apply_batch(&mut self, entries: &mut impl Iterator<Item = Item>) -> Result<(), Fatal> {
        let db = self.state.current();
        let cache = &mut self.cache;
        let mut view = View::new(&*db, cache)?;
        let mut effects = Vec::new();
        let mut answers = Vec::new();
        let mut membership = None;
        for (entry, responder) in entries {
            let log_id = log_id_to_proto(&entry.log_id);
            let reply = match &entry.payload {
                EntryPayload::Normal(proposal) => apply_command(&mut view, &log_id, &proposal.0, &mut effects)?,
                EntryPayload::Blank => {
                    apply_blank(&mut view, &log_id);
                    Reply::default()
                }
                EntryPayload::Membership(changed) => {
                    apply_membership(&mut view, &log_id, changed.nodes().map(|(id, _)| *id))?;
                    membership = Some(membership_row(&entry.log_id, changed));
                    Reply::default()
                }
            };
            answers.extend(responder.map(|responder| (responder, reply)));
            if view.bytes() >= BATCH_BYTES_MAX {
                break;
            }
        }
        let mut writes = view.into_writes();
        if let Some(row) = membership {
            writes.push((keys::membership(), Some(Bytes::from(row.encode_to_vec()))));
        }
        db.write(writes)?;
        self.state.stepped();
        for (responder, reply) in answers {
            responder.send(reply);
        }
        if let Some(sink) = &self.effects
            && !effects.is_empty()
        {
            sink(&effects);
        }
        Ok(())
    }
}
