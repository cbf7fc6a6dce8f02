//! Damages files of a node that is down, starts the node, and records its recovery.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;

use super::Stage;
use crate::checker::recovery::{LATE, LIMIT_MS};
use crate::cluster::disk::damage::{self, Spoilt, Target};
use crate::cluster::supervisor::{Health, Start};
use crate::faults::State;
use crate::recovery::{self, Class, Damage, Part, Recovery};

/// Longer than the limit for a node, so that the excess is measured.
const PATIENCE: Duration = Duration::from_secs(30);
/// Time between two checks whether a node that serves has got rid of the damage.
const LOOK: Duration = Duration::from_millis(200);

/// Words in log lines about damage that was found or repaired.
const ABOUT_DAMAGE: [&str; 5] = ["damage", "restored", "replaced", "quarantine", "cannot be used"];

/// The kinds of damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// One or two bits of a file flip.
    Flip,
    /// A file loses its last bytes or its second half.
    Cut,
    /// Blocks of a file revert to an earlier state.
    RollBack,
    /// The whole data directory is emptied.
    Wipe,
}

impl Way {
    /// The kind of the fault.
    pub fn word(self) -> &'static str {
        match self {
            Way::Flip => "flip",
            Way::Cut => "cut",
            Way::RollBack => "rollback",
            Way::Wipe => "wipe",
        }
    }
}

/// Chooses the files to damage, so that every kind of file is covered.
pub struct Damager {
    /// Only these kinds; all if empty.
    only: &'static [Part],
    met: BTreeMap<Part, usize>,
    earlier: BTreeMap<usize, BTreeMap<String, Vec<u8>>>,
}

impl Damager {
    /// For files of these kinds; for all kinds if `only` is empty.
    pub fn new(only: &'static [Part]) -> Self {
        Damager {
            only,
            met: BTreeMap::new(),
            earlier: BTreeMap::new(),
        }
    }

    /// Damages one, two or three files of a data directory that no process uses; fewer if too few files qualify.
    /// Mostly one, because the worst of several hides the reactions to the others.
    fn spoil(&mut self, node: usize, data_dir: &Path, way: Way, random: &mut StdRng) -> Result<Vec<Spoilt>> {
        let mut targets = damage::targets(data_dir)?;
        targets.retain(|target| self.only.is_empty() || self.only.contains(&target.part));
        let none = BTreeMap::new();
        let earlier = self.earlier.get(&node).unwrap_or(&none);
        if way == Way::RollBack {
            let changed = |target: &Target| {
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
            let spoilt = match way {
                Way::Flip => Some(damage::flip(&target, random)?),
                Way::Cut => Some(damage::cut(&target, random)?),
                Way::RollBack => match earlier.get(&target.name) {
                    Some(earlier) => damage::roll_back(&target, earlier, random)?,
                    None => None,
                },
                Way::Wipe => None,
            };
            if spoilt.is_some() {
                *self.met.entry(target.part).or_default() += 1;
            }
            done.extend(spoilt);
        }
        Ok(done)
    }

    /// Chooses a file of the kind that was damaged least often.
    fn choose(&self, targets: &[Target], random: &mut StdRng) -> Option<Target> {
        let met = |target: &Target| self.met.get(&target.part).copied().unwrap_or_default();
        let least = targets.iter().map(met).min()?;
        let rare: Vec<&Target> = targets.iter().filter(|target| met(target) == least).collect();
        rare.choose(random).map(|target| (*target).clone())
    }
}

impl Stage {
    /// Copies the current content of the files of these nodes, for [`Way::RollBack`].
    pub fn remember(&mut self, nodes: &[usize], damager: &mut Damager) -> Result<()> {
        for node in nodes {
            let copies = damage::copy(&self.cluster.disk().data_dir(*node))?;
            damager.earlier.insert(*node, copies);
        }
        Ok(())
    }

    /// Kills these nodes, damages files of theirs and starts them again. When it returns all nodes are ready; a node
    /// in quarantine has rejoined.
    pub async fn damage(&mut self, nodes: &[usize], way: Way, damager: &mut Damager) -> Result<()> {
        self.pick_up().await?;
        let mut fault = self.faults.begin(way.word(), nodes, "");
        let mut spoilt = BTreeMap::new();
        for node in nodes {
            self.cluster.kill(*node)?;
            let data_dir = self.cluster.disk().data_dir(*node);
            let files = match way {
                Way::Wipe => Vec::new(),
                _ => damager.spoil(*node, &data_dir, way, &mut self.random)?,
            };
            if way == Way::Wipe {
                wipe(&data_dir)?;
            }
            spoilt.insert(*node, (files, self.cluster.log(*node).len()));
        }
        let nothing = way != Way::Wipe && spoilt.values().all(|(files, _)| files.is_empty());
        let (began, clock) = (self.world.recorder.now(), Instant::now());
        for start in self.cluster.supervise(nodes, PATIENCE).await? {
            let (files, mark) = &spoilt[&start.node];
            let mut recovery = self.judge(start, way, files, *mark, clock).await?;
            recovery.began = began;
            if !recovery.files.is_empty() {
                recovery::append(&self.dir, &recovery)?;
                fault.note(&in_words(&recovery));
            }
            if matches!(recovery.class, Class::Quarantined | Class::Down) {
                fault.note(&self.join_again(recovery.node).await?);
            }
        }
        let state = if nothing { State::Skipped } else { State::Installed };
        self.faults.end(fault, state)
    }

    /// Determines the recovery of a node with damaged files. A node that serves has until the limit to get rid of the
    /// damage, or to end because of it.
    async fn judge(
        &mut self,
        start: Start,
        way: Way,
        spoilt: &[Spoilt],
        mark: usize,
        clock: Instant,
    ) -> Result<Recovery> {
        let node = start.node;
        let data_dir = self.cluster.disk().data_dir(node);
        let limit = Duration::from_millis(LIMIT_MS);
        let (mut health, mut after, mut starts) = (start.health, start.after, start.starts);
        let mut left = Vec::new();
        while health == Health::Ready {
            left = spoilt
                .iter()
                .map(|file| file.left(&data_dir))
                .collect::<Result<Vec<_>>>()?;
            let served = left.iter().flatten().any(|part| *part != Part::Unread);
            if !served || clock.elapsed() > limit {
                break;
            }
            tokio::time::sleep(LOOK).await;
            if self.cluster.crashed()?.iter().any(|(ended, _)| *ended == node) {
                let again = self.cluster.supervise(&[node], PATIENCE).await?;
                let again = again.into_iter().next().context("one node was started")?;
                (health, after, starts) = (again.health, clock.elapsed(), starts + again.starts);
            }
        }
        left.resize(spoilt.len(), None);
        let said = about_damage(self.cluster.log(node).get(mark..).unwrap_or_default());
        let (class, why) = match health {
            Health::Quarantined(why) => (Class::Quarantined, why),
            Health::Down(why) => (Class::Down, format!("{why}; {said}")),
            Health::Ready if way == Way::Wipe => (Class::Ready, said),
            Health::Ready if left.iter().any(Option::is_some) => (Class::Undamaged, said),
            Health::Ready if said.is_empty() => (Class::Replaced, said),
            Health::Ready => (Class::Repaired, said),
        };
        let mut files: Vec<Damage> = spoilt
            .iter()
            .zip(left)
            .map(|(file, left)| written(file, left))
            .collect();
        if way == Way::Wipe {
            files.push(Damage {
                path: ".".to_owned(),
                part: Part::All,
                what: "emptied".to_owned(),
                left: None,
            });
        }
        Ok(Recovery {
            node,
            fault: way.word().to_owned(),
            files,
            began: 0,
            after_ms: after.as_millis() as u64,
            starts,
            class,
            why,
        })
    }

    /// Lets a node rejoin under a new id; returns how long it took.
    async fn join_again(&mut self, node: usize) -> Result<String> {
        let began = Instant::now();
        self.cluster.kill(node)?;
        // Refused during an election: an operator would retry.
        while let Err(error) = self.cluster.rejoin(node).await {
            if began.elapsed() > PATIENCE {
                return Err(error.context(format!("node {node} joins again")));
            }
            self.cluster.kill(node)?;
            self.pause(500..1_000).await;
        }
        remove_aside(&self.cluster.disk().data_dir(node))?;
        Ok(format!("joined again in {} ms", began.elapsed().as_millis()))
    }

    /// Starts nodes that ended unexpectedly, as a supervisor would: damage may be detected late.
    pub(super) async fn pick_up(&mut self) -> Result<()> {
        let ended: Vec<usize> = self.cluster.crashed()?.into_iter().map(|(node, _)| node).collect();
        let began = self.world.recorder.now();
        for start in self.cluster.supervise(&ended, PATIENCE).await? {
            let (class, why) = match &start.health {
                Health::Ready => (Class::Ready, String::new()),
                Health::Quarantined(why) => (Class::Quarantined, why.clone()),
                Health::Down(why) => (Class::Down, why.clone()),
            };
            let recovery = Recovery::of(&start, LATE, began, class, why);
            recovery::append(&self.dir, &recovery)?;
            if class != Class::Ready {
                self.join_again(start.node).await?;
            }
        }
        Ok(())
    }
}

fn written(spoilt: &Spoilt, left: Option<Part>) -> Damage {
    Damage {
        path: spoilt.target.name.clone(),
        part: spoilt.target.part,
        what: spoilt.what.clone(),
        left,
    }
}

fn in_words(recovery: &Recovery) -> String {
    let files: Vec<String> = recovery
        .files
        .iter()
        .map(|file| format!("{} {}", file.path, file.what))
        .collect();
    let (node, class, after) = (recovery.node, recovery.class.word(), recovery.after_ms);
    format!("{}: node {node} {class} after {after} ms", files.join(", "))
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
