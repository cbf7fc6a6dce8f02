//! `agentpost node`: works on the node of this machine while its daemon is stopped.

mod file;

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agentpost::Error;
use agentpost::operator::{Cluster, Node, Operator};
use agentpost_cli::output;
use anyhow::{Context, bail};
use tokio::time::{Instant, sleep};

use self::file::NodeFile;
use crate::connection::Connection;
use crate::members::passes;

/// The time for another membership change, or a change of the leader, to end.
const PATIENCE: Duration = Duration::from_secs(15);
const ASK_AGAIN: Duration = Duration::from_millis(300);
/// The file in the data directory that names its node. The daemon holds a lock on it.
const OWNER: &str = "OWNER";
/// The file in the data directory that says why the node is quarantined.
const QUARANTINE: &str = "QUARANTINE";

#[derive(clap::Subcommand)]
pub enum Command {
    /// Join the cluster again with an empty data directory and a new id
    #[command(after_help = "\
For a node that is quarantined or has lost its disk. It may have lost writes that it had acknowledged, so it must not
come back under its old id: the other nodes would count on those writes. Run this command on the machine of the node,
with its daemon stopped and the other nodes running. In this order, it
  1. removes the old id from the cluster,
  2. adds the node as a learner under a fresh id, with the addresses of its row in cluster.nodes,
  3. renames the data directory to <data_dir>.quarantined-<unix seconds>, which you may delete later,
  4. writes the fresh id into FILE: `id` of [node], and `id` of the node's row in cluster.nodes. Nothing else changes.
If the command fails half-way, run it again: it continues where it stopped.

Example:
  systemctl stop agentpostd
  export AGENTPOST_URLS='http://10.0.0.1:7700 http://10.0.0.3:7700' AGENTPOST_ADMIN_KEY=…
  agentpost node rejoin --config /etc/agentpost/agentpostd.toml
  systemctl start agentpostd
  agentpost cluster promote 4

The last command waits until the node has caught up and makes it a voter. This command reads no settings from the
environment (AGENTPOST_NODE__…): if AGENTPOST_NODE__ID sets the id, change it by hand.")]
    Rejoin {
        /// The configuration file of the node's daemon
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
}

/// Runs one of the commands.
pub async fn run(command: Command, connection: &Connection) -> anyhow::Result<()> {
    let Command::Rejoin { config } = command;
    let file = NodeFile::read(&config)?;
    ensure_stopped(&file)?;
    let operator = connection.operator()?;
    let id = join(&operator, &file).await?;
    if let Some(aside) = move_aside(&file.data_dir)? {
        output::text(&format!("Moved {} to {}\n", file.data_dir.display(), aside.display()))?;
    }
    file.write_id(id)?;
    output::text(&format!(
        "Wrote id = {id} to {}\nStart agentpostd, then: agentpost cluster promote {id}\n",
        config.display()
    ))
}

/// Fails while the daemon runs: it holds the lock of its data directory and listens on its ports.
fn ensure_stopped(file: &NodeFile) -> anyhow::Result<()> {
    let owner = file.data_dir.join(OWNER);
    let locked = match File::open(&owner) {
        Ok(owner) => matches!(owner.try_lock(), Err(TryLockError::WouldBlock)),
        Err(error) if error.kind() == ErrorKind::NotFound => false,
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", owner.display())),
    };
    let listens = |address| TcpListener::bind(address).is_err_and(|error| error.kind() == ErrorKind::AddrInUse);
    for address in [file.client_addr, file.peer_addr] {
        if locked || listens(address) {
            bail!(
                "the daemon of node {} still runs (it holds {}): stop it first",
                file.id,
                if locked {
                    owner.display().to_string()
                } else {
                    address.to_string()
                }
            );
        }
    }
    Ok(())
}

/// Removes the old id and adds a fresh one, which it returns. Steps that an earlier run has done are skipped.
async fn join(operator: &Operator, file: &NodeFile) -> anyhow::Result<u64> {
    let owner = owner_of(&file.data_dir)?;
    let cluster = operator.cluster().await?;
    if let Some(fresh) = joined_before(&cluster, file)? {
        if owner == Some(fresh) {
            bail!(
                "{} is that of node {fresh}, which is a member; [node] id = {} is out of date: write {fresh} there",
                file.data_dir.display(),
                file.id
            );
        }
        output::text(&format!("Node {fresh} was added before\n"))?;
        return Ok(fresh);
    }
    if let Some(owner) = owner.filter(|owner| belongs_to_another(&file.data_dir, *owner, file.id)) {
        bail!(
            "{} is that of node {owner}, but [node] id is {}; correct the file first",
            file.data_dir.display(),
            file.id
        );
    }
    match patiently(async || operator.remove_member(file.id).await).await {
        Ok(()) => output::text(&format!("Node {} removed\n", file.id))?,
        // It is no member, or an earlier run has removed it.
        Err(Error::Refused(answer)) if answer.status.as_u16() == 404 => {}
        Err(error) => return Err(error).with_context(|| format!("cannot remove node {}", file.id)),
    }
    let member = operator.add_member(&file.row.peer_addr, &file.row.url);
    let added = match patiently(async || member.clone().await).await {
        Ok(added) => added.id,
        Err(error) => match joined_before(&operator.cluster().await?, file)? {
            Some(fresh) => fresh,
            None => return Err(error).context("cannot add the node; run this again"),
        },
    };
    output::text(&format!("Node {added} added as a learner\n"))?;
    Ok(added)
}

/// The fresh id of this node if an earlier run has added it.
fn joined_before(cluster: &Cluster, file: &NodeFile) -> anyhow::Result<Option<u64>> {
    let peer = format!("http://{}", file.row.peer_addr);
    let same = |node: &&Node| node.peer_url == peer || node.url == file.row.url;
    let Some(member) = cluster.nodes.iter().find(same) else {
        return Ok(None);
    };
    if member.id == file.id {
        return Ok(None);
    }
    if member.peer_url != peer || member.url != file.row.url || cluster.nodes.iter().any(|node| node.id == file.id) {
        bail!(
            "node {} has an address of this node's row in cluster.nodes ({}, {}); remove it first: agentpost cluster \
             remove {0}",
            member.id,
            file.row.peer_addr,
            file.row.url
        );
    }
    Ok(Some(member.id))
}

/// Repeats a request while it may succeed later.
async fn patiently<T>(mut ask: impl AsyncFnMut() -> Result<T, Error>) -> Result<T, Error> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match ask().await {
            Err(Error::OutcomeUnknown { reason, answer }) => return Err(Error::OutcomeUnknown { reason, answer }),
            Err(error) if passes(&error) && Instant::now() < deadline => sleep(ASK_AGAIN).await,
            done => return done,
        }
    }
}

/// The node that a data directory belongs to. `None` without a directory, or if OWNER is missing or unreadable.
fn owner_of(dir: &Path) -> anyhow::Result<Option<u64>> {
    let bytes = match fs::read(dir.join(OWNER)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| dir.display().to_string()),
    };
    let text = String::from_utf8_lossy(&bytes);
    let number = text.strip_prefix("node ").and_then(|rest| rest.split(' ').next());
    Ok(number.and_then(|number| number.parse().ok()))
}

/// Whether a data directory belongs to another node than `id`. In quarantine the answer is no, because OWNER itself
/// may be damaged.
fn belongs_to_another(dir: &Path, owner: u64, id: u64) -> bool {
    owner != id && !dir.join(QUARANTINE).exists()
}

/// Renames the data directory and returns the new path. A mount point cannot be renamed; its content moves into a
/// directory inside it.
fn move_aside(dir: &Path) -> anyhow::Result<Option<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| dir.display().to_string()),
    };
    let is_ours = |name: &OsString| name != "lost+found" && !name.to_string_lossy().starts_with("quarantined-");
    let names = entries
        .map(|entry| Ok(entry?.file_name()))
        .collect::<std::io::Result<Vec<_>>>()?;
    let names: Vec<OsString> = names.into_iter().filter(is_ours).collect();
    if names.is_empty() {
        return Ok(None);
    }
    let now = jiff::Timestamp::now().as_second();
    // `components` drops a slash at the end of the path; a suffix after the slash would name a file inside.
    let mut aside: OsString = dir.components().as_path().into();
    aside.push(format!(".quarantined-{now}"));
    let aside = PathBuf::from(aside);
    match fs::rename(dir, &aside) {
        Ok(()) => return Ok(Some(aside)),
        Err(error) if matches!(error.kind(), ErrorKind::ResourceBusy | ErrorKind::CrossesDevices) => {}
        Err(error) => {
            return Err(error).with_context(|| format!("cannot move {} to {}", dir.display(), aside.display()));
        }
    }
    let aside = dir.join(format!("quarantined-{now}"));
    fs::create_dir_all(&aside).with_context(|| aside.display().to_string())?;
    for name in names {
        fs::rename(dir.join(&name), aside.join(&name)).with_context(|| dir.join(&name).display().to_string())?;
    }
    Ok(Some(aside))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_data_directory_is_moved_as_a_whole_and_once() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("data");
        assert_eq!(move_aside(&dir).unwrap(), None, "there is none");
        fs::create_dir_all(dir.join("shards")).unwrap();
        fs::write(dir.join(OWNER), "node 12 of cluster x, life y\n").unwrap();
        assert_eq!(owner_of(&dir).unwrap(), Some(12));
        assert!(belongs_to_another(&dir, 12, 13) && !belongs_to_another(&dir, 12, 12));
        // Found by C1, seed 2399459841: a bit flipped in the name.
        fs::write(dir.join(QUARANTINE), "it does not say what it said\n").unwrap();
        assert!(!belongs_to_another(&dir, 12, 13));
        let with_slash = place.path().join("data/");
        let aside = move_aside(&with_slash).unwrap().unwrap();
        assert!(aside.join("shards").is_dir() && !dir.exists());
        assert_eq!(aside.parent(), Some(place.path()));
        assert_eq!(owner_of(&dir).unwrap(), None);
        fs::create_dir_all(dir.join("lost+found")).unwrap();
        assert_eq!(move_aside(&dir).unwrap(), None, "an empty disk");
    }
}
