//! Reads that hold places of a node's pool of reads.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use agentpost_node::shard::read_pool::{ReadRefused, Share};
use futures::future::join_all;
use parking_lot::Mutex;

use crate::common::web::Team;
use crate::common::{NodeHandles, eventually};

/// The places that one team has at most.
pub const SHARE: usize = 4;

/// Reads that stand still until they are let go.
pub struct Held {
    begun: Receiver<()>,
    release: Vec<SyncSender<()>>,
    reads: Vec<tokio::task::JoinHandle<Result<(), ReadRefused>>>,
}

impl Held {
    /// Begins `count` reads.
    pub fn by(node: &NodeHandles, share: Share, count: usize) -> Self {
        let (begin, begun) = sync_channel(count);
        let mut held = Held {
            begun,
            release: Vec::new(),
            reads: Vec::new(),
        };
        for _ in 0..count {
            let (release, released) = sync_channel(1);
            let (state, begin, released) = (node.reader.local(), begin.clone(), Arc::new(Mutex::new(released)));
            held.release.push(release);
            held.reads.push(tokio::spawn(async move {
                let read = state.read(share, move |_| {
                    let _ = begin.send(());
                    // It ends on its own after a while, so that a test fails and does not hang.
                    let _ = released.lock().recv_timeout(Duration::from_secs(60));
                    Ok::<_, ReadRefused>(())
                });
                read.await
            }));
        }
        held
    }

    /// Holds all places that a team can have.
    pub async fn share_of(node: &NodeHandles, team: &Team) -> Self {
        let held = Held::by(node, Share::Team(team.id.parse().unwrap()), SHARE);
        held.running(SHARE).await;
        held
    }

    /// How many began since the last call.
    pub async fn running(&self, at_least: usize) -> usize {
        let mut running = 0;
        eventually("reads that run", async || {
            running += self.begun.try_iter().count();
            (running >= at_least).then_some(())
        })
        .await;
        running
    }

    /// Ends them; returns how many of them ran.
    pub async fn let_go(self) -> usize {
        for release in &self.release {
            let _ = release.send(());
        }
        let ended = join_all(self.reads).await;
        ended.into_iter().filter(|read| read.as_ref().unwrap().is_ok()).count()
    }
}
