//! How nodes came back after their disk was taken from them or spoilt: `recoveries.jsonl`, a line for each start.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::cluster::supervisor::Start;

/// The file in a run's directory.
pub const RECOVERIES: &str = "recoveries.jsonl";

/// One node's way back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recovery {
    /// The node.
    pub node: usize,
    /// What was done to it: the kind of the fault.
    pub fault: String,
    /// What was spoilt of its files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<Damage>,
    /// When it was started, nanoseconds since the run began.
    pub began: u64,
    /// After how long it was known what became of it.
    pub after_ms: u64,
    /// How often it was started until then.
    pub starts: u32,
    /// What became of it.
    pub class: Class,
    /// In words: its own, or what was seen.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
}

impl Recovery {
    /// Of a node none of whose files was spoilt by us.
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

/// What became of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// It serves, and nothing of its files was spoilt.
    Ready,
    /// It serves, nothing of the damage is left, and it told what it did about it.
    Repaired,
    /// It serves, nothing of the damage is left, and it told nothing: a start writes such a file anew, or removes it.
    Replaced,
    /// It serves, and the damage is still where it was.
    Undamaged,
    /// It says that it must not serve.
    Quarantined,
    /// Neither, within the time that a supervisor has.
    Down,
}

impl Class {
    /// In one word.
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

/// What was spoilt of a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Damage {
    /// Below the data directory.
    pub path: String,
    /// What kind of file it is.
    pub part: Part,
    /// What was done to it, in words.
    pub what: String,
    /// Where the damage still is when the node serves, by whichever name: the kind of file that matters most. Not
    /// looked at otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left: Option<Part>,
}

/// The kinds of files in a data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// Log entries and votes as they were appended.
    LogWal,
    /// The same, sorted.
    LogSst,
    /// Which files the log has.
    LogManifest,
    /// Which of those lists counts.
    LogCurrent,
    /// A table of the replicated state.
    StateSst,
    /// Which files the state has.
    StateManifest,
    /// Which of those lists counts, or which directory is the live one.
    StateCurrent,
    /// A file of a checkpoint, whichever.
    Snapshot,
    /// What the node knows to be durable.
    Floor,
    /// The version of the data.
    Format,
    /// Whose data it is.
    Owner,
    /// What RocksDB writes and, as it is used here, has no use for: its settings and its identity.
    Unread,
    /// Everything at once.
    All,
}

impl Part {
    /// In one word.
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

    /// Of a file, by its path below the data directory; none if spoiling it says nothing: what a process locks, and what
    /// RocksDB tells about itself.
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

/// Adds a line to a run's directory.
pub fn append(dir: &Path, recovery: &Recovery) -> Result<()> {
    let path = dir.join(RECOVERIES);
    let mut line = serde_json::to_vec(recovery)?;
    line.push(b'\n');
    let file = File::options().create(true).append(true).open(&path);
    let mut file = file.with_context(|| format!("cannot open {}", path.display()))?;
    Ok(file.write_all(&line)?)
}

/// Reads those of a run; most runs have none.
pub fn load(dir: &Path) -> Result<Vec<Recovery>> {
    let path = dir.join(RECOVERIES);
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let recoveries: Result<Vec<Recovery>, _> = text.lines().map(serde_json::from_str).collect();
    recoveries.with_context(|| path.display().to_string())
}
