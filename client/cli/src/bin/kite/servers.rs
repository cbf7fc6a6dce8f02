//! The servers and the key of a command, from the environment or else from the configuration file.
//!
//! A `KITE_` variable names one server, as it does for the vendor's command line. `AGENTPOST_URLS` names all nodes of a
//! cluster. With both, the server of the `KITE_` variable is asked first and the other nodes when it does not answer.

use agentpost::kite::Kite;
use agentpost::urls::{http_base, parse_base, parse_bases, ws_url};
use agentpost::{Agentpost, Error};
use agentpost_cli::terminal::escaped;
use anyhow::anyhow;

use crate::config::Config;
use crate::environment::Environment;

/// A section of `kite --help`.
pub const HELP: &str = "\
Servers and keys; the first that is set counts:
  key      KITE_API_KEY, [auth] api_key
  team     KITE_TEAM_ID, [auth] team_id
  listen   KITE_WS_URL, AGENTPOST_URLS, [server] url
  send     KITE_HOOK_BASE_URL, KITE_WS_URL, AGENTPOST_URLS, [server] http_base or url
AGENTPOST_URLS holds the HTTP URLs of several nodes, separated by commas or spaces. If a KITE_ variable names a server
as well, that server is asked first, and the others when it does not answer. The variables may also be set in the file
.env of the current folder. The [sections] are those of ~/.config/kite/config.toml.";

const DEFAULT_URL: &str = "ws://localhost:7700/ws";

/// The key and its team.
pub struct Auth {
    pub api_key: String,
    pub team_id: String,
}

/// Finds the key and the team. The error names the one that is missing.
pub fn auth(environment: &Environment, config: &Config) -> anyhow::Result<Auth> {
    let find = |variable, key, what| {
        let found = match environment.get(variable) {
            Some(value) => Some(value),
            None => config.text("auth", key)?,
        };
        found
            .map(str::to_owned)
            .ok_or_else(|| anyhow!("No {what} configured. Run `kite login` first."))
    };
    let api_key = find("KITE_API_KEY", "api_key", "API key")?;
    let team_id = find("KITE_TEAM_ID", "team_id", "team ID")?;
    Ok(Auth { api_key, team_id })
}

/// The WebSocket URLs for listening; the first is tried first.
pub fn ws_urls(environment: &Environment, config: &Config) -> anyhow::Result<Vec<String>> {
    let bases = cluster(environment)?;
    let first = match environment.get("KITE_WS_URL") {
        Some(url) => Some(url),
        None if bases.is_empty() => Some(config.text("server", "url")?.unwrap_or(DEFAULT_URL)),
        None => None,
    };
    let mut urls = Vec::new();
    if let Some(url) = first {
        let base = http_base(url)?;
        urls.push(if url.starts_with("ws") {
            url.to_owned()
        } else {
            ws_url(&base)?
        });
    }
    for base in bases {
        let url = ws_url(&base)?;
        if !urls.contains(&url) {
            urls.push(url);
        }
    }
    Ok(urls)
}

/// The HTTP bases for sending; the first is tried first.
pub fn http_bases(environment: &Environment, config: &Config) -> anyhow::Result<Vec<String>> {
    let bases = cluster(environment)?;
    let named = environment.get("KITE_HOOK_BASE_URL").map(parse_base);
    let first = match named.or_else(|| environment.get("KITE_WS_URL").map(http_base)) {
        Some(base) => Some(base?),
        None if bases.is_empty() => Some(configured_base(config)?),
        None => None,
    };
    let rest = bases.into_iter().filter(|base| first.as_ref() != Some(base));
    Ok(first.clone().into_iter().chain(rest).collect())
}

/// The server, the key and the team as a connection of the library.
pub fn post(environment: &Environment, config: &Config) -> anyhow::Result<Agentpost> {
    let auth = auth(environment, config)?;
    let sockets = ws_urls(environment, config)?;
    let bases = http_bases(environment, config)?;
    let post = Agentpost::builder(bases.join(" ")).socket_urls(sockets);
    Ok(post.key(auth.api_key).team(auth.team_id).build()?)
}

/// The management calls of the Kite API.
pub fn kite(environment: &Environment, config: &Config) -> anyhow::Result<Kite> {
    Ok(post(environment, config)?.kite())
}

/// An error with a server's text, made safe for the terminal.
pub fn shown(error: &Error) -> anyhow::Error {
    anyhow!("{}", escaped(&error.to_string()))
}

fn configured_base(config: &Config) -> anyhow::Result<String> {
    if let Some(base) = config.text("server", "http_base")? {
        return Ok(parse_base(base)?);
    }
    Ok(http_base(config.text("server", "url")?.unwrap_or(DEFAULT_URL))?)
}

fn cluster(environment: &Environment) -> anyhow::Result<Vec<String>> {
    Ok(environment
        .get("AGENTPOST_URLS")
        .map(parse_bases)
        .transpose()?
        .unwrap_or_default())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn config(text: &str) -> (tempfile::TempDir, Config) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        std::fs::write(&path, text).unwrap();
        (folder, Config::load(path).unwrap())
    }

    /// What listening and sending turn to.
    fn servers(variables: &str, file: &str) -> (Vec<String>, Vec<String>) {
        let (_folder, config) = config(file);
        let environment = Environment::of(variables, []);
        (
            ws_urls(&environment, &config).unwrap(),
            http_bases(&environment, &config).unwrap(),
        )
    }

    #[test]
    fn without_anything_it_is_the_local_server() {
        let (ws, http) = servers("", "");
        assert_eq!(
            (ws, http),
            (vec![DEFAULT_URL.to_owned()], vec!["http://localhost:7700".to_owned()])
        );
    }

    #[test]
    fn the_file_names_one_server() {
        let (ws, http) = servers("", "[server]\nurl = \"wss://post.example/ws\"\n");
        assert_eq!(
            (ws[0].as_str(), http[0].as_str()),
            ("wss://post.example/ws", "https://post.example")
        );
        let (_, http) = servers("", "[server]\nurl = \"wss://a/ws\"\nhttp_base = \"https://b/\"\n");
        assert_eq!(http, ["https://b"]);
    }

    #[test]
    fn a_kite_variable_alone_wins_over_the_file() {
        let file = "[server]\nurl = \"wss://a/ws\"\nhttp_base = \"https://a\"\n";
        let (ws, http) = servers("KITE_WS_URL=ws://c:7701/ws", file);
        assert_eq!(
            (ws, http),
            (vec!["ws://c:7701/ws".to_owned()], vec!["http://c:7701".to_owned()])
        );
        let (ws, http) = servers("KITE_HOOK_BASE_URL=https://hooks/", file);
        assert_eq!(
            (ws[0].as_str(), http.as_slice()),
            ("wss://a/ws", ["https://hooks".to_owned()].as_slice())
        );
    }

    #[test]
    fn the_cluster_stands_behind_the_named_server() {
        let all = "AGENTPOST_URLS='http://n:7700 http://n:7701'";
        let (ws, http) = servers(all, "[server]\nurl = \"wss://a/ws\"\n");
        assert_eq!(ws, ["ws://n:7700/ws", "ws://n:7701/ws"]);
        assert_eq!(http, ["http://n:7700", "http://n:7701"]);
        let (ws, http) = servers(&format!("{all}\nKITE_WS_URL=ws://n:7701/ws"), "");
        assert_eq!(ws, ["ws://n:7701/ws", "ws://n:7700/ws"]);
        assert_eq!(http, ["http://n:7701", "http://n:7700"]);
    }

    #[test]
    fn missing_settings_are_reported_in_the_vendors_words() {
        let (_folder, empty) = config("");
        let error = |variables| auth(&Environment::of(variables, []), &empty).err().unwrap().to_string();
        assert_eq!(error(""), "No API key configured. Run `kite login` first.");
        assert_eq!(
            error("KITE_API_KEY=k"),
            "No team ID configured. Run `kite login` first."
        );
        let (_folder, full) = config("[auth]\napi_key = \"k\"\nteam_id = \"t\"\n");
        let auth = auth(&Environment::of("KITE_TEAM_ID=other", []), &full).unwrap();
        assert_eq!((auth.api_key.as_str(), auth.team_id.as_str()), ("k", "other"));
    }
}
