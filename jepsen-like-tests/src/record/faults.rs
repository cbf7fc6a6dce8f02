//! The faults of a run: `faults.jsonl` has one line for each fault, written when the fault ends.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::history::Recorder;
use super::members::ObservedMembers;
use super::run::{SNAPSHOT_INSTALL, SWEPT_ROWS};

pub const FAULTS: &str = "faults.jsonl";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fault {
    /// The kind of the fault: `kill`, `pause`, `partition`, `power`, ….
    pub kind: String,
    /// The affected nodes.
    pub nodes: Vec<usize>,
    /// Details for people: which groups, which file, how long.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
    /// The directed links between nodes that a partition cut.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cut_links: Vec<(usize, usize)>,
    /// The observation, if this is one of the members.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub members: Option<ObservedMembers>,
    /// When the fault began, nanoseconds since the start of the run.
    pub began: u64,
    /// When its effect was undone (the node runs again, the network is whole), nanoseconds since the start of the
    /// run.
    pub ended: u64,
    pub state: FaultState,
}

/// Whether a fault happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FaultState {
    /// It happened.
    Installed,
    /// It was not possible at that moment.
    Skipped,
    /// It may have happened.
    Indeterminate,
}

/// A fault that has begun and has not ended yet.
#[derive(Debug, Clone)]
pub struct OngoingFault {
    kind: String,
    nodes: Vec<usize>,
    note: String,
    cut_links: Vec<(usize, usize)>,
    members: Option<ObservedMembers>,
    began: u64,
}

impl OngoingFault {
    /// Adds details that became known after the begin.
    pub fn note(&mut self, details: &str) {
        if !self.note.is_empty() {
            self.note.push_str("; ");
        }
        self.note.push_str(details);
    }

    /// Sets the directed links between nodes that a partition cuts.
    pub fn set_cut_links(&mut self, links: Vec<(usize, usize)>) {
        self.cut_links = links;
    }

    /// Sets an observation of the members.
    pub fn set_members(&mut self, members: ObservedMembers) {
        self.members = Some(members);
    }
}

/// Writes the list of faults. Cloning is cheap.
#[derive(Clone)]
pub struct FaultLog {
    recorder: Recorder,
    file: Arc<Mutex<File>>,
    /// The number of faults of each kind that ended and certainly happened.
    installed: Arc<Mutex<HashMap<String, u64>>>,
}

impl FaultLog {
    /// Creates the list in a directory, with the clock of the history.
    pub fn create(dir: &Path, recorder: Recorder) -> Result<Self> {
        let path = dir.join(FAULTS);
        let file = File::create_new(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(FaultLog {
            recorder,
            file: Arc::new(Mutex::new(file)),
            installed: Arc::default(),
        })
    }

    /// Begins a fault; call it just before the fault is injected.
    pub fn begin(&self, kind: &str, nodes: &[usize], note: impl Into<String>) -> OngoingFault {
        OngoingFault {
            kind: kind.to_owned(),
            nodes: nodes.to_vec(),
            note: note.into(),
            cut_links: Vec::new(),
            members: None,
            began: self.recorder.now(),
        }
    }

    /// Ends a fault; call it when its effect has been undone.
    pub fn end(&self, fault: OngoingFault, state: FaultState) -> Result<()> {
        let fault = Fault {
            kind: fault.kind,
            nodes: fault.nodes,
            note: fault.note,
            cut_links: fault.cut_links,
            members: fault.members,
            began: fault.began,
            ended: self.recorder.now(),
            state,
        };
        let mut line = serde_json::to_vec(&fault)?;
        line.push(b'\n');
        self.file.lock().write_all(&line)?;
        if state == FaultState::Installed {
            *self.installed.lock().entry(fault.kind).or_default() += 1;
        }
        Ok(())
    }

    /// Whether fewer faults than required have happened, of one kind at least. Installed snapshots and
    /// swept rows are not counted here.
    pub fn lacks(&self, required: &[(&str, u64)]) -> bool {
        let installed = self.installed.lock();
        let count = |kind: &str| installed.get(kind).copied().unwrap_or(0);
        let mut injected = required
            .iter()
            .filter(|(kind, _)| ![SNAPSHOT_INSTALL, SWEPT_ROWS].contains(kind));
        injected.any(|(kind, wanted)| count(kind) < *wanted)
    }
}

/// Reads the faults of a run, sorted by their begin.
pub fn load(dir: &Path) -> Result<Vec<Fault>> {
    let path = dir.join(FAULTS);
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let faults: Result<Vec<Fault>, _> = text.lines().map(serde_json::from_str).collect();
    let mut faults = faults.with_context(|| path.display().to_string())?;
    faults.sort_by_key(|fault| fault.began);
    Ok(faults)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_lacking_until_it_certainly_happened_as_often_as_required() {
        let dir = tempfile::tempdir().expect("a directory");
        let recorder = Recorder::create(dir.path()).expect("a history");
        let faults = FaultLog::create(dir.path(), recorder).expect("a list of faults");
        let required = [("kill", 2), ("pause", 1), (SNAPSHOT_INSTALL, 3), (SWEPT_ROWS, 9)];
        let end = |kind, state| {
            let fault = faults.begin(kind, &[1], "");
            faults.end(fault, state).expect("the list is written");
            faults.lacks(&required)
        };
        assert!(end("pause", FaultState::Installed));
        assert!(end("kill", FaultState::Installed));
        assert!(end("kill", FaultState::Skipped));
        assert!(end("kill", FaultState::Indeterminate));
        assert!(!end("kill", FaultState::Installed));
        assert!(!faults.lacks(&[]));
        assert!(faults.lacks(&[("power", 1)]));
    }
}
