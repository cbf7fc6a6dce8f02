//! The configuration: `default.toml`, overlaid by a file, overlaid by the environment.
//!
//! `default.toml` is embedded and is the documentation. It names every key, so a key that it does not name is an error,
//! and the type of its value says how to read an environment variable. No configuration crate does this: they guess the
//! types of environment variables and cannot name the variable in an error.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use agentpost_raft_store::disk::memory_budget::MEMORY_BYTES_MIN;
use serde::Deserialize;
use toml::{Table, Value};

use crate::base::networks::Network;

/// The documented defaults.
pub const DEFAULT: &str = include_str!("default.toml");

/// An invalid setting. The text names the key, the value and the file or variable.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

/// All settings. `default.toml` documents each key.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub insecure_listen: bool,
    pub node: Node,
    pub cluster: Cluster,
    pub bootstrap: Bootstrap,
    pub raft: Raft,
    pub storage: Storage,
    pub kite: Kite,
    pub webhooks: Webhooks,
    pub limits: Limits,
    pub runtime: Runtime,
    pub log: Log,
}

/// `[node]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    pub id: u64,
    pub data_dir: PathBuf,
    pub client_addr: SocketAddr,
    pub peer_addr: SocketAddr,
    pub public_url: String,
}

/// `[cluster]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    pub secret_file: PathBuf,
    pub nodes: Vec<Member>,
}

/// An item of `cluster.nodes`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    pub id: u64,
    pub peer_addr: String,
    pub url: String,
}

/// `[bootstrap]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bootstrap {
    #[serde(deserialize_with = "path_or_empty")]
    pub admin_key_file: Option<PathBuf>,
}

/// `[raft]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Raft {
    pub heartbeat_ms: u64,
    pub election_min_ms: u64,
    pub election_max_ms: u64,
    pub snapshot_log_bytes: u64,
    pub snapshot_interval_s: u64,
    pub log_bytes_kept: u64,
    pub log_time_kept_s: u64,
    pub snapshot_send_bytes_per_s: u64,
}

/// `[storage]`
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Storage {
    pub min_free_bytes: u64,
    pub min_free_percent: u8,
    pub ballast_bytes: u64,
    pub memory_bytes: usize,
    pub scrub_interval_s: u64,
}

/// `[kite]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kite {
    pub source_prefix: String,
}

/// `[webhooks]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Webhooks {
    pub allow_http: bool,
    pub allow_networks: Vec<Network>,
}

/// `[limits]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    pub burst_sends: u32,
    pub burst_requests: u32,
    pub burst_window_s: u32,
}

/// `[runtime]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Runtime {
    pub worker_threads: usize,
}

/// `[log]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    pub format: LogFormat,
    pub level: String,
}

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Auto,
    Json,
    Text,
}

impl Config {
    /// Reads the defaults, `file` if given, and the process's environment.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let text = match file {
            Some(path) => std::fs::read_to_string(path)
                .map_err(|e| ConfigError(format!("cannot read {}: {e}", path.display())))?,
            None => String::new(),
        };
        let name = file.map_or_else(|| "configuration".to_owned(), |path| path.display().to_string());
        Self::from_parts(&name, &text, environment())
    }

    /// Builds a configuration from texts. `name` stands for the file in errors.
    pub fn from_parts(
        name: &str,
        text: &str,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let mut table: Table = DEFAULT.parse().map_err(|e| ConfigError(format!("default.toml: {e}")))?;
        let overlay: Table = text.parse().map_err(|e| ConfigError(format!("{name}: {e}")))?;
        merge(&mut table, overlay, "").map_err(|e| ConfigError(format!("{name}: {e}")))?;
        for (variable, text) in environment {
            let Some(path) = variable.strip_prefix("AGENTPOST_").filter(|_| variable.contains("__")) else {
                continue;
            };
            set(&mut table, path, &text).map_err(|e| ConfigError(format!("environment variable {variable}: {e}")))?;
        }
        let mut config: Config = table
            .try_into()
            .map_err(|e: toml::de::Error| ConfigError(format!("{name}: {}", e.to_string().trim())))?;
        config.complete();
        config.validate().map_err(|e| ConfigError(format!("{name}: {e}")))?;
        Ok(config)
    }

    /// The entry of node `id` in `cluster.nodes`.
    pub fn member(&self, id: u64) -> Option<&Member> {
        self.cluster.nodes.iter().find(|member| member.id == id)
    }

    fn complete(&mut self) {
        if self.node.public_url.is_empty() {
            let listed = self.member(self.node.id).map(|member| member.url.clone());
            self.node.public_url = listed.unwrap_or_else(|| format!("http://{}", self.node.client_addr));
        }
        if self.cluster.nodes.is_empty() {
            self.cluster.nodes.push(Member {
                id: self.node.id,
                peer_addr: self.node.peer_addr.to_string(),
                url: self.node.public_url.clone(),
            });
        }
    }

    fn validate(&self) -> Result<(), String> {
        for (key, address) in [
            ("node.client_addr", self.node.client_addr),
            ("node.peer_addr", self.node.peer_addr),
        ] {
            if !address.ip().is_loopback() && !self.insecure_listen {
                return Err(format!(
                    "{key} = {address} is not a loopback address and the port has no TLS; set insecure_listen = true if you trust that network"
                ));
            }
        }
        let mut ids: Vec<u64> = self.cluster.nodes.iter().map(|member| member.id).collect();
        ids.sort_unstable();
        if ids.first() == Some(&0) || ids.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err("cluster.nodes: each id must be an integer from 1 and appear once".to_owned());
        }
        if self.member(self.node.id).is_none() {
            return Err(format!(
                "cluster.nodes does not list this node (node.id = {}); add an entry for it",
                self.node.id
            ));
        }
        if !(1..=86_400).contains(&self.limits.burst_window_s) {
            return Err("limits.burst_window_s must be from 1 to 86400".to_owned());
        }
        if self.storage.scrub_interval_s == 0 {
            return Err("storage.scrub_interval_s must not be 0".to_owned());
        }
        if self.storage.memory_bytes < MEMORY_BYTES_MIN {
            return Err(format!("storage.memory_bytes must be at least {MEMORY_BYTES_MIN}"));
        }
        if self.storage.min_free_percent > 90 {
            return Err("storage.min_free_percent must be from 0 to 90".to_owned());
        }
        let raft = &self.raft;
        if raft.heartbeat_ms == 0
            || raft.heartbeat_ms * 2 > raft.election_min_ms
            || raft.election_min_ms >= raft.election_max_ms
        {
            return Err("raft: 0 < 2 * heartbeat_ms <= election_min_ms < election_max_ms must hold".to_owned());
        }
        if raft.log_time_kept_s == 0 {
            return Err("raft.log_time_kept_s must not be 0".to_owned());
        }
        if raft.snapshot_send_bytes_per_s == 0 || raft.snapshot_interval_s == 0 || raft.snapshot_log_bytes == 0 {
            return Err(
                "raft: snapshot_log_bytes, snapshot_interval_s and snapshot_send_bytes_per_s must not be 0".to_owned(),
            );
        }
        Ok(())
    }
}

/// The process's environment. Entries that are not UTF-8 are skipped; none of our variables can be among them.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// Overlays `base` with `overlay`: tables are merged, other values replaced.
fn merge(base: &mut Table, overlay: Table, path: &str) -> Result<(), String> {
    for (key, value) in overlay {
        match (base.get_mut(&key), value) {
            (None, _) => return Err(format!("unknown key {path}{key}")),
            (Some(Value::Table(inner)), Value::Table(table)) => merge(inner, table, &format!("{path}{key}."))?,
            (Some(Value::Table(_)), _) => return Err(format!("{path}{key} is a section")),
            (Some(place), value) => *place = value,
        }
    }
    Ok(())
}

/// Sets the key of an environment variable: `SECTION__KEY`, or `_KEY` for a key outside sections.
fn set(table: &mut Table, path: &str, text: &str) -> Result<(), String> {
    let path = path.to_lowercase();
    let (section, key) = match path.strip_prefix('_') {
        Some(key) => ("", key),
        None => path.split_once("__").ok_or("expected AGENTPOST_<SECTION>__<KEY>")?,
    };
    let place = match section {
        "" => table.get_mut(key),
        _ => table
            .get_mut(section)
            .and_then(Value::as_table_mut)
            .and_then(|section| section.get_mut(key)),
    };
    let place = place.filter(|place| !place.is_table()).ok_or_else(|| match section {
        "" => format!("unknown key {key}"),
        _ => format!("unknown key {section}.{key}"),
    })?;
    *place = match place {
        Value::String(_) => Value::String(text.to_owned()),
        _ => format!("value = {text}")
            .parse::<Table>()
            .ok()
            .and_then(|mut parsed| parsed.remove("value"))
            .filter(|value| value.same_type(place))
            .ok_or_else(|| format!("{text:?} is not of type {}", place.type_str()))?,
    };
    Ok(())
}

fn path_or_empty<'de, D: serde::Deserializer<'de>>(input: D) -> Result<Option<PathBuf>, D::Error> {
    let path = PathBuf::deserialize(input)?;
    Ok((!path.as_os_str().is_empty()).then_some(path))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn load(text: &str, environment: &[(&str, &str)]) -> Result<Config, String> {
        let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Config::from_parts("test.toml", text, environment).map_err(|e| e.to_string())
    }

    #[test]
    fn defaults_describe_one_loopback_node() {
        let config = load("", &[]).unwrap();
        assert_eq!(config.node.public_url, "http://127.0.0.1:7700");
        assert_eq!(config.cluster.nodes.len(), 1);
        assert_eq!(config.bootstrap.admin_key_file, None);
        assert_eq!((config.limits.burst_sends, config.limits.burst_requests), (0, 0));
    }

    #[test]
    fn the_environment_wins_over_the_file_over_the_defaults() {
        let file = "[node]\nid = 2\ndata_dir = \"/a\"\n[webhooks]\nallow_networks = [\"127.0.0.0/8\"]";
        let nodes = r#"[{id = 7, peer_addr = "h:1", url = "http://h:2"}]"#;
        let environment = [
            ("AGENTPOST_NODE__ID", "7"),
            ("AGENTPOST_NODE__DATA_DIR", "/1"),
            ("AGENTPOST_CLUSTER__NODES", nodes),
            ("AGENTPOST__INSECURE_LISTEN", "true"),
            // The clients' variables are not ours.
            ("AGENTPOST_URLS", "http://x"),
            ("AGENTPOST_ADMIN_KEY", "k"),
        ];
        let config = load(file, &environment).unwrap();
        assert_eq!((config.node.id, config.node.data_dir.to_str().unwrap()), (7, "/1"));
        assert_eq!(config.member(7).unwrap().peer_addr, "h:1");
        assert!(config.insecure_listen);
        assert_eq!(config.webhooks.allow_networks[0].to_string(), "127.0.0.0/8");
    }

    #[test]
    fn a_mistake_is_named() {
        for (text, named) in [
            ("[node]\nidd = 1", "unknown key node.idd"),
            ("[nodes]\nid = 1", "unknown key nodes"),
            (
                "[cluster]\nnodes = [{id = 1, peer_addr = \"a\", url = \"b\", color = 1}]",
                "color",
            ),
            ("[node]\nid = \"x\"", "id"),
            ("[node]\nclient_addr = \"0.0.0.0:7700\"", "insecure_listen = true"),
            ("[node]\npeer_addr = \"10.0.0.1:7800\"", "node.peer_addr"),
            (
                "[node]\nid = 4\n[cluster]\nnodes = [{id = 1, peer_addr = \"a\", url = \"b\"}]",
                "node.id = 4",
            ),
            ("[raft]\nelection_min_ms = 100", "heartbeat_ms"),
            ("[webhooks]\nallow_networks = [\"127.0.0.0/33\"]", "127.0.0.0/33"),
            ("[webhooks]\nallow_networks = [\"10.0.0.1/8\"]", "10.0.0.0/8"),
            ("[webhooks]\nallow_networks = [\"169.254.169.254/32\"]", "never opened"),
            ("[log]\nformat = \"xml\"", "xml"),
            ("[limits]\nburst_window_s = 0", "burst_window_s"),
            ("[limits]\nburst_sends = -1", "burst_sends"),
            ("[storage]\nmin_free_percent = 91", "min_free_percent"),
            ("[storage]\nscrub_interval_s = 0", "scrub_interval_s"),
        ] {
            let error = load(text, &[]).unwrap_err();
            assert!(error.contains(named) && error.contains("test.toml"), "{text}: {error}");
        }
        let error = load("", &[("AGENTPOST_NODE__IDD", "1")]).unwrap_err();
        assert!(
            error.contains("AGENTPOST_NODE__IDD") && error.contains("node.idd"),
            "{error}"
        );
        assert!(
            load("", &[("AGENTPOST_NODE__ID", "one")])
                .unwrap_err()
                .contains("integer")
        );
    }

    #[test]
    fn insecure_listen_opens_the_listeners() {
        let config = load("insecure_listen = true\n[node]\nclient_addr = \"0.0.0.0:7700\"", &[]).unwrap();
        assert_eq!(config.node.client_addr.port(), 7700);
    }
}
