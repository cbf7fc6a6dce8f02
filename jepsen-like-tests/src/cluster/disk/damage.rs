//! Files that are spoilt while nobody has them open: bits that flip, ends that are gone, blocks of an earlier moment. All
//! in place, as a disk would do it: another name of the same file (a checkpoint has many) shows the damage, too.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rand::RngExt as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;

use crate::recovery::Part;

/// What a disk writes at once.
const BLOCK: usize = 4096;
/// So many bytes around a damage are compared to find out whether it is still there.
const WINDOW: u64 = 32;
/// Larger files are not kept for [`roll_back`].
const COPY_BYTES_MAX: u64 = 32 << 20;

/// A file that may be spoilt.
#[derive(Debug, Clone)]
pub struct Target {
    /// Where it is.
    pub path: PathBuf,
    /// Where it is below the data directory.
    pub name: String,
    /// What kind of file it is.
    pub part: Part,
    /// Its length, not 0.
    pub bytes: u64,
}

/// What was done to a file.
#[derive(Debug, Clone)]
pub struct Spoilt {
    /// The file.
    pub target: Target,
    /// In words.
    pub what: String,
    inode: u64,
    /// Where to look, and what is there as long as the damage is.
    looks: Vec<(u64, Vec<u8>)>,
    /// The length, if that is the damage.
    ends: Option<u64>,
}

/// All files of a data directory that may be spoilt, in an order that depends on their names only.
pub fn targets(data_dir: &Path) -> Result<Vec<Target>> {
    let mut targets = Vec::new();
    let mut open = vec![data_dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
            let path = entry?.path();
            // A running node removes files all the time.
            let Ok(metadata) = path.symlink_metadata() else {
                continue;
            };
            if metadata.is_dir() {
                open.push(path);
                continue;
            }
            let name = path.strip_prefix(data_dir)?.display().to_string();
            if let Some(part) = Part::of(&name).filter(|_| metadata.len() > 0) {
                let bytes = metadata.len();
                targets.push(Target {
                    path,
                    name,
                    part,
                    bytes,
                });
            }
        }
    }
    targets.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(targets)
}

/// Flips one or two bits, anywhere.
pub fn flip(target: &Target, random: &mut StdRng) -> Result<Spoilt> {
    let file = File::options().read(true).write(true).open(&target.path)?;
    let mut bits = Vec::new();
    for _ in 0..random.random_range(1..=2) {
        let (at, bit) = (random.random_range(0..target.bytes), random.random_range(0..8u8));
        if bits.contains(&(at, bit)) {
            continue; // Twice is never.
        }
        let mut byte = [0];
        file.read_exact_at(&mut byte, at)?;
        file.write_all_at(&[byte[0] ^ (1 << bit)], at)?;
        bits.push((at, bit));
    }
    let places: Vec<String> = bits.iter().map(|(at, bit)| format!("{at}.{bit}")).collect();
    let what = format!("of {} bytes flipped bit {}", target.bytes, places.join(" and "));
    let looks: Vec<u64> = bits.iter().map(|(at, _)| *at).collect();
    spoilt(target, what, &looks, None)
}

/// Cuts off the last bytes, or half of it.
pub fn cut(target: &Target, random: &mut StdRng) -> Result<Spoilt> {
    let keep = match random.random_bool(0.5) {
        true => target.bytes / 2,
        false => target.bytes - random.random_range(1..=target.bytes.min(200)),
    };
    File::options().write(true).open(&target.path)?.set_len(keep)?;
    let what = format!("of {} bytes kept {keep}", target.bytes);
    spoilt(target, what, &[keep.saturating_sub(1)], Some(keep))
}

/// The contents of a node's files at this moment, by name: those that are written more than once.
pub fn copy(data_dir: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let changing = |part: Part| !matches!(part, Part::LogSst | Part::StateSst | Part::Snapshot | Part::Unread);
    let mut copies = BTreeMap::new();
    for target in targets(data_dir)? {
        if changing(target.part) && target.bytes <= COPY_BYTES_MAX {
            // Gone meanwhile: nothing to put back.
            if let Ok(bytes) = fs::read(&target.path) {
                copies.insert(target.name, bytes);
            }
        }
    }
    Ok(copies)
}

/// Puts up to three blocks of an earlier moment back; none if no block has changed since. What the file did not have then
/// was zeros.
pub fn roll_back(target: &Target, earlier: &[u8], random: &mut StdRng) -> Result<Option<Spoilt>> {
    let now = fs::read(&target.path)?;
    let mut then = earlier.to_vec();
    then.resize(now.len(), 0);
    let changed: Vec<usize> = (0..now.len().div_ceil(BLOCK))
        .filter(|block| range(*block, now.len()).any(|at| now[at] != then[at]))
        .collect();
    if changed.is_empty() {
        return Ok(None);
    }
    let file = File::options().read(true).write(true).open(&target.path)?;
    let count = random.random_range(1..=3);
    let blocks: Vec<usize> = changed.sample(random, count).copied().collect();
    let mut looks = Vec::new();
    for block in &blocks {
        let range = range(*block, now.len());
        let different = range.clone().find(|at| now[*at] != then[*at]).unwrap_or(range.start);
        looks.push(different as u64);
        file.write_all_at(&then[range.clone()], range.start as u64)?;
    }
    let what = format!("of {} bytes put back the blocks {blocks:?} of {BLOCK}", target.bytes);
    Ok(Some(spoilt(target, what, &looks, None)?))
}

fn range(block: usize, length: usize) -> std::ops::Range<usize> {
    block * BLOCK..((block + 1) * BLOCK).min(length)
}

fn spoilt(target: &Target, what: String, looks: &[u64], ends: Option<u64>) -> Result<Spoilt> {
    let file = File::open(&target.path)?;
    let looks: Result<Vec<_>> = looks.iter().map(|at| Ok((*at, window(&file, *at)?))).collect();
    Ok(Spoilt {
        target: target.clone(),
        what,
        inode: file.metadata()?.ino(),
        looks: looks?,
        ends,
    })
}

/// The bytes around a place, as far as there are any.
fn window(file: &File, at: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; 2 * WINDOW as usize];
    let mut filled = 0;
    while filled < bytes.len() {
        let read = file.read_at(&mut bytes[filled..], at.saturating_sub(WINDOW) + filled as u64)?;
        if read == 0 {
            break;
        }
        filled += read;
    }
    bytes.truncate(filled);
    Ok(bytes)
}

impl Spoilt {
    /// Where the node still has the file with the damage in it, by whichever name: as something that it reads, if there
    /// is such a name, or as something that it does not.
    pub fn left(&self, data_dir: &Path) -> Result<Option<Part>> {
        let mut left = None;
        for target in targets(data_dir)? {
            let Ok(file) = File::open(&target.path) else { continue };
            let metadata = file.metadata()?;
            let same = metadata.ino() == self.inode && self.ends.is_none_or(|ends| metadata.len() == ends);
            if same && self.is_in(&file)? {
                left = Some(target.part);
                if target.part != Part::Unread {
                    break;
                }
            }
        }
        Ok(left)
    }

    /// All of it: a file that was written anew may have one of the bytes by chance.
    fn is_in(&self, file: &File) -> Result<bool> {
        for (at, bytes) in &self.looks {
            if window(file, *at)? != *bytes {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
