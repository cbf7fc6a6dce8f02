//! Mutants: bugs that can be switched on, one at a time, to see whether the tests notice them.
//!
//! With the cargo feature `mutants`, `AGENTPOST_MUTANT=<name>` in the environment breaks the rule of that name in this
//! process. `scripts/faults.sh mutants` switches on each mutant in turn and expects a test or a fault scenario to fail.
//! Without the feature [`on`] is `false` at compile time, so the compiler removes the broken branches. A build without
//! debug assertions, such as every release, refuses the feature.

#[cfg(all(feature = "mutants", not(debug_assertions)))]
compile_error!("the feature `mutants` breaks the rules on purpose: it is for debug builds only");

/// A bug that can be switched on. Its name in the environment is in kebab case: `stale-read`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// The log is written but never fsynced.
    NoFsync,
    /// A vote counts before it is durable.
    VoteUnsynced,
    /// An append counts as durable before its fsync.
    AckBeforeFsync,
    /// The log opens although a record in the middle is bad, and silently drops everything after it.
    DefaultRecovery,
    /// A node starts although its log ends below its durability floor.
    FloorIgnored,
    /// A purge removes one entry more than the snapshot covers.
    PurgeTooFar,
    /// A linearizable read is answered from this node's state without a read barrier.
    StaleRead,
    /// Idempotency keys are forgotten when the leader changes.
    KeyForgotten,
    /// A daily limit allows one more than it should.
    OneMore,
    /// A page of an inbox begins one entry too late.
    PageEdge,
    /// A session skips an event now and then.
    FrameDropped,
    /// A claim of a past epoch is granted.
    EpochUnchecked,
    /// An outcome is accepted although its attempt was taken over.
    LateOutcome,
    /// The attempt after a takeover reuses the number of the one that was taken over.
    SameAttempt,
    /// A dead delivery leaves no notice now and then.
    NoticeLost,
    /// The replicated state contains a value that differs between processes.
    OwnState,
    /// A publish reaches the subscribers of the time of its chunk, not those of the publish.
    FanoutNow,
    /// A revoked key stays valid.
    RevokedKept,
    /// A key administers other teams.
    TeamUnchecked,
}

/// A number that differs between processes, for [`Mutant::OwnState`].
pub fn of_this_process() -> u64 {
    u64::from(std::process::id() % 1000)
}

/// Whether this mutant is switched on in this process.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub const fn on(_: Mutant) -> bool {
    false
}

/// Whether this mutant is switched on in this process.
#[cfg(feature = "mutants")]
pub fn on(mutant: Mutant) -> bool {
    use std::sync::OnceLock;
    static CHOSEN: OnceLock<Option<String>> = OnceLock::new();
    let chosen = CHOSEN.get_or_init(|| std::env::var("AGENTPOST_MUTANT").ok());
    chosen.as_ref().is_some_and(|chosen| *chosen == name(mutant))
}

#[cfg(feature = "mutants")]
fn name(mutant: Mutant) -> String {
    let mut name = String::new();
    for letter in format!("{mutant:?}").chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('-');
        }
        name.push(letter.to_ascii_lowercase());
    }
    name
}
