//! The tests of the tests: rules that are broken on purpose, and what has to notice each. The rules and the places where they
//! can be broken are in `raft-store/src/mutant.rs`; `scripts/faults.sh mutants` breaks one after the other.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::run::{self, Options};
use crate::scenario;
use crate::verdict::{Check, Sum};

/// A rule that is broken, and who notices.
pub struct Mutant {
    /// As `AGENTPOST_MUTANT` has it.
    pub name: &'static str,
    /// What the broken node does.
    pub does: &'static str,
    /// What must notice it.
    pub killer: Killer,
}

/// What must notice a broken rule.
#[derive(Debug, Clone, Copy)]
pub enum Killer {
    /// A test of the storage crate: its name as `cargo test` has it.
    Test(&'static str),
    /// A scenario, and the property that it must find broken.
    Scenario(&'static str, &'static str),
}

/// All of them.
pub const ALL: &[Mutant] = &[];

/// Whether a mutant was noticed; says by what.
pub async fn hunt(mutant: &Mutant, sources: &Path, dir: &Path, seed: u64) -> Result<Result<String, String>> {
    match mutant.killer {
        Killer::Test(name) => test(mutant, sources, name),
        Killer::Scenario(name, property) => play(mutant, name, property, &dir.join(mutant.name), seed).await,
    }
}

fn test(mutant: &Mutant, sources: &Path, name: &str) -> Result<Result<String, String>> {
    let run = |env: Option<&str>| {
        Command::new("cargo")
            .current_dir(sources)
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
            .envs(env.map(|mutant| ("AGENTPOST_MUTANT", mutant)))
            .output()
            .context("cargo test")
    };
    let sound = run(None)?;
    let passed = String::from_utf8_lossy(&sound.stdout).contains("1 passed");
    if !sound.status.success() || !passed {
        bail!(
            "{name} does not pass without the mutant: {}",
            String::from_utf8_lossy(&sound.stdout)
        );
    }
    Ok(match run(Some(mutant.name))?.status.success() {
        true => Err(format!("{name} passes")),
        false => Ok(format!("the test {name}")),
    })
}

async fn play(mutant: &Mutant, name: &str, property: &str, dir: &Path, seed: u64) -> Result<Result<String, String>> {
    let scenario = scenario::named(name).with_context(|| format!("no scenario {name}"))?;
    let options = Options {
        seed,
        length: scenario.smoke.unwrap_or(Duration::from_secs(15)),
        loads: None,
        rate: None,
        env: vec![("AGENTPOST_MUTANT".to_owned(), mutant.name.to_owned())],
        dir: dir.to_owned(),
    };
    let verdict = run::run(&scenario, &options).await?;
    let broken = |check: &&Check| check.violated > 0;
    let found: Vec<&str> = verdict
        .checks
        .iter()
        .filter(broken)
        .map(|check| check.name.as_str())
        .collect();
    Ok(match verdict.sum {
        Sum::Skipped => bail!("{name} cannot run here: {}", verdict.reason),
        Sum::Invalid if found.contains(&property) => Ok(format!("{name}: {}", found.join(", "))),
        _ => Err(format!(
            "{name} is {:?}: {} {}",
            verdict.sum,
            found.join(", "),
            verdict.reason
        )),
    })
}
