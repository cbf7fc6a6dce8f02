//! What a run did to its cluster: `faults.jsonl`, a line for each fault when it is over.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::history::Recorder;

/// The file in a run's directory.
pub const FAULTS: &str = "faults.jsonl";

/// One fault.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fault {
    /// What was done: `kill`, `pause`, `partition`, `power`, ….
    pub kind: String,
    /// To which nodes.
    pub nodes: Vec<usize>,
    /// Details for people: which groups, which file, how long.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
    /// From when, nanoseconds since the run began.
    pub began: u64,
    /// Until when: the node is started again, the network is whole.
    pub ended: u64,
    /// Whether it happened.
    pub state: State,
}

/// Whether a fault happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It did.
    Installed,
    /// It was not possible at that moment.
    Skipped,
    /// It may have.
    Indeterminate,
}

/// A fault that goes on.
#[derive(Debug, Clone)]
pub struct Ongoing {
    kind: String,
    nodes: Vec<usize>,
    note: String,
    began: u64,
}

impl Ongoing {
    /// Adds details that were not known when it began.
    pub fn note(&mut self, details: &str) {
        if !self.note.is_empty() {
            self.note.push_str("; ");
        }
        self.note.push_str(details);
    }
}

/// Writes the list of faults. Cheap to clone.
#[derive(Clone)]
pub struct FaultLog {
    recorder: Recorder,
    file: Arc<Mutex<File>>,
}

impl FaultLog {
    /// Begins the list in the directory, on the clock of the history.
    pub fn create(dir: &Path, recorder: Recorder) -> Result<Self> {
        let path = dir.join(FAULTS);
        let file = File::create_new(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(FaultLog {
            recorder,
            file: Arc::new(Mutex::new(file)),
        })
    }

    /// Call it just before the fault.
    pub fn begin(&self, kind: &str, nodes: &[usize], note: impl Into<String>) -> Ongoing {
        Ongoing {
            kind: kind.to_owned(),
            nodes: nodes.to_vec(),
            note: note.into(),
            began: self.recorder.now(),
        }
    }

    /// Call it when nothing of the fault is left.
    pub fn end(&self, fault: Ongoing, state: State) -> Result<()> {
        let fault = Fault {
            kind: fault.kind,
            nodes: fault.nodes,
            note: fault.note,
            began: fault.began,
            ended: self.recorder.now(),
            state,
        };
        let mut line = serde_json::to_vec(&fault)?;
        line.push(b'\n');
        Ok(self
            .file
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write_all(&line)?)
    }
}

/// Reads the faults of a run, by their begin.
pub fn load(dir: &Path) -> Result<Vec<Fault>> {
    let path = dir.join(FAULTS);
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let faults: Result<Vec<Fault>, _> = text.lines().map(serde_json::from_str).collect();
    let mut faults = faults.with_context(|| path.display().to_string())?;
    faults.sort_by_key(|fault| fault.began);
    Ok(faults)
}
