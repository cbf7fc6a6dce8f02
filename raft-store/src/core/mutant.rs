//! Rules that a test of the tests may break, one at a time.
//!
//! With the cargo feature `mutants`, `AGENTPOST_MUTANT=<name>` in the environment breaks the rule of that name in this
//! process: the tests and fault scenarios must notice it (`scripts/faults.sh mutants` sees to that). Without the feature
//! [`on`] is `false` at compile time and nothing is left of it. A build without debug assertions, such as every
//! release, refuses the feature.

#[cfg(all(feature = "mutants", not(debug_assertions)))]
compile_error!("the feature `mutants` breaks the rules on purpose: it is for debug builds only");

/// A rule that can be broken. The names are in kebab case: `stale-read`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// The log is written but never fsynced.
    NoFsync,
    /// A vote counts before it is durable.
    VoteUnsynced,
    /// An append counts as durable before its fsync.
    AckBeforeFsync,
    /// The log opens as RocksDB would by default: whatever follows a bad record is dropped in silence.
    DefaultRecovery,
    /// A node starts although its log ends below what it had promised.
    FloorIgnored,
    /// The log loses one entry more than a snapshot covers.
    PurgeTooFar,
    /// A linearizable read is answered from whatever this node has.
    StaleRead,
    /// What was stored under an idempotency key is forgotten when another leader comes.
    KeyForgotten,
    /// A daily limit lets one more through.
    OneMore,
    /// A page of an inbox begins one place too late.
    PageEdge,
    /// A session passes over an event now and then.
    FrameDropped,
    /// A claim of an epoch that is over is granted.
    EpochUnchecked,
    /// An outcome counts although its attempt was taken over.
    LateOutcome,
    /// An attempt that was taken over is made again under its number.
    SameAttempt,
    /// A dead delivery leaves no notice now and then.
    NoticeLost,
    /// The replicated state depends on the process that applies it.
    OwnState,
    /// A publish reaches those who are subscribed when it is given out.
    FanoutNow,
    /// A revoked key stays good.
    RevokedKept,
    /// A key administers other teams.
    TeamUnchecked,
}

/// Whether this rule is broken in this process.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub const fn on(_: Mutant) -> bool {
    false
}

/// Whether this rule is broken in this process.
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
