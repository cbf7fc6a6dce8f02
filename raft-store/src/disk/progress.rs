//! What the opening of a shard is doing, for people who wait for it.

use std::fmt;
use std::sync::Arc;

/// A step of the opening.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A segment of the log is being read.
    Log {
        /// Its position among the segments; the first one is 1.
        segment: usize,
        /// The number of segments.
        of: usize,
    },
    /// The snapshot is being compared with its checksums.
    Snapshot,
    /// The state is being opened, and read if it is small.
    State,
    /// A damaged state is being replaced.
    Restore,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Log { segment, of } => write!(f, "the log is being read: segment {segment} of {of}"),
            Step::Snapshot => f.write_str("the snapshot is being compared with its checksums"),
            Step::State => f.write_str("the state is being opened"),
            Step::Restore => f.write_str("the state is being restored"),
        }
    }
}

/// Receives every step before it begins, on the thread that does it.
#[derive(Clone, Default)]
pub struct Progress(Option<Arc<dyn Fn(Step) + Send + Sync>>);

impl Progress {
    /// Calls `on` with every step.
    pub fn new(on: impl Fn(Step) + Send + Sync + 'static) -> Self {
        Progress(Some(Arc::new(on)))
    }

    pub(crate) fn begin(&self, step: Step) {
        if let Some(on) = &self.0 {
            on(step);
        }
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Progress")
    }
}
