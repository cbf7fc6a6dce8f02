//! `kite keys create|list|revoke`, with the flags and the output of the vendor's command line.

use std::io::Write;

use agentpost::kite::{KeyList, Kite};
use agentpost::{Error, Permission};
use agentpost_cli::terminal::escaped;
use anyhow::{anyhow, bail};

use crate::config::Config;
use crate::environment::Environment;
use crate::servers::{kite, shown};

#[derive(clap::Subcommand)]
pub enum Command {
    /// Create a key of the team; only this command shows its secret
    #[command(after_help = "\
Examples:
  kite keys create --permissions write
  kite keys create --name \"build server\" --permissions write --expires-at 2027-01-01T00:00:00Z
  kite keys create --name dashboard --permissions read --scopes agent_to:agent-alpha,type:github

Permissions: read (listen, logs, status), write (read, and send), admin (write, and create and revoke keys). The key
of this machine needs admin. Another machine uses the new key through KITE_API_KEY, with the team that `kite keys
list` shows in KITE_TEAM_ID.")]
    Create(Create),
    /// List the keys of the team without their secrets
    List,
    /// Revoke a key at once and close its connections
    #[command(after_help = "\
Examples:
  kite keys list
  kite keys revoke --id key_0123456789abcdef0123456789abcdef

The key of this machine needs admin.")]
    Revoke {
        /// The id of the key, as `kite keys list` shows it
        #[arg(long, value_name = "KEY_ID")]
        id: String,
    },
}

#[derive(clap::Args)]
pub struct Create {
    /// A name for people
    #[arg(long)]
    name: Option<String>,
    /// Events that the key may listen to, separated by commas: `*`, source:…, type:… or agent_to:… [default: *]
    #[arg(long, value_delimiter = ',')]
    scopes: Option<Vec<String>>,
    /// Permissions, separated by commas: read, write or admin [default: read]
    #[arg(long, value_delimiter = ',')]
    permissions: Option<Vec<String>>,
    /// Expiry, such as 2027-01-01T00:00:00Z [default: never]
    #[arg(long, value_name = "TIME")]
    expires_at: Option<String>,
}

/// Runs one of the commands.
pub async fn run(command: Command, environment: &Environment, config: &Config) -> anyhow::Result<()> {
    let kite = kite(environment, config)?;
    let text = match command {
        Command::Create(args) => create(&kite, args).await?,
        Command::List => list(&kite.keys().await.map_err(|e| shown(&e))?),
        Command::Revoke { id } => revoke(&kite, &id).await?,
    };
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(())
}

async fn create(kite: &Kite, args: Create) -> anyhow::Result<String> {
    let scopes = words("--scopes", args.scopes, "*")?;
    let permissions = words("--permissions", args.permissions, "read")?;
    let permissions = permissions.into_iter().map(Permission::from);
    let mut draft = kite.create_key().scopes(scopes).permissions(permissions);
    if let Some(name) = args.name {
        draft = draft.name(name);
    }
    if let Some(expires_at) = args.expires_at {
        draft = draft.expires_at(expires_at);
    }
    need_admin(kite, "kite keys create").await?;
    let key = draft.await.map_err(|error| match error {
        Error::OutcomeUnknown { .. } | Error::Malformed(_) => anyhow!(
            "{}\nA key may have been created whose secret nobody has. `kite keys list` shows it, \
             `kite keys revoke --id ID` removes it.",
            shown(&error)
        ),
        error => shown(&error),
    })?;
    Ok(format!(
        "Created API key:\n- id: {}\n- key_prefix: {}\n- api_key (shown once): {}\n",
        escaped(&key.id),
        escaped(&key.key_prefix),
        escaped(&key.api_key)
    ))
}

async fn revoke(kite: &Kite, id: &str) -> anyhow::Result<String> {
    need_admin(kite, "kite keys revoke").await?;
    let revoked = kite.revoke_key(id).await.map_err(|error| match error {
        Error::OutcomeUnknown { .. } => {
            anyhow!(
                "{}\nThe key may be revoked already: `kite keys list` tells.",
                shown(&error)
            )
        }
        error => shown(&error),
    })?;
    Ok(format!("Revoked API key: {}\n", escaped(&revoked.id)))
}

fn list(list: &KeyList) -> String {
    let word = |value: &Option<String>| value.as_deref().map_or("-".into(), escaped).into_owned();
    let mut text = format!("Team: {}\n", word(&list.team_id));
    if list.keys.is_empty() {
        text.push_str("No API keys configured.\n");
    }
    for key in &list.keys {
        text.push_str(&format!(
            "- id={} name={} revoked={} key_prefix={} created_at={}\n",
            word(&key.id),
            word(&key.name),
            // A key counts as revoked unless the server says that it is not.
            key.revoked.unwrap_or(true),
            word(&key.key_prefix),
            word(&key.created_at)
        ));
    }
    text
}

/// The words of a list. Without a list it is the default; an empty list is an error.
fn words(flag: &str, given: Option<Vec<String>>, default: &str) -> anyhow::Result<Vec<String>> {
    let Some(given) = given else {
        return Ok(vec![default.to_owned()]);
    };
    let words = given.iter().map(|word| word.trim()).filter(|word| !word.is_empty());
    let words: Vec<String> = words.map(str::to_owned).collect();
    if words.is_empty() {
        bail!("{flag} is empty; without it, it is `{default}`");
    }
    Ok(words)
}

/// Fails if the key of this machine is no admin key. The error says how to get one.
async fn need_admin(kite: &Kite, command: &str) -> anyhow::Result<()> {
    let stats = kite.stats().await.map_err(|e| shown(&e))?;
    // An old server does not report permissions; then the request itself fails.
    let permissions = stats.current_key_permissions.unwrap_or_default();
    if permissions.is_empty() || permissions.iter().any(|permission| is_admin(permission)) {
        return Ok(());
    }
    bail!(
        "`{command}` needs a key with the permission admin; the key of this machine has {}.\n\
         Ask an administrator of the team for such a key and set KITE_API_KEY to it, or run `kite login` again and have it \
         approved with the permission admin.\n\
         `kite status` shows what a key may do.",
        escaped(&permissions.join(","))
    );
}

fn is_admin(permission: &str) -> bool {
    matches!(permission.trim().to_ascii_lowercase().as_str(), "admin" | "*")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use agentpost::kite::ListedKey;

    #[test]
    fn lists_are_split_at_commas_and_never_widened_by_mistake() {
        let given = |text: &str| Some(text.split(',').map(str::to_owned).collect());
        assert_eq!(words("--scopes", None, "*").unwrap(), ["*"]);
        assert_eq!(
            words("--scopes", given(" type:a, agent_to:b,"), "*").unwrap(),
            ["type:a", "agent_to:b"]
        );
        assert!(words("--scopes", given(""), "*").is_err());
        assert!(words("--scopes", given(" , "), "*").is_err());
    }

    #[test]
    fn admin_is_known_by_both_its_names() {
        for (permission, admin) in [
            ("admin", true),
            (" Admin ", true),
            ("*", true),
            ("write", false),
            ("adm", false),
        ] {
            assert_eq!(is_admin(permission), admin, "{permission}");
        }
    }

    #[test]
    fn absent_fields_are_dashes() {
        assert_eq!(list(&KeyList::default()), "Team: -\nNo API keys configured.\n");
        let keys = KeyList {
            team_id: Some("t".to_owned()),
            keys: vec![ListedKey::default()],
        };
        let expected = "Team: t\n- id=- name=- revoked=true key_prefix=- created_at=-\n";
        assert_eq!(list(&keys), expected);
    }
}
