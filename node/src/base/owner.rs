//! The owner of a data directory: the file `OWNER` names the node, its cluster and its **life**.
//!
//! A life is 16 random bytes, drawn when a directory is used for the first time. Other nodes remember it
//! ([`crate::net::lives`]). A node whose disk was wiped has forgotten its votes and the entries it acknowledged; the
//! new life in its directory tells the others so, and they refuse it under its old id.

use std::fs::{DirBuilder, File, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use anyhow::Context as _;

use crate::base::clock::IdSource;
use crate::base::config::Config;
use crate::base::secrets::{self, Secrets};

/// Identifies one use of a data directory, from its first start until it is wiped.
pub type Life = [u8; 16];

/// The name of the file in the data directory.
pub const OWNER: &str = "OWNER";

/// A claimed data directory. It stays locked against other processes until this value is dropped.
pub struct Owned {
    life: Life,
    _lock: File,
}

impl Owned {
    /// The life of this directory.
    pub fn life(&self) -> Life {
        self.life
    }
}

/// The content of the file `OWNER`.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// There is no file.
    Missing,
    /// This node. `None` if an earlier version, which had no lives, wrote the file.
    This(Option<Life>),
    /// Another node: the text of the file.
    Other(String),
    /// Text that no version writes: the bytes were changed.
    Unreadable,
}

/// Reads the owner of the data directory.
pub fn look(config: &Config, secrets: &Secrets) -> anyhow::Result<Found> {
    let path = config.node.data_dir.join(OWNER);
    let text = match std::fs::read(&path) {
        Ok(bytes) => String::from_utf8(bytes).unwrap_or_default(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Found::Missing),
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    let line = text.strip_suffix('\n').unwrap_or_default();
    let rest = line.strip_prefix(&name(config, secrets));
    let life = rest.and_then(|rest| rest.strip_prefix(", life "));
    let life = life.and_then(|life| Life::try_from(hex::decode(life).ok()?).ok());
    Ok(match rest {
        Some("") => Found::This(None),
        Some(_) if life.is_some() => Found::This(life),
        _ if line.starts_with("node ") => Found::Other(line.to_owned()),
        _ => Found::Unreadable,
    })
}

fn name(config: &Config, secrets: &Secrets) -> String {
    format!("node {} of cluster {}", config.node.id, hex::encode(secrets.cluster_id))
}

/// Creates the data directory and marks it as this node's. Refuses a directory of another node, and one in use by
/// another process.
pub fn claim(config: &Config, secrets: &Secrets, ids: &IdSource) -> anyhow::Result<Owned> {
    let dir = &config.node.data_dir;
    let created = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    created.with_context(|| format!("node.data_dir {}", dir.display()))?;
    let path = dir.join(OWNER);
    let here = name(config, secrets);
    let life = match look(config, secrets)? {
        Found::This(life) => life,
        Found::Missing => None,
        Found::Other(found) => anyhow::bail!(
            "{} belongs to {found}, this is {here}; check node.id, node.data_dir and cluster.secret_file",
            dir.display()
        ),
        Found::Unreadable => anyhow::bail!(
            "{} is unreadable: it names no node; restore the file, or wipe the directory and join as a new node",
            path.display()
        ),
    };
    let life = match life {
        Some(life) => life,
        None => {
            let life = ids.random();
            secrets::write_private(&path, format!("{here}, life {}\n", hex::encode(life)).as_bytes())?;
            life
        }
    };
    let lock = File::open(&path).with_context(|| path.display().to_string())?;
    match lock.try_lock() {
        Ok(()) => Ok(Owned { life, _lock: lock }),
        Err(TryLockError::WouldBlock) => anyhow::bail!("{} is in use by another process", dir.display()),
        Err(TryLockError::Error(error)) => Err(error).with_context(|| path.display().to_string()),
    }
}

/// The life in a data directory, for tests that speak to the other nodes in its name.
pub fn life_in(dir: &Path) -> anyhow::Result<Life> {
    let found = std::fs::read_to_string(dir.join(OWNER))?;
    let (_, life) = found.trim_end().rsplit_once(' ').context("no life")?;
    let life = Life::try_from(hex::decode(life)?).ok();
    life.context("a life has 16 bytes")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::base::clock::Clock;

    fn claimed(dir: &Path, id: u64, secret: u8) -> anyhow::Result<Owned> {
        let text = format!("[node]\nid = {id}\ndata_dir = \"{}\"", dir.display());
        let config = Config::from_parts("test", &text, []).unwrap();
        let ids = IdSource::new(Clock::system());
        claim(&config, &Secrets::derive(&[secret; 32]), &ids)
    }

    fn refusal(dir: &Path, id: u64, secret: u8) -> String {
        format!("{:#}", claimed(dir, id, secret).err().unwrap())
    }

    #[test]
    fn a_directory_has_one_owner_and_one_life_until_it_is_wiped() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let owned = claimed(&data, 1, 7).unwrap();
        let life = owned.life();
        assert!(refusal(&data, 1, 7).contains("in use"));
        drop(owned);
        assert_eq!(claimed(&data, 1, 7).unwrap().life(), life);
        assert_eq!(life_in(&data).unwrap(), life);
        for (id, secret) in [(2, 7), (1, 8)] {
            assert!(refusal(&data, id, secret).contains("belongs to node 1 of cluster"));
        }
        std::fs::remove_dir_all(&data).unwrap();
        assert_ne!(claimed(&data, 1, 7).unwrap().life(), life);
    }

    #[test]
    fn a_directory_from_before_lives_gets_one() {
        let dir = tempfile::tempdir().unwrap();
        let cluster = hex::encode(Secrets::derive(&[7; 32]).cluster_id);
        std::fs::write(dir.path().join(OWNER), format!("node 1 of cluster {cluster}\n")).unwrap();
        let life = claimed(dir.path(), 1, 7).unwrap().life();
        assert_eq!(claimed(dir.path(), 1, 7).unwrap().life(), life);
        std::fs::write(
            dir.path().join(OWNER),
            format!("node 1 of cluster {cluster}, life 00\n"),
        )
        .unwrap();
        assert!(refusal(dir.path(), 1, 7).contains("belongs to"));
    }
}
