//! Mutation tests: rules that a node breaks on purpose, and the test or scenario that has to detect each. The rules
//! and the places where they are broken are in `mutant.rs` of the storage crate; `scripts/faults.sh mutants` runs
//! them one after the other.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::record::verdict::Validity;
use crate::run::{self, Options};
use crate::scenario;

/// How long faults are injected in a scenario that is not part of the smoke test.
const LENGTH: Duration = Duration::from_secs(15);

/// A rule that is broken on purpose.
pub struct Mutant {
    /// The value of `AGENTPOST_MUTANT`.
    pub name: &'static str,
    /// What the broken node does.
    pub does: &'static str,
    /// The test or scenario that must detect it.
    pub detector: Detector,
}

/// What detects a broken rule.
#[derive(Debug, Clone, Copy)]
pub enum Detector {
    /// A test of the storage crate, by its name in `cargo test`.
    Test(&'static str),
    /// A scenario, and the property that it must find violated.
    Scenario(&'static str, &'static str),
}

pub const ALL: &[Mutant] = &[
    Mutant {
        name: "no-fsync",
        does: "writes the log without fsync",
        detector: Detector::Scenario("P2", "recovery"),
    },
    Mutant {
        name: "vote-unsynced",
        does: "counts a vote before it is on disk",
        detector: Detector::Test("a_vote_is_on_disk_before_it_counts"),
    },
    Mutant {
        name: "ack-before-fsync",
        does: "reports an entry as durable before it is on disk",
        detector: Detector::Test("after_a_failed_sync_nothing_is_accepted"),
    },
    Mutant {
        name: "default-recovery",
        does: "takes any bad record of the log for an incomplete last one",
        detector: Detector::Test("the_last_group_may_be_cut_anywhere_and_any_other_may_not"),
    },
    Mutant {
        name: "floor-ignored",
        does: "starts although its log ends before entries that it acknowledged",
        detector: Detector::Test("a_damaged_segment_never_silently_loses_an_acknowledged_entry"),
    },
    Mutant {
        name: "purge-too-far",
        does: "purges one log entry more than the snapshot covers",
        detector: Detector::Test("a_purge_removes_whole_files_but_not_the_entry_behind_it"),
    },
    Mutant {
        name: "stale-read",
        does: "answers linearizable reads from local, possibly stale state",
        detector: Detector::Scenario("H1", "linearizable"),
    },
    Mutant {
        name: "key-forgotten",
        does: "forgets an idempotency key after half a second",
        detector: Detector::Scenario("K1", "lost"),
    },
    Mutant {
        name: "page-edge",
        does: "skips the first message of every page",
        detector: Detector::Scenario("H1", "monotonic"),
    },
    Mutant {
        name: "own-state",
        does: "applies an entry with a value that differs between processes",
        detector: Detector::Scenario("H1", "replicas"),
    },
    Mutant {
        name: "one-more",
        does: "accepts one send more than the daily limit",
        detector: Detector::Scenario("Q1", "quota"),
    },
    Mutant {
        name: "revoked-kept",
        does: "keeps accepting a revoked key",
        detector: Detector::Scenario("G1", "revocation"),
    },
    Mutant {
        name: "frame-dropped",
        does: "skips an event of a WebSocket session now and then",
        detector: Detector::Scenario("W5", "ws-stream"),
    },
    Mutant {
        name: "notice-lost",
        does: "sometimes writes a dead letter without notifying the sender",
        detector: Detector::Scenario("X8", "dispatch"),
    },
    Mutant {
        name: "epoch-unchecked",
        does: "grants claims to a dispatcher of an outdated epoch",
        detector: Detector::Test("the_protocol_holds_through_every_order_of_faults"),
    },
    Mutant {
        name: "late-outcome",
        does: "accepts an outcome for an attempt that was taken over",
        detector: Detector::Test("the_protocol_holds_through_every_order_of_faults"),
    },
    Mutant {
        name: "same-attempt",
        does: "repeats an attempt that was taken over under the same number",
        detector: Detector::Test("the_protocol_holds_through_every_order_of_faults"),
    },
    Mutant {
        name: "fanout-now",
        does: "fans a publish out to the subscribers at fan-out time, not at publish time",
        detector: Detector::Test("every_publish_reaches_those_subscribed_at_it_once"),
    },
    Mutant {
        name: "team-unchecked",
        does: "lets a key administer other teams",
        detector: Detector::Test("a_team_cannot_change_another"),
    },
];

/// Runs mutants and reports whether each was detected.
pub struct MutationTest {
    /// The root of the sources, for `cargo test`.
    pub sources: PathBuf,
    /// The directory that contains the directories of the runs.
    pub dir: PathBuf,
    /// The seed of all random choices.
    pub seed: u64,
    /// Tests that are known to pass when no rule is broken.
    sound: BTreeSet<&'static str>,
}

impl MutationTest {
    pub fn new(sources: PathBuf, dir: PathBuf, seed: u64) -> Self {
        MutationTest {
            sources,
            dir,
            seed,
            sound: BTreeSet::new(),
        }
    }

    /// Breaks one rule. `Ok` names what detected it, `Err` what failed to detect it.
    pub async fn hunt(&mut self, mutant: &Mutant) -> Result<Result<String, String>> {
        match mutant.detector {
            Detector::Test(name) => self.test(mutant, name),
            Detector::Scenario(name, property) => self.play(mutant, name, property).await,
        }
    }

    fn test(&mut self, mutant: &Mutant, name: &'static str) -> Result<Result<String, String>> {
        if !self.sound.contains(name) {
            let sound = self.cargo_test(name, None)?;
            let told = String::from_utf8_lossy(&sound.stdout);
            ensure!(
                sound.status.success() && told.contains("1 passed"),
                "{name} does not pass when nothing is broken: {told}{}",
                String::from_utf8_lossy(&sound.stderr)
            );
            self.sound.insert(name);
        }
        Ok(match self.cargo_test(name, Some(mutant.name))?.status.success() {
            true => Err(format!("the test {name} passes")),
            false => Ok(format!("the test {name}")),
        })
    }

    fn cargo_test(&self, name: &str, mutant: Option<&str>) -> Result<Output> {
        Command::new("cargo")
            .current_dir(&self.sources)
            .args([
                "test",
                "--locked",
                "--quiet",
                "-p",
                "agentpost-raft-store",
                "--features",
                "mutants",
                name,
            ])
            .envs(mutant.map(|name| ("AGENTPOST_MUTANT", name)))
            .output()
            .context("cargo test")
    }

    async fn play(&self, mutant: &Mutant, name: &str, property: &str) -> Result<Result<String, String>> {
        let scenario = scenario::named(name).with_context(|| format!("there is no scenario {name}"))?;
        let options = Options {
            seed: self.seed,
            length: scenario.smoke.unwrap_or(LENGTH),
            loads: None,
            rate: None,
            env: vec![("AGENTPOST_MUTANT".to_owned(), mutant.name.to_owned())],
            dir: self.dir.join(format!("mutant-{}-{}", mutant.name, self.seed)),
        };
        let verdict = run::run(&scenario, &options).await?;
        let broken = verdict.checks.iter().filter(|check| check.violated > 0);
        let broken: Vec<&str> = broken.map(|check| check.name.as_str()).collect();
        let told = format!("{name}: {}", broken.join(", "));
        Ok(match verdict.validity {
            Validity::Skipped => bail!("{name} cannot run here: {}", verdict.reason),
            Validity::Invalid if broken.contains(&property) => Ok(told),
            sum => Err(format!("{told} is {sum:?} {}", verdict.reason)),
        })
    }
}
