//! The configuration file of a node's daemon. `agentpost node rejoin` reads a few settings and changes the id at its
//! two places.
//!
//! The two numbers are replaced at the positions that the parser reports, so every other byte stays. `toml_edit` is not
//! used here: it writes CRLF as LF, and moves the dotted keys of a table together.

use std::fs;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};

use agentpost_cli::replace_file;
use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use toml::Spanned;

/// The settings of the file that concern its node.
pub struct NodeFile {
    path: PathBuf,
    text: String,
    /// The positions of the id: in `[node]`, and in the row of the node in `cluster.nodes`.
    places: [Range<usize>; 2],
    pub id: u64,
    pub data_dir: PathBuf,
    pub client_addr: SocketAddr,
    pub peer_addr: SocketAddr,
    /// The row of the node in `cluster.nodes`.
    pub row: Row,
}

/// The addresses of the node.
pub struct Row {
    pub peer_addr: String,
    pub url: String,
}

#[derive(Deserialize)]
struct Tables {
    #[serde(default)]
    node: NodeTable,
    #[serde(default)]
    cluster: ClusterTable,
}

#[derive(Deserialize, Default)]
struct NodeTable {
    id: Option<Spanned<u64>>,
    data_dir: Option<PathBuf>,
    client_addr: Option<SocketAddr>,
    peer_addr: Option<SocketAddr>,
}

#[derive(Deserialize, Default)]
struct ClusterTable {
    #[serde(default)]
    nodes: Vec<RowTable>,
}

#[derive(Deserialize)]
struct RowTable {
    id: Spanned<u64>,
    peer_addr: String,
    url: String,
}

impl NodeFile {
    /// Reads the file. The error names a setting that is missing.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(path, text).with_context(|| path.display().to_string())
    }

    fn parse(path: &Path, text: String) -> anyhow::Result<Self> {
        let Tables { node, cluster } = toml::from_str(&text)?;
        let Some(id) = node.id else {
            bail!("[node] has no id; add the line `id = N` with this node's id");
        };
        let mut rows = cluster.nodes.into_iter();
        let Some(row) = rows.find(|row| row.id.get_ref() == id.get_ref()) else {
            bail!(
                "cluster.nodes has no row for node {}; add one with the addresses under which the node joins",
                id.get_ref()
            );
        };
        // These are the defaults of the daemon.
        let loopback = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        Ok(NodeFile {
            path: path.to_owned(),
            places: [id.span(), row.id.span()],
            id: *id.get_ref(),
            data_dir: node.data_dir.unwrap_or_else(|| "/var/lib/agentpost".into()),
            client_addr: node.client_addr.unwrap_or_else(|| loopback(7700)),
            peer_addr: node.peer_addr.unwrap_or_else(|| loopback(7800)),
            row: Row {
                peer_addr: row.peer_addr,
                url: row.url,
            },
            text,
        })
    }

    /// Writes another id into the file. The file keeps its permissions.
    pub fn write_id(&self, id: u64) -> anyhow::Result<()> {
        let text = self.with_id(id)?;
        let write = || {
            let permissions = fs::metadata(&self.path)?.permissions();
            replace_file(&self.path, text.as_bytes(), Some(permissions))
        };
        write().with_context(|| format!("cannot write {}", self.path.display()))
    }

    fn with_id(&self, id: u64) -> anyhow::Result<String> {
        let mut places = self.places.clone();
        places.sort_by_key(|place| std::cmp::Reverse(place.start));
        let mut text = self.text.clone();
        for place in places {
            text.replace_range(place, &id.to_string());
        }
        let written = Self::parse(&self.path, text.clone())?;
        ensure!(
            written.id == id,
            "[node] still has the id {}; change it by hand",
            written.id
        );
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const ROWS: &str = "\
# Our second machine. id = 2
insecure_listen = true

[node] # id = 2
data_dir = \"/d\"  # on its own disk
id = 2 # was 2 from the start
client_addr = \"10.0.0.2:7700\"

[cluster]
nodes = [
  { id = 1, peer_addr = \"a:1\", url = \"http://a\" }, # id = 2?
  { url = \"http://b\", peer_addr = \"b:1\", id = 2 },
  { id = 22, peer_addr = \"c:1\", url = \"http://c\" },
]
[raft]
heartbeat_ms = 2
";

    fn parsed(text: &str) -> anyhow::Result<NodeFile> {
        NodeFile::parse(Path::new("x.toml"), text.to_owned())
    }

    #[test]
    fn two_numbers_change_and_nothing_else() {
        let file = parsed(ROWS).unwrap();
        assert_eq!(
            (file.id, file.row.peer_addr.as_str(), file.row.url.as_str()),
            (2, "b:1", "http://b")
        );
        assert_eq!(file.data_dir, Path::new("/d"));
        assert_eq!((file.client_addr.port(), file.peer_addr.port()), (7700, 7800));
        let expected = ROWS
            .replace("\nid = 2 #", "\nid = 104 #")
            .replace("\"b:1\", id = 2 }", "\"b:1\", id = 104 }");
        assert_eq!(file.with_id(104).unwrap(), expected);
    }

    #[test]
    fn other_ways_to_write_the_same() {
        let inline = "node = { id = 3 }\ncluster = { nodes = [{ id = 3, peer_addr = \"a:1\", url = \"u\" }] }\n";
        let expected = "node = { id = 4 }\ncluster = { nodes = [{ id = 4, peer_addr = \"a:1\", url = \"u\" }] }\n";
        assert_eq!(parsed(inline).unwrap().with_id(4).unwrap(), expected);
        let tables = "[[cluster.nodes]]\nid=3\npeer_addr='a:1'\nurl='u'\n[node]\nid = 3\n";
        let expected = "[[cluster.nodes]]\nid=12\npeer_addr='a:1'\nurl='u'\n[node]\nid = 12\n";
        assert_eq!(parsed(tables).unwrap().with_id(12).unwrap(), expected);
    }

    #[test]
    fn errors_name_the_missing_entry() {
        for (text, named) in [
            ("", "id = N"),
            ("[node]\ndata_dir = \"x\"", "id = N"),
            ("[node]\nid = 2", "no row for node 2"),
            ("[node]\nid = \"2\"", "invalid type"),
            ("[node", "TOML parse error"),
        ] {
            let error = format!("{:#}", parsed(text).err().unwrap());
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn the_file_keeps_its_mode() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("n.toml");
        fs::write(&path, ROWS).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        NodeFile::read(&path).unwrap().write_id(9).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(NodeFile::read(&path).unwrap().id, 9);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
