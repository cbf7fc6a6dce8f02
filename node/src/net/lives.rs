//! The lives of the other nodes: the data directory that each node id was last seen with (see [`crate::base::owner`]).
//!
//! A node remembers durably the first life that it meets under an id, before it exchanges anything else with that node.
//! A different life under the same id later means that the disk was wiped or exchanged. Such a node must not vote or
//! acknowledge under its old id, so the handshake refuses it and tells it why; it then enters quarantine.
//!
//! The file has a checksum. A file that fails it is ignored: then the disk of *this* node is damaged, and the other
//! nodes still remember. Believing a damaged file would make one bad disk refuse several sound nodes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use crate::base::owner::Life;
use crate::base::secrets;

const LIVES: &str = "LIVES";

/// This node's life and those of all nodes that it has met. Clones are cheap and share them.
#[derive(Clone)]
pub struct Lives {
    shared: Arc<Shared>,
}

struct Shared {
    mine: Life,
    file: Option<PathBuf>,
    met: Mutex<BTreeMap<u64, Life>>,
    /// Why this node must not continue under its id; `None` while it may.
    replaced: watch::Sender<Option<String>>,
}

impl Lives {
    /// Reads the lives that this data directory remembers.
    pub fn open(dir: &Path, mine: Life) -> anyhow::Result<Self> {
        let file = dir.join(LIVES);
        let met = match std::fs::read_to_string(&file) {
            Ok(text) => parse(&text).unwrap_or_else(|| {
                tracing::warn!(file = %file.display(), "the file is damaged and was ignored; the lives of the other nodes will be learned again; check this node's disk");
                BTreeMap::new()
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => BTreeMap::new(),
            Err(error) => return Err(error.into()),
        };
        Ok(Self::with(mine, Some(file), met))
    }

    /// Lives that are kept in memory only. For tests.
    pub fn in_memory(mine: Life) -> Self {
        Self::with(mine, None, BTreeMap::new())
    }

    fn with(mine: Life, file: Option<PathBuf>, met: BTreeMap<u64, Life>) -> Self {
        let shared = Shared {
            mine,
            file,
            met: Mutex::new(met),
            replaced: watch::Sender::default(),
        };
        Lives {
            shared: Arc::new(shared),
        }
    }

    /// The life of this node.
    pub fn mine(&self) -> Life {
        self.shared.mine
    }

    /// Whether node `id` still has the life that this node remembers. The first life of an id is remembered; it is
    /// durable when this returns.
    pub async fn meet(&self, id: u64, life: Life) -> anyhow::Result<bool> {
        if let Some(known) = self.known(id) {
            return Ok(known == life);
        }
        let lives = self.clone();
        tokio::task::spawn_blocking(move || lives.learn(id, life)).await?
    }

    fn known(&self, id: u64) -> Option<Life> {
        let met = self.shared.met.lock();
        met.get(&id).copied()
    }

    fn learn(&self, id: u64, life: Life) -> anyhow::Result<bool> {
        let mut met = self.shared.met.lock();
        if let Some(known) = met.get(&id) {
            return Ok(*known == life);
        }
        let mut more = met.clone();
        more.insert(id, life);
        if let Some(file) = &self.shared.file {
            secrets::write_private(file, render(&more).as_bytes())?;
        }
        *met = more;
        Ok(true)
    }

    /// Records that node `by` knows this node under another life.
    pub fn replaced(&self, by: u64) {
        let why = format!(
            "node {by} knows this node's id from another data directory: this one was wiped or exchanged, so what it had \
             acknowledged may be gone"
        );
        self.lost(why);
    }

    /// Records that this node has lost entries that it had acknowledged.
    pub fn lost(&self, why: String) {
        self.shared.replaced.send_replace(Some(why));
    }

    /// Waits until this node must not continue under its id; returns the reason.
    pub async fn until_replaced(&self) -> String {
        let mut replaced = self.shared.replaced.subscribe();
        match replaced.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            // Cannot happen: `self` keeps the sender alive.
            Err(_) => std::future::pending().await,
        }
    }
}

fn checksum(lines: &str) -> String {
    hex::encode(&Sha256::digest(lines.as_bytes())[..8])
}

fn render(met: &BTreeMap<u64, Life>) -> String {
    let lines: String = met
        .iter()
        .map(|(id, life)| format!("node {id} life {}\n", hex::encode(life)))
        .collect();
    format!("{lines}checksum {}\n", checksum(&lines))
}

fn parse(text: &str) -> Option<BTreeMap<u64, Life>> {
    let at = text.rfind("checksum ")?;
    let (lines, last) = text.split_at(at);
    if last.trim_end() != format!("checksum {}", checksum(lines)) {
        return None;
    }
    let pair = |line: &str| {
        let (id, life) = line.strip_prefix("node ")?.split_once(" life ")?;
        Some((id.parse().ok()?, Life::try_from(hex::decode(life).ok()?).ok()?))
    };
    lines.lines().map(pair).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const A: Life = [1; 16];
    const B: Life = [2; 16];

    #[tokio::test]
    async fn the_first_life_of_an_id_is_the_only_one_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let lives = Lives::open(dir.path(), [9; 16]).unwrap();
        assert!(lives.meet(1, A).await.unwrap() && lives.meet(1, A).await.unwrap());
        assert!(!lives.meet(1, B).await.unwrap());
        assert!(lives.meet(2, B).await.unwrap());
        let lives = Lives::open(dir.path(), [9; 16]).unwrap();
        assert!(!lives.meet(1, B).await.unwrap() && lives.meet(1, A).await.unwrap());
        assert!(!lives.meet(2, A).await.unwrap() && lives.meet(2, B).await.unwrap());
    }

    #[tokio::test]
    async fn a_life_that_cannot_be_written_down_is_not_accepted() {
        let dir = tempfile::tempdir().unwrap();
        let lives = Lives::open(&dir.path().join("gone"), [9; 16]).unwrap();
        assert!(lives.meet(1, A).await.is_err());
        assert!(lives.meet(1, B).await.is_err(), "nothing was learned");
    }

    #[tokio::test]
    async fn no_flipped_bit_makes_another_node_look_wiped() {
        let dir = tempfile::tempdir().unwrap();
        let lives = Lives::open(dir.path(), [9; 16]).unwrap();
        assert!(lives.meet(1, A).await.unwrap() && lives.meet(2, B).await.unwrap());
        let file = dir.path().join(LIVES);
        let intact = std::fs::read(&file).unwrap();
        for bit in 0..intact.len() * 8 {
            let mut bytes = intact.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&file, bytes).unwrap();
            let lives = Lives::open(dir.path(), [9; 16]).unwrap();
            let refused = [(1, A), (2, B)]
                .iter()
                .any(|(id, life)| lives.known(*id).is_some_and(|known| known != *life));
            assert!(!refused, "bit {bit}");
        }
    }
}
