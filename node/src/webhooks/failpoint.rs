//! Places at which a test can make this process abort, panic or hang.
//!
//! With the cargo feature `failpoints` (test builds only), `AGENTPOST_FAILPOINT=<name>[:<n>]` in the environment makes
//! the process abort when it passes the place of that name for the n-th time (the first time if n is not given). As in
//! a crash, nothing is flushed and no peer is told. At [`Place::Choosing`] only the task panics, at [`Place::Applied`] the
//! thread hangs, and at [`Place::Opening`] it waits until the file that `AGENTPOST_FAILPOINT_UNTIL` names exists.
//! Without the feature the places cost nothing and the variable is ignored.
//!
//! A test of whole clusters builds with `--features agentpost-node/failpoints`, as `scripts/test.sh` does (it passes
//! the binaries in `AGENTPOST_BIN`), and sets the variable for the one process that shall die. A node that does not
//! lead passes [`Place::Opening`], [`Place::Applied`], and the places from [`Place::BeforeCall`] on for the calls that a
//! leader delegates to it or that it began as a leader.

/// A place at which the process can fail. The names are in kebab case: `before-claim`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A step of the opening of the data directory begins. The thread waits here.
    Opening,
    /// Entries with effects were applied. Apply hangs here.
    Applied,
    /// The dispatcher chooses deliveries to claim. It panics here.
    Choosing,
    /// Deliveries were chosen; their Claim is about to be proposed.
    BeforeClaim,
    /// The Claim is applied here.
    ClaimCommitted,
    /// The checks have passed; the HTTP call is about to begin.
    BeforeCall,
    /// The call has ended; its result is in memory.
    AfterCall,
    /// The Outcome is about to be proposed.
    BeforeOutcome,
    /// The Outcome is applied and answered.
    OutcomeCommitted,
}

/// Fails if the environment names this place.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn pass(_: Place) {}

#[cfg(feature = "failpoints")]
pub use armed::pass;

#[cfg(feature = "failpoints")]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::Place;

    struct Fuse {
        name: String,
        passes_left: AtomicU64,
    }

    static FUSE: OnceLock<Option<Fuse>> = OnceLock::new();

    /// Fails if the environment names this place.
    pub fn pass(place: Place) {
        let fuse = FUSE.get_or_init(|| std::env::var("AGENTPOST_FAILPOINT").ok().map(|text| lit(&text)));
        let Some(fuse) = fuse.as_ref().filter(|fuse| fuse.name == name(place)) else {
            return;
        };
        if fuse.passes_left.fetch_sub(1, Ordering::SeqCst) == 1 {
            assert!(place != Place::Choosing, "AGENTPOST_FAILPOINT names this place");
            match place {
                Place::Opening => return wait(),
                Place::Applied => hang(),
                _ => {}
            }
            tracing::error!(failpoint = %fuse.name, "aborting: AGENTPOST_FAILPOINT names this place");
            std::process::abort();
        }
    }

    fn hang() {
        loop {
            std::thread::park();
        }
    }

    fn wait() {
        let until = std::env::var_os("AGENTPOST_FAILPOINT_UNTIL").map(std::path::PathBuf::from);
        while !until.as_ref().is_some_and(|until| until.exists()) {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }

    fn lit(text: &str) -> Fuse {
        let (name, passes) = text.split_once(':').unwrap_or((text, "1"));
        Fuse {
            name: name.to_owned(),
            passes_left: AtomicU64::new(passes.parse().unwrap_or(1)),
        }
    }

    fn name(place: Place) -> &'static str {
        match place {
            Place::Opening => "opening",
            Place::Applied => "applied",
            Place::Choosing => "choosing",
            Place::BeforeClaim => "before-claim",
            Place::ClaimCommitted => "claim-committed",
            Place::BeforeCall => "before-call",
            Place::AfterCall => "after-call",
            Place::BeforeOutcome => "before-outcome",
            Place::OutcomeCommitted => "outcome-committed",
        }
    }
}
