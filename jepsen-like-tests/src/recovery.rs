//! How nodes recovered from a power loss or from damaged files: `recoveries.jsonl` has one line for each recovery.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::cluster::supervisor::Start;

pub const RECOVERIES: &str = "recoveries.jsonl";

/// The recovery of one node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recovery {
    pub node: usize,
    /// The kind of the fault that the node recovered from.
    pub fault: String,
    /// The files of the node that the harness damaged.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<Damage>,
    /// When the node was started, nanoseconds since the start of the run.
    pub began: u64,
    /// Milliseconds from the start of the node until its outcome was known.
    pub after_ms: u64,
    /// How often the node was started until then.
    pub starts: u32,
    pub class: Class,
    /// The reason, in the words of the node or of the harness.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
}

impl Recovery {
    /// The recovery of a node none of whose files the harness damaged.
    pub fn of(start: &Start, fault: &str, began: u64, class: Class, why: String) -> Self {
        Recovery {
            node: start.node,
            fault: fault.to_owned(),
            files: Vec::new(),
            began,
            after_ms: start.after.as_millis() as u64,
            starts: start.starts,
            class,
            why,
        }
    }
}

/// The outcome of a recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
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

impl Class {
    /// The outcome as one word, for figures and messages.
    pub fn word(self) -> &'static str {
        match self {
            Class::Ready => "ready",
            Class::Repaired => "repaired",
            Class::Replaced => "replaced",
            Class::Undamaged => "undamaged",
            Class::Quarantined => "quarantined",
            Class::Down => "down",
        }
    }
}

/// A damaged file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Damage {
    /// Its path below the data directory.
    pub path: String,
    pub part: Part,
    /// A description of the damage.
    pub what: String,
    /// The kind of file that still contains the damage while the node serves, under any name (the one that matters
    /// most if there are several). `None` if no file does, or if it was not checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left: Option<Part>,
}

/// The kinds of files in a data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// The log's WAL: entries and votes in the order in which they were appended.
    LogWal,
    /// The log's sorted tables.
    LogSst,
    /// The list of the log's files.
    LogManifest,
    /// The pointer to the current list of the log's files.
    LogCurrent,
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

impl Part {
    /// The kind as one word, for figures and messages.
    pub fn word(self) -> &'static str {
        match self {
            Part::LogWal => "log-wal",
            Part::LogSst => "log-sst",
            Part::LogManifest => "log-manifest",
            Part::LogCurrent => "log-current",
            Part::StateSst => "state-sst",
            Part::StateManifest => "state-manifest",
            Part::StateCurrent => "state-current",
            Part::Snapshot => "snapshot",
            Part::Floor => "floor",
            Part::Format => "format",
            Part::Owner => "owner",
            Part::Unread => "unread",
            Part::All => "all",
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
            return Some(Part::Snapshot);
        }
        let (log, state) = (has("log"), has("state"));
        Some(match name {
            "OWNER" => Part::Owner,
            "FORMAT" => Part::Format,
            _ if name.starts_with("FLOOR") => Part::Floor,
            "IDENTITY" => Part::Unread,
            _ if name.starts_with("OPTIONS-") => Part::Unread,
            "CURRENT" if log => Part::LogCurrent,
            "CURRENT" if state => Part::StateCurrent,
            _ if name.starts_with("MANIFEST-") && log => Part::LogManifest,
            _ if name.starts_with("MANIFEST-") && state => Part::StateManifest,
            _ if name.ends_with(".log") && log => Part::LogWal,
            _ if name.ends_with(".sst") && log => Part::LogSst,
            _ if name.ends_with(".sst") && state => Part::StateSst,
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
