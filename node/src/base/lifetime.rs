//! The end of the process, as requests and sessions see it.

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::task_watch::TaskWatch;

/// Tells that the node stops, and what it then waits for. Cheap to clone.
#[derive(Clone, Default)]
pub struct Lifetime {
    /// Cancelled when the node stops: sessions close with a resume hint, and nothing new begins.
    pub shutdown: CancellationToken,
    /// Every task that serves a client runs here, so that stopping can wait for it.
    pub tasks: TaskTracker,
    /// Ends the node when a task dies that it needs.
    pub watch: TaskWatch,
}
