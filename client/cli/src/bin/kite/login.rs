//! `kite login`: gets a key for this machine. It shows a code that an administrator enters elsewhere.

use std::io::Write;

use agentpost::Agentpost;
use agentpost::api::kite::{DeviceCode, DeviceKey};
use agentpost::limits::LOGIN_CLIENT_CHARS_MAX;
use agentpost::login::{Failed, Login};
use agentpost::urls::{http_base, parse_base, ws_url};
use agentpost_cli::terminal::escaped;
use anyhow::{Context, anyhow, bail};

use crate::config::Config;
use crate::environment::Environment;
use crate::note;
use crate::servers::{http_bases, shown};

/// The variables that win over the file that a login writes.
const OVERRIDING: [&str; 5] = [
    "KITE_API_KEY",
    "KITE_TEAM_ID",
    "KITE_WS_URL",
    "KITE_HOOK_BASE_URL",
    "AGENTPOST_URLS",
];

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  kite login
  kite login --server https://post.example

The command shows a code and waits. An administrator approves the machine on the page that is shown with the code, or
with `agentpost login approve CODE`, and chooses the team and the permissions of the key. Without --server the command
asks the server that `kite agent send` sends to. It does not show the key. It writes the key, its team and its server
to ~/.config/kite/config.toml and replaces the earlier ones; the earlier key is not revoked. The agent id and
everything else in the file stay.")]
pub struct Args {
    /// The server's HTTP URL [default: the one configured, else http://localhost:7700]
    #[arg(long, value_name = "URL")]
    server: Option<String>,
}

/// Asks for a code, waits for the key and writes it to the file.
pub async fn run(args: Args, environment: &Environment, config: &mut Config) -> anyhow::Result<()> {
    let servers = match &args.server {
        Some(server) => vec![server_base(server)?],
        None => http_bases(environment, config)?,
    };
    let post = Agentpost::builder(servers.join(" ")).build()?;
    let login = Login::start(post.http().clone(), Some(device(environment))).await;
    let login = login.map_err(|e| anyhow!("no code for a login: {}", shown(&e)))?;
    announce(login.code());
    let ws_url = socket_url(login.code().ws_url.as_deref(), &servers[0])?;

    // From here on Ctrl-C does not end the process, so the file is written whole or not at all.
    let key = tokio::select! {
        key = login.key() => key.map_err(failed)?,
        interrupt = tokio::signal::ctrl_c() => {
            interrupt?;
            bail!("interrupted; this machine is as it was before")
        }
    };
    let server = http_base(&ws_url)?;
    let replaced = store(config, &key, &ws_url, &server)
        .context("a key was made, but it is lost; `kite keys list` shows it to others, for revoking it")?;

    if replaced {
        note("The key that was configured before is replaced; it is not revoked.");
    }
    let overriding: Vec<&str> = OVERRIDING
        .into_iter()
        .filter(|name| environment.get(name).is_some())
        .collect();
    if !overriding.is_empty() {
        note(&format!(
            "Still set, and used instead of what was written: {}",
            overriding.join(", ")
        ));
    }
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "Logged in\n  team:   {}\n  server: {}",
        escaped(&key.team_id),
        escaped(&server)
    )?;
    Ok(())
}

/// Writes the login to the file. Returns whether it replaced a key.
fn store(config: &mut Config, key: &DeviceKey, ws_url: &str, server: &str) -> anyhow::Result<bool> {
    config.reload()?;
    let replaced = config.text("auth", "api_key").is_ok_and(|before| before.is_some());
    config.set_login(key, ws_url, server);
    config.save()?;
    Ok(replaced)
}

fn announce(code: &DeviceCode) {
    let user_code = escaped(&code.user_code);
    note(&format!(
        "Open {} and enter the code {user_code}",
        escaped(&code.verification_url)
    ));
    if let Some(url) = &code.verification_url_complete {
        note(&format!("or open {}", escaped(url)));
    }
    match code.expires_in.map(|seconds| seconds / 60) {
        Some(minutes) if minutes > 0 => note(&format!("Waiting for approval; the code ends in {minutes} minutes...")),
        _ => note("Waiting for approval..."),
    }
}

fn failed(failed: Failed) -> anyhow::Error {
    match failed {
        Failed::Expired => anyhow!("Device code expired. Please run `kite login` again."),
        Failed::Denied => anyhow!("Authorization denied."),
        Failed::Lost => anyhow!(
            "the server's answer was lost on the way, and the key with it. Please run `kite login` again; \
             `kite keys list` then shows the lost key, for revoking it."
        ),
        Failed::Client(error) => shown(&error),
    }
}

/// The HTTP base of a server that the user names by its HTTP or WebSocket URL.
fn server_base(server: &str) -> anyhow::Result<String> {
    let server = server.trim();
    let socket = server.starts_with("ws://") || server.starts_with("wss://");
    Ok(if socket {
        http_base(server)?
    } else {
        parse_base(server)?
    })
}

/// The WebSocket URL that the server told, else the one derived from its HTTP base.
fn socket_url(told: Option<&str>, base: &str) -> anyhow::Result<String> {
    let told = told.unwrap_or_default();
    let told: String = told.chars().filter(|c| !c.is_whitespace()).collect();
    if told.starts_with("ws") && http_base(&told).is_ok() {
        return Ok(told);
    }
    Ok(ws_url(base.trim_end_matches("/ws"))?)
}

/// The name of this machine for the administrator.
fn device(environment: &Environment) -> String {
    let files = ["/proc/sys/kernel/hostname", "/etc/hostname"];
    let host = files.iter().find_map(|file| std::fs::read_to_string(file).ok());
    let host = host.or_else(|| environment.get("HOSTNAME").map(str::to_owned));
    device_name(host.as_deref().unwrap_or_default())
}

fn device_name(host: &str) -> String {
    let program = concat!("kite ", env!("CARGO_PKG_VERSION"));
    let host: String = host.trim().chars().filter(|c| !c.is_control()).collect();
    let name = if host.is_empty() {
        program.to_owned()
    } else {
        format!("{program} on {host}")
    };
    name.chars().take(LOGIN_CLIENT_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_socket_of_a_server_is_told_or_derived() {
        let base = "https://post.example";
        for (told, url) in [
            (Some("wss://ws.example/ws"), "wss://ws.example/ws"),
            (Some(" wss://ws.example/ws\n"), "wss://ws.example/ws"),
            (None, "wss://post.example/ws"),
            (Some(""), "wss://post.example/ws"),
            (Some("ws://"), "wss://post.example/ws"),
            (Some("https://post.example"), "wss://post.example/ws"),
        ] {
            assert_eq!(socket_url(told, base).unwrap(), url, "{told:?}");
        }
        assert_eq!(
            socket_url(None, "https://post.example/ws").unwrap(),
            "wss://post.example/ws"
        );
    }

    #[test]
    fn a_server_is_named_by_either_of_its_urls() {
        assert_eq!(server_base(" https://a/ ").unwrap(), "https://a");
        assert_eq!(server_base("ws://a:7700/ws").unwrap(), "http://a:7700");
        assert!(server_base("a:7700").is_err());
    }

    #[test]
    fn a_machine_names_itself_within_the_limit() {
        let program = concat!("kite ", env!("CARGO_PKG_VERSION"));
        assert_eq!(device_name("laptop\n"), format!("{program} on laptop"));
        assert_eq!(device_name(" \u{7}"), program);
        assert_eq!(device_name(&"x".repeat(500)).chars().count(), LOGIN_CLIENT_CHARS_MAX);
    }
}
