//! Damages files that no process has open: flipped bits, truncation, blocks of an earlier state. All in place, as a
//! disk would do it, so every other hard link of the file (a checkpoint has many) is damaged, too.

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

use crate::record::recoveries::FileKind;

/// The unit in which a disk writes.
const BLOCK: usize = 4096;
/// How many bytes around a damaged place are compared to find out whether the damage is still there.
const WINDOW: u64 = 32;
/// Larger files are not copied for [`roll_back`].
const COPY_BYTES_MAX: u64 = 32 << 20;

/// A file that may be damaged.
#[derive(Debug, Clone)]
pub struct DamageTarget {
    pub path: PathBuf,
    /// Its path below the data directory.
    pub name: String,
    pub kind: FileKind,
    /// Its length, which is not 0.
    pub bytes: u64,
}

/// A damaged file.
#[derive(Debug, Clone)]
pub struct FileDamage {
    pub target: DamageTarget,
    /// A description of the damage.
    pub what: String,
    inode: u64,
    /// Offsets, and the bytes there as long as the damage exists.
    looks: Vec<(u64, Vec<u8>)>,
    /// The length of the file, if it was truncated.
    ends: Option<u64>,
}

/// All files of a data directory that may be damaged, sorted by name.
pub fn targets(data_dir: &Path) -> Result<Vec<DamageTarget>> {
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
            if let Some(kind) = FileKind::of(&name).filter(|_| metadata.len() > 0) {
                let bytes = metadata.len();
                targets.push(DamageTarget {
                    path,
                    name,
                    kind,
                    bytes,
                });
            }
        }
    }
    targets.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(targets)
}

/// Flips one or two random bits.
pub fn flip(target: &DamageTarget, random: &mut StdRng) -> Result<FileDamage> {
    let file = File::options().read(true).write(true).open(&target.path)?;
    let mut bits = Vec::new();
    for _ in 0..random.random_range(1..=2) {
        let (at, bit) = (random.random_range(0..target.bytes), random.random_range(0..8u8));
        if bits.contains(&(at, bit)) {
            continue; // flipping it again would undo the damage
        }
        let mut byte = [0];
        file.read_exact_at(&mut byte, at)?;
        file.write_all_at(&[byte[0] ^ (1 << bit)], at)?;
        bits.push((at, bit));
    }
    let places: Vec<String> = bits.iter().map(|(at, bit)| format!("{at}.{bit}")).collect();
    let what = format!("of {} bytes flipped bit {}", target.bytes, places.join(" and "));
    let looks: Vec<u64> = bits.iter().map(|(at, _)| *at).collect();
    damaged(target, what, &looks, None)
}

/// Cuts off the last bytes, or half of the file.
pub fn cut(target: &DamageTarget, random: &mut StdRng) -> Result<FileDamage> {
    let keep = match random.random_bool(0.5) {
        true => target.bytes / 2,
        false => target.bytes - random.random_range(1..=target.bytes.min(200)),
    };
    File::options().write(true).open(&target.path)?.set_len(keep)?;
    let what = format!("of {} bytes kept {keep}", target.bytes);
    damaged(target, what, &[keep.saturating_sub(1)], Some(keep))
}

/// Copies the files of a node that are written more than once, by name.
pub fn copy(data_dir: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let changing = |kind: FileKind| !matches!(kind, FileKind::StateSst | FileKind::Snapshot | FileKind::Unread);
    let mut copies = BTreeMap::new();
    for target in targets(data_dir)? {
        if changing(target.kind) && target.bytes <= COPY_BYTES_MAX {
            // The file was removed meanwhile.
            if let Ok(bytes) = fs::read(&target.path) {
                copies.insert(target.name, bytes);
            }
        }
    }
    Ok(copies)
}

/// Reverts up to three blocks to an earlier state; `None` if no block has changed since. Bytes beyond the earlier end
/// become zeros.
pub fn roll_back(target: &DamageTarget, earlier: &[u8], random: &mut StdRng) -> Result<Option<FileDamage>> {
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
    Ok(Some(damaged(target, what, &looks, None)?))
}

fn range(block: usize, length: usize) -> std::ops::Range<usize> {
    block * BLOCK..((block + 1) * BLOCK).min(length)
}

fn damaged(target: &DamageTarget, what: String, looks: &[u64], ends: Option<u64>) -> Result<FileDamage> {
    let file = File::open(&target.path)?;
    let looks: Result<Vec<_>> = looks.iter().map(|at| Ok((*at, window(&file, *at)?))).collect();
    Ok(FileDamage {
        target: target.clone(),
        what,
        inode: file.metadata()?.ino(),
        looks: looks?,
        ends,
    })
}

/// Reads the bytes around an offset, as far as the file goes.
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

impl FileDamage {
    /// Looks for the damage in the files of the node, under any name. Returns the kind of the file that contains it,
    /// preferably one that the node reads.
    pub fn left(&self, data_dir: &Path) -> Result<Option<FileKind>> {
        let mut left = None;
        for target in targets(data_dir)? {
            let Ok(file) = File::open(&target.path) else { continue };
            let metadata = file.metadata()?;
            let same = metadata.ino() == self.inode && self.ends.is_none_or(|ends| metadata.len() == ends);
            if same && self.is_in(&file)? {
                left = Some(target.kind);
                if target.kind != FileKind::Unread {
                    break;
                }
            }
        }
        Ok(left)
    }

    /// Whether all of the damage is in the file: a file that was rewritten may contain some of the bytes by chance.
    fn is_in(&self, file: &File) -> Result<bool> {
        for (at, bytes) in &self.looks {
            if window(file, *at)? != *bytes {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
