//! How nodes recovered from a power loss or from damaged files: `recoveries.jsonl` has one line for each recovery.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

pub const RECOVERIES: &str = "recoveries.jsonl";

/// Time limit in milliseconds from the start of a damaged node until it is repaired or in quarantine.
pub const LIMIT_MS: u64 = 10_000;
/// The kind of fault of a recovery without a fault at that time: the node detected earlier damage late.
pub const LATE: &str = "late";

/// The recovery of one node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recovery {
    pub node: usize,
    /// The kind of the fault that the node recovered from.
    pub fault: String,
    /// The files of the node that the harness damaged.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<DamagedFile>,
    /// When the node was started, nanoseconds since the start of the run.
    pub began: u64,
    /// Milliseconds from the start of the node until its outcome was known.
    pub after_ms: u64,
    /// How often the node was started until then.
    pub starts: u32,
    pub outcome: RecoveryOutcome,
    /// The reason, in the words of the node or of the harness.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
}

/// The outcome of a recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RecoveryOutcome {
    /// The node serves; none of its files had been damaged.
    Ready,
    /// The node serves, the damage is gone, and the log of the node reports a repair.
    Repaired,
    /// The node serves, the damage is gone, and the log says nothing: a start rewrites or removes such a file anyway.
    Replaced,
    /// The node serves, and the damaged bytes are still in use.
    Undamaged,
    /// The node reports that it is in quarantine.
    Quarantined,
    /// The node neither serves nor reports a quarantine within the time limit.
    Down,
}

impl RecoveryOutcome {
    /// The outcome as one word, for figures and messages.
    pub fn word(self) -> &'static str {
        match self {
            RecoveryOutcome::Ready => "ready",
            RecoveryOutcome::Repaired => "repaired",
            RecoveryOutcome::Replaced => "replaced",
            RecoveryOutcome::Undamaged => "undamaged",
            RecoveryOutcome::Quarantined => "quarantined",
            RecoveryOutcome::Down => "down",
        }
    }
}

/// A damaged file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DamagedFile {
    /// Its path below the data directory.
    pub path: String,
    pub kind: FileKind,
    /// A description of the damage.
    pub what: String,
    /// The kind of file that still contains the damage while the node serves, under any name (the one that matters
    /// most if there are several). `None` if no file does, or if it was not checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub still_in: Option<FileKind>,
}

/// The kinds of files in a data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileKind {
    /// A segment of the log: entries and votes in the order in which they were appended.
    LogSegment,
    /// A table of the replicated state.
    StateSst,
    /// The list of the state's files.
    StateManifest,
    /// The pointer to the current list of the state's files, or to the live state directory.
    StateCurrent,
    /// Any file of a checkpoint.
    Snapshot,
    /// The record of what is known to be durable.
    Floor,
    /// The version of the data format.
    Format,
    /// The identity of the node that owns the data.
    Owner,
    /// Files that RocksDB writes but does not read in our configuration: its options and its identity.
    Unread,
    /// The whole data directory.
    All,
}

impl FileKind {
    /// The kind as one word, for figures and messages.
    pub fn word(self) -> &'static str {
        match self {
            FileKind::LogSegment => "log-segment",
            FileKind::StateSst => "state-sst",
            FileKind::StateManifest => "state-manifest",
            FileKind::StateCurrent => "state-current",
            FileKind::Snapshot => "snapshot",
            FileKind::Floor => "floor",
            FileKind::Format => "format",
            FileKind::Owner => "owner",
            FileKind::Unread => "unread",
            FileKind::All => "all",
        }
    }

    /// The kind of a file, from its path below the data directory. `None` for files whose damage proves nothing: lock
    /// files and RocksDB's own log.
    pub fn of(path: &str) -> Option<Self> {
        let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
        let has = |part: &str| directory.split('/').any(|piece| piece == part);
        if has("incoming")
            || has("damaged")
            || name == "LOCK"
            || name.starts_with("LOG")
            || name.starts_with("QUARANTINE")
        {
            return None;
        }
        if has("snapshots") {
            return Some(FileKind::Snapshot);
        }
        let (log, state) = (has("log"), has("state"));
        Some(match name {
            "OWNER" => FileKind::Owner,
            "FORMAT" => FileKind::Format,
            _ if name.starts_with("FLOOR") => FileKind::Floor,
            "IDENTITY" => FileKind::Unread,
            _ if name.starts_with("OPTIONS-") => FileKind::Unread,
            "CURRENT" if state => FileKind::StateCurrent,
            _ if name.starts_with("MANIFEST-") && state => FileKind::StateManifest,
            _ if name.ends_with(".log") && log => FileKind::LogSegment,
            _ if name.ends_with(".sst") && state => FileKind::StateSst,
            _ => return None,
        })
    }
}

/// Adds a recovery to the file of a run.
pub fn append(dir: &Path, recovery: &Recovery) -> Result<()> {
    let path = dir.join(RECOVERIES);
    let mut line = serde_json::to_vec(recovery)?;
    line.push(b'\n');
    let file = File::options().create(true).append(true).open(&path);
    let mut file = file.with_context(|| format!("cannot open {}", path.display()))?;
    Ok(file.write_all(&line)?)
}

/// Reads the recoveries of a run; most runs have none.
pub fn load(dir: &Path) -> Result<Vec<Recovery>> {
    let path = dir.join(RECOVERIES);
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let recoveries: Result<Vec<Recovery>, _> = text.lines().map(serde_json::from_str).collect();
    recoveries.with_context(|| path.display().to_string())
}
