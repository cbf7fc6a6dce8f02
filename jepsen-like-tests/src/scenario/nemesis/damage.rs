//! Damages files of a node that is down, starts the node, and records its recovery.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;

use super::{Nemesis, undamaged};
use crate::cluster::disk::damage::{self, DamageTarget, FileDamage};
use crate::cluster::supervisor::{NodeHealth, SupervisedStart};
use crate::record::faults::FaultState;
use crate::record::recoveries::{self, DamagedFile, FileKind, LATE, LIMIT_MS, Recovery, RecoveryOutcome};

/// Longer than the limit for a node, so that the excess is measured.
const PATIENCE: Duration = Duration::from_secs(30);
/// Time between two checks whether a node that serves has got rid of the damage.
const LOOK: Duration = Duration::from_millis(200);

/// Words in log lines about damage that was found or repaired.
const ABOUT_DAMAGE: [&str; 5] = ["damage", "restored", "replaced", "quarantine", "cannot be used"];

/// The kinds of damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DamageKind {
    /// One or two bits of a file flip.
    Flip,
    /// A file loses its last bytes or its second half.
    Cut,
    /// Blocks of a file revert to an earlier state.
    RollBack,
    /// The whole data directory is emptied.
    Wipe,
}

impl DamageKind {
    /// The kind of the fault.
    pub fn word(self) -> &'static str {
        match self {
            DamageKind::Flip => "flip",
            DamageKind::Cut => "cut",
            DamageKind::RollBack => "rollback",
            DamageKind::Wipe => "wipe",
        }
    }
}

/// Chooses the files to damage, so that every kind of file is covered.
pub struct FileDamager {
    /// Only these kinds; all if empty.
    only: &'static [FileKind],
    met: BTreeMap<FileKind, usize>,
    earlier: BTreeMap<usize, BTreeMap<String, Vec<u8>>>,
}

impl FileDamager {
    /// For files of these kinds; for all kinds if `only` is empty.
    pub fn new(only: &'static [FileKind]) -> Self {
        FileDamager {
            only,
            met: BTreeMap::new(),
            earlier: BTreeMap::new(),
        }
    }

    /// Damages one, two or three files of a data directory that no process uses; fewer if too few files qualify.
    /// Mostly one, because the worst of several hides the reactions to the others.
    fn damage_files(
        &mut self,
        node: usize,
        data_dir: &Path,
        damage: DamageKind,
        random: &mut StdRng,
    ) -> Result<Vec<FileDamage>> {
        let mut targets = damage::targets(data_dir)?;
        targets.retain(|target| self.only.is_empty() || self.only.contains(&target.kind));
        let none = BTreeMap::new();
        let earlier = self.earlier.get(&node).unwrap_or(&none);
        if damage == DamageKind::RollBack {
            let changed = |target: &DamageTarget| {
                let then = earlier.get(&target.name)?;
                Some(fs::read(&target.path).ok()? != *then)
            };
            targets.retain(|target| changed(target).unwrap_or(false));
        }
        let mut done = Vec::new();
        for _ in 0..*[1, 1, 1, 2, 3].choose(random).unwrap_or(&1) {
            let Some(target) = self.choose(&targets, random) else {
                break;
            };
            targets.retain(|other| other.name != target.name);
            let damaged = match damage {
                DamageKind::Flip => Some(damage::flip(&target, random)?),
                DamageKind::Cut => Some(damage::cut(&target, random)?),
                DamageKind::RollBack => match earlier.get(&target.name) {
                    Some(earlier) => damage::roll_back(&target, earlier, random)?,
                    None => None,
                },
                DamageKind::Wipe => None,
            };
            if damaged.is_some() {
                *self.met.entry(target.kind).or_default() += 1;
            }
            done.extend(damaged);
        }
        Ok(done)
    }

    /// Chooses a file of the kind that was damaged least often.
    fn choose(&self, targets: &[DamageTarget], random: &mut StdRng) -> Option<DamageTarget> {
        let met = |target: &DamageTarget| self.met.get(&target.kind).copied().unwrap_or_default();
        let least = targets.iter().map(met).min()?;
        let rare: Vec<&DamageTarget> = targets.iter().filter(|target| met(target) == least).collect();
        rare.choose(random).map(|target| (*target).clone())
    }
}

impl Nemesis {
    /// Copies the current content of the files of these nodes, for [`DamageKind::RollBack`].
    pub fn remember(&mut self, nodes: &[usize], damager: &mut FileDamager) -> Result<()> {
        for node in nodes {
            let copies = damage::copy(&self.cluster.disk().data_dir(*node))?;
            damager.earlier.insert(*node, copies);
        }
        Ok(())
    }

    /// Kills these nodes, damages files of theirs and starts them again. When it returns all nodes are ready; a node
    /// in quarantine has rejoined.
    pub async fn damage(&mut self, nodes: &[usize], damage: DamageKind, damager: &mut FileDamager) -> Result<()> {
        self.restart_crashed().await?;
        let mut fault = self.faults.begin(damage.word(), nodes, "");
        let mut damaged = BTreeMap::new();
        for node in nodes {
            self.cluster.kill(*node)?;
            let data_dir = self.cluster.disk().data_dir(*node);
            let files = match damage {
                DamageKind::Wipe => Vec::new(),
                _ => damager.damage_files(*node, &data_dir, damage, &mut self.random)?,
            };
            if damage == DamageKind::Wipe {
                wipe(&data_dir)?;
            }
            damaged.insert(*node, (files, self.cluster.log(*node).len()));
        }
        let nothing = damage != DamageKind::Wipe && damaged.values().all(|(files, _)| files.is_empty());
        let (began, clock) = (self.ctx.recorder.now(), Instant::now());
        for start in self.cluster.supervise(nodes, PATIENCE).await? {
            let (files, mark) = &damaged[&start.node];
            let mut recovery = self.judge(start, damage, files, *mark, clock).await?;
            recovery.began = began;
            if !recovery.files.is_empty() {
                recoveries::append(&self.dir, &recovery)?;
                fault.note(&in_words(&recovery));
            }
            if matches!(recovery.outcome, RecoveryOutcome::Quarantined | RecoveryOutcome::Down) {
                fault.note(&self.rejoin(recovery.node).await?);
            }
        }
        let state = if nothing {
            FaultState::Skipped
        } else {
            FaultState::Installed
        };
        self.faults.end(fault, state)
    }

    /// Determines the recovery of a node with damaged files. A node that serves has until the limit to get rid of the
    /// damage, or to end because of it.
    async fn judge(
        &mut self,
        start: SupervisedStart,
        damage: DamageKind,
        damaged: &[FileDamage],
        mark: usize,
        clock: Instant,
    ) -> Result<Recovery> {
        let node = start.node;
        let data_dir = self.cluster.disk().data_dir(node);
        let limit = Duration::from_millis(LIMIT_MS);
        let (mut health, mut after, mut starts) = (start.health, start.after, start.starts);
        let mut left = Vec::new();
        while health == NodeHealth::Ready {
            left = damaged
                .iter()
                .map(|file| file.left(&data_dir))
                .collect::<Result<Vec<_>>>()?;
            let served = left.iter().flatten().any(|kind| *kind != FileKind::Unread);
            if !served || clock.elapsed() > limit {
                break;
            }
            tokio::time::sleep(LOOK).await;
            if self.cluster.crashed()?.iter().any(|(ended, _)| *ended == node) {
                let again = self.cluster.supervise(&[node], PATIENCE).await?;
                let again = again.into_iter().next().context("the supervisor returned no outcome")?;
                (health, after, starts) = (again.health, clock.elapsed(), starts + again.starts);
            }
        }
        left.resize(damaged.len(), None);
        let said = about_damage(self.cluster.log(node).get(mark..).unwrap_or_default());
        let (outcome, why) = match health {
            NodeHealth::Quarantined(why) => (RecoveryOutcome::Quarantined, why),
            NodeHealth::Down(why) => (RecoveryOutcome::Down, format!("{why}; {said}")),
            NodeHealth::Ready if damage == DamageKind::Wipe => (RecoveryOutcome::Ready, said),
            NodeHealth::Ready if left.iter().any(Option::is_some) => (RecoveryOutcome::Undamaged, said),
            NodeHealth::Ready if said.is_empty() => (RecoveryOutcome::Replaced, said),
            NodeHealth::Ready => (RecoveryOutcome::Repaired, said),
        };
        let mut files: Vec<DamagedFile> = damaged
            .iter()
            .zip(left)
            .map(|(file, left)| written(file, left))
            .collect();
        if damage == DamageKind::Wipe {
            files.push(DamagedFile {
                path: ".".to_owned(),
                kind: FileKind::All,
                what: "emptied".to_owned(),
                still_in: None,
            });
        }
        Ok(Recovery {
            node,
            fault: damage.word().to_owned(),
            files,
            began: 0,
            after_ms: after.as_millis() as u64,
            starts,
            outcome,
            why,
        })
    }

    /// Lets a node rejoin under a new id; returns how long it took.
    async fn rejoin(&mut self, node: usize) -> Result<String> {
        let began = Instant::now();
        self.cluster.kill(node)?;
        // Refused during an election: an operator would retry.
        while let Err(error) = self.cluster.rejoin(node).await {
            if began.elapsed() > PATIENCE {
                return Err(error.context(format!("node {node} did not rejoin")));
            }
            self.cluster.kill(node)?;
            self.pause(500..1_000).await;
        }
        remove_aside(&self.cluster.disk().data_dir(node))?;
        Ok(format!("joined again in {} ms", began.elapsed().as_millis()))
    }

    /// Starts nodes that ended unexpectedly, as a supervisor would: damage may be detected late.
    pub(super) async fn restart_crashed(&mut self) -> Result<()> {
        let ended: Vec<usize> = self.cluster.crashed()?.into_iter().map(|(node, _)| node).collect();
        let began = self.ctx.recorder.now();
        for start in self.cluster.supervise(&ended, PATIENCE).await? {
            let (outcome, why) = match &start.health {
                NodeHealth::Ready => (RecoveryOutcome::Ready, String::new()),
                NodeHealth::Quarantined(why) => (RecoveryOutcome::Quarantined, why.clone()),
                NodeHealth::Down(why) => (RecoveryOutcome::Down, why.clone()),
            };
            let recovery = undamaged(&start, LATE, began, outcome, why);
            recoveries::append(&self.dir, &recovery)?;
            if outcome != RecoveryOutcome::Ready {
                self.rejoin(start.node).await?;
            }
        }
        Ok(())
    }
}

fn written(damaged: &FileDamage, left: Option<FileKind>) -> DamagedFile {
    DamagedFile {
        path: damaged.target.name.clone(),
        kind: damaged.target.kind,
        what: damaged.what.clone(),
        still_in: left,
    }
}

fn in_words(recovery: &Recovery) -> String {
    let files: Vec<String> = recovery
        .files
        .iter()
        .map(|file| format!("{} {}", file.path, file.what))
        .collect();
    let (node, outcome, after) = (recovery.node, recovery.outcome.word(), recovery.after_ms);
    format!("{}: node {node} {outcome} after {after} ms", files.join(", "))
}

/// The distinct log messages of a node about damage, from lines of JSON.
fn about_damage(log: &str) -> String {
    let mut said: Vec<String> = Vec::new();
    for line in log.lines() {
        let lower = line.to_lowercase();
        if !ABOUT_DAMAGE.iter().any(|word| lower.contains(word)) {
            continue;
        }
        let Ok(serde_json::Value::Object(mut fields)) = serde_json::from_str(line) else {
            continue;
        };
        fields.retain(|name, _| !["timestamp", "level", "target"].contains(&name.as_str()));
        let words: Vec<String> = fields
            .values()
            .map(|value| value.to_string().chars().take(200).collect())
            .collect();
        let words = words.join(" ");
        if !said.contains(&words) {
            said.push(words);
        }
    }
    said.truncate(5);
    said.join(" | ")
}

fn wipe(data_dir: &Path) -> Result<()> {
    fs::remove_dir_all(data_dir)?;
    Ok(fs::create_dir(data_dir)?)
}

/// Removes the old data directories that a node left when it rejoined.
fn remove_aside(data_dir: &Path) -> Result<()> {
    let (parent, name) = (
        data_dir.parent().context("a parent")?,
        data_dir.file_name().context("a name")?,
    );
    let prefix = format!("{}.quarantined-", name.to_string_lossy());
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}
