//! The manifest of a snapshot: what the checkpoint covers, and its files with their lengths and checksums. It is the
//! file `SNAPSHOT` beside the others: the CRC32C of the rest in 4 bytes, then an encoded `peer::SnapshotMeta`.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use agentpost_proto::peer;
use agentpost_proto::peer::snapshot_meta::File as FileEntry;
use agentpost_proto::record;
use prost::Message;

use super::SnapshotData;
use crate::core::keys;
use crate::disk::files;
use crate::disk::in_use::InUse;
use crate::disk::options::common_options;
use crate::disk::read_all::Pace;
use crate::disk::types::{
    LogId, Malformed, Membership, StoredMembership, log_id_from_proto, log_id_to_proto, membership_from_proto,
    membership_to_proto,
};

const NAME: &str = "SNAPSHOT";
const CRC_BYTES: usize = 4;
/// The maximal number of files, so that a manifest fits into one message between nodes.
const FILES_MAX: usize = 65_536;
/// Files in the directory of a checkpoint that are not part of the snapshot.
const NOT_DATA: [&str; 3] = [NAME, "LOCK", "LOG"];

/// The row that stores the membership in the state.
pub(crate) fn membership_row(log_id: &LogId, membership: &Membership) -> peer::SnapshotMeta {
    peer::SnapshotMeta {
        membership_log_id: Some(log_id_to_proto(log_id)),
        membership: Some(membership_to_proto(membership)),
        ..Default::default()
    }
}

/// The membership in a manifest, or in the row of [`membership_row`].
pub(crate) fn stored_membership(meta: &peer::SnapshotMeta) -> Result<StoredMembership, Malformed> {
    match &meta.membership {
        None => Ok(StoredMembership::default()),
        Some(membership) => Ok(StoredMembership::new(
            meta.membership_log_id.as_ref().map(log_id_from_proto),
            membership_from_proto(membership)?,
        )),
    }
}

/// Describes a checkpoint and makes its files durable. It reads only the files that the checkpoint does not share with
/// `known`, an older snapshot of the same database, at the rate of `pace`.
pub(super) fn describe(
    dir: &Path,
    known: Option<&SnapshotData>,
    pace: &mut Pace<'_>,
) -> io::Result<peer::SnapshotMeta> {
    let mut meta = covered(dir)?;
    for name in files::names(dir)? {
        if NOT_DATA.contains(&name.as_str()) || name.starts_with("LOG.old") {
            continue;
        }
        let path = dir.join(&name);
        if let Some(known) = known.and_then(|known| shared(&path, &name, known)) {
            meta.files.push(known);
            continue;
        }
        files::sync_file(&path)?;
        let read = read_through(&path, |bytes| pace.advance(bytes))?;
        let (size, crc32c) = read.ok_or_else(|| invalid("describing it was stopped"))?;
        meta.files.push(FileEntry { name, size, crc32c });
    }
    Ok(meta)
}

/// The manifest entry of a table file in an older snapshot, if both are links to the same file. Its old checksum is
/// used again: if a block went bad since, the receiver of the snapshot detects it, which a new checksum would hide.
fn shared(path: &Path, name: &str, known: &SnapshotData) -> Option<FileEntry> {
    let entry = known.meta().files.iter().find(|file| file.name == name)?;
    let (new, old) = (fs::metadata(path).ok()?, fs::metadata(known.dir().join(name)).ok()?);
    let same = (new.dev(), new.ino(), new.len()) == (old.dev(), old.ino(), entry.size);
    (is_table(path) && same).then(|| entry.clone())
}

/// Whether this is a file of rows or of large values, which RocksDB never changes after it is written.
pub(super) fn is_table(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension == "sst" || extension == "blob")
}

/// A manifest without files, read from the database itself: its last entry and membership.
pub(super) fn covered(dir: &Path) -> io::Result<peer::SnapshotMeta> {
    let _used = InUse::begin();
    let db = rocksdb::DB::open_for_read_only(&common_options(), dir, false).map_err(io::Error::other)?;
    let applied: record::Applied = row(&db, &keys::applied())?;
    let membership: peer::SnapshotMeta = row(&db, &keys::membership())?;
    Ok(peer::SnapshotMeta {
        last_log_id: applied.last,
        ..membership
    })
}

fn row<T: Message + Default>(db: &rocksdb::DB, key: &[u8]) -> io::Result<T> {
    let value = db.get_pinned(key).map_err(io::Error::other)?;
    value
        .map(|value| T::decode(&*value))
        .transpose()
        .map(Option::unwrap_or_default)
        .map_err(invalid)
}

/// Writes the manifest, and makes it and the names of all files durable.
pub(super) fn write(dir: &Path, meta: &peer::SnapshotMeta) -> io::Result<()> {
    let mut bytes = vec![0; CRC_BYTES];
    meta.encode(&mut bytes).map_err(io::Error::other)?;
    let crc = crc32c::crc32c(&bytes[CRC_BYTES..]);
    bytes[..CRC_BYTES].copy_from_slice(&crc.to_be_bytes());
    files::replace_file(&dir.join(NAME), &bytes)
}

/// Reads a manifest, and checks that every file exists with its length.
pub(super) fn read(dir: &Path) -> io::Result<peer::SnapshotMeta> {
    let bytes = fs::read(dir.join(NAME))?;
    let (crc, bytes) = bytes
        .split_first_chunk::<CRC_BYTES>()
        .ok_or_else(|| invalid("the manifest is cut short"))?;
    if crc32c::crc32c(bytes) != u32::from_be_bytes(*crc) {
        return Err(invalid("the manifest does not match its checksum"));
    }
    let meta = peer::SnapshotMeta::decode(bytes).map_err(invalid)?;
    check(&meta)?;
    for file in &meta.files {
        let found = fs::metadata(dir.join(&file.name))?.len();
        if found != file.size {
            return Err(invalid(format!("{} has {found} bytes, not {}", file.name, file.size)));
        }
    }
    Ok(meta)
}

/// Compares every file with the manifest. `on` is called with the size of each piece that was read; if it returns
/// `false`, the comparison stops without an error.
pub(super) fn verify(dir: &Path, meta: &peer::SnapshotMeta, mut on: impl FnMut(usize) -> bool) -> io::Result<()> {
    for file in &meta.files {
        match read_through(&dir.join(&file.name), &mut on)? {
            None => return Ok(()),
            Some(found) if found == (file.size, file.crc32c) => {}
            Some(_) => return Err(invalid(format!("{} does not match its checksum", file.name))),
        }
    }
    Ok(())
}

/// The inode numbers of the table files that do not match the manifest.
pub(super) fn damaged_tables(dir: &Path, meta: &peer::SnapshotMeta) -> io::Result<BTreeSet<u64>> {
    let mut damaged = BTreeSet::new();
    for file in &meta.files {
        let path = dir.join(&file.name);
        if is_table(&path) && path.exists() && checksum(&path)? != (file.size, file.crc32c) {
            damaged.insert(path.metadata()?.ino());
        }
    }
    Ok(damaged)
}

/// Checks a manifest, which may come from the network. It must name files in its own directory, each once.
pub(super) fn check(meta: &peer::SnapshotMeta) -> io::Result<()> {
    stored_membership(meta).map_err(invalid)?;
    if meta.files.is_empty() || meta.files.len() > FILES_MAX {
        return Err(invalid(format!("{} files", meta.files.len())));
    }
    let plain = |name: &str| {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        !name.is_empty() && name.len() <= 64 && !name.starts_with('.') && name.bytes().all(allowed)
    };
    for file in &meta.files {
        if !plain(&file.name) || NOT_DATA.contains(&file.name.as_str()) {
            return Err(invalid(format!("a file cannot be named {:?}", file.name)));
        }
    }
    if !meta.files.is_sorted_by(|a, b| a.name < b.name) {
        return Err(invalid("the files are not in order, or one is named twice"));
    }
    Ok(())
}

/// The length and CRC32C of a file.
fn checksum(path: &Path) -> io::Result<(u64, u32)> {
    let read = read_through(path, |_| true)?;
    read.ok_or_else(|| invalid("a file was not read"))
}

/// The length and CRC32C of a file, or `None` if `on` returned `false` after a piece.
fn read_through(path: &Path, mut on: impl FnMut(usize) -> bool) -> io::Result<Option<(u64, u32)>> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 256 << 10];
    let (mut size, mut crc) = (0, 0);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(Some((size, crc))),
            n => {
                size += n as u64;
                crc = crc32c::crc32c_append(crc, &buffer[..n]);
                if !on(n) {
                    return Ok(None);
                }
            }
        }
    }
}

pub(super) fn invalid(reason: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("snapshot: {}", reason.to_string()))
}
