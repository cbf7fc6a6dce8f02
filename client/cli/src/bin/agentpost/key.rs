//! `agentpost key`: the API keys of a team.

use agentpost::operator::{Key, Operator};
use agentpost_cli::output;
use agentpost_cli::table::{Align, Paint, Table, Tone};
use clap::ValueEnum;

use crate::connection::Connection;
use crate::team;

#[derive(clap::Subcommand)]
pub enum Command {
    /// Create a key; only this command shows its secret
    #[command(after_help = "\
Examples:
  agentpost key create --team research --permissions write
  agentpost key create --team research --permissions write --agent agent-alpha --expires-at 2027-01-01T00:00:00Z

A key bound to an agent sends only as that agent and reads only its inbox.")]
    Create(Create),
    /// List the keys of a team without their secrets
    List {
        /// The team's id or name
        #[arg(long)]
        team: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Revoke a key at once, on every node
    Revoke {
        /// The id of the key, `key_…`
        id: String,
    },
}

#[derive(clap::Args)]
pub struct Create {
    /// The team's id or name
    #[arg(long)]
    team: String,
    /// Permissions of the key; write includes read, admin includes both
    #[arg(long, value_enum, value_delimiter = ',', required = true)]
    permissions: Vec<Permission>,
    /// Bind the key to one agent: it sends and reads as that agent only
    #[arg(long, value_name = "AGENT_ID")]
    agent: Option<String>,
    /// A name for people [default: the agent and the permissions]
    #[arg(long)]
    name: Option<String>,
    /// WebSocket scopes, separated by commas [default: *]
    #[arg(long, value_delimiter = ',')]
    scopes: Option<Vec<String>>,
    /// Expiry, such as 2027-01-01T00:00:00Z [default: never]
    #[arg(long, value_name = "TIME")]
    expires_at: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A permission of a key.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Permission {
    Read,
    Write,
    Admin,
}

impl From<Permission> for agentpost::Permission {
    fn from(permission: Permission) -> Self {
        match permission {
            Permission::Read => agentpost::Permission::Read,
            Permission::Write => agentpost::Permission::Write,
            Permission::Admin => agentpost::Permission::Admin,
        }
    }
}

/// The names of permissions, such as `read+write`.
pub fn joined(permissions: &[agentpost::Permission], separator: &str) -> String {
    let names: Vec<&str> = permissions.iter().map(agentpost::Permission::as_str).collect();
    names.join(separator)
}

/// Runs one of the commands.
pub async fn run(command: Command, connection: &Connection) -> anyhow::Result<()> {
    let operator = connection.operator()?;
    match command {
        Command::Create(args) => create(&operator, args).await,
        Command::List { team, json } => {
            let keys = operator.keys(&team::id_of(&operator, &team).await?).await?;
            if json {
                output::json(&keys)
            } else {
                output::text(&table(&keys).render(Paint::for_stdout()))
            }
        }
        Command::Revoke { id } => {
            operator.revoke_key(&id).await?;
            output::text(&format!("Revoked key {id}\n"))
        }
    }
}

async fn create(operator: &Operator, args: Create) -> anyhow::Result<()> {
    let team = team::id_of(operator, &args.team).await?;
    let permissions: Vec<agentpost::Permission> = args.permissions.into_iter().map(Into::into).collect();
    let name = args
        .name
        .unwrap_or_else(|| default_name(args.agent.as_deref(), &permissions));
    let mut draft = operator.create_key(team, name).permissions(permissions);
    if let Some(agent) = args.agent {
        draft = draft.agent(agent);
    }
    if let Some(scopes) = args.scopes {
        draft = draft.scopes(scopes);
    }
    if let Some(expires_at) = args.expires_at {
        draft = draft.expires_at(expires_at);
    }
    let key = draft.await?;
    if args.json {
        return output::json(&key);
    }
    output::text(&format!(
        "Created key\n  id:      {}\n  prefix:  {}\n  api key: {}\n\nThe api key is not shown again.\n",
        key.id, key.key_prefix, key.api_key.0
    ))
}

fn default_name(agent: Option<&str>, permissions: &[agentpost::Permission]) -> String {
    let permissions = joined(permissions, "+");
    agent.map_or(permissions.clone(), |agent| format!("{agent} {permissions}"))
}

fn table(keys: &[Key]) -> Table {
    let mut table = Table::new(&[
        ("ID", Align::Left),
        ("NAME", Align::Left),
        ("PREFIX", Align::Left),
        ("PERMISSIONS", Align::Left),
        ("AGENT", Align::Left),
        ("SCOPES", Align::Left),
        ("CREATED", Align::Left),
        ("EXPIRES", Align::Left),
        ("STATE", Align::Left),
    ]);
    for key in keys {
        table.row(
            if key.revoked { Tone::Bad } else { Tone::Plain },
            vec![
                key.id.clone(),
                key.name.clone(),
                key.key_prefix.clone(),
                joined(&key.permissions, ","),
                key.agent_id.clone().unwrap_or_else(|| "any".to_owned()),
                key.scopes.join(","),
                key.created_at.clone(),
                key.expires_at.clone().unwrap_or_else(|| "never".to_owned()),
                if key.revoked { "revoked" } else { "active" }.to_owned(),
            ],
        );
    }
    table
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn keys_line_up_with_their_binding_and_state() {
        let key = json!({
            "id": "key_1", "name": "agent-alpha write", "key_prefix": "kite_0011aabb", "permissions": ["write"],
            "scopes": ["*"], "agent_id": "agent-alpha", "expires_at": null, "revoked": true,
            "created_at": "2026-04-30T10:00:00.000Z",
        });
        let key: Key = serde_json::from_value(key).unwrap();
        let expected = "\
ID     NAME               PREFIX         PERMISSIONS  AGENT        SCOPES  CREATED                   EXPIRES  STATE
key_1  agent-alpha write  kite_0011aabb  write        agent-alpha  *       2026-04-30T10:00:00.000Z  never    revoked
";
        assert_eq!(table(&[key]).render(Paint::Never), expected);
        assert_eq!(
            default_name(Some("a"), &[agentpost::Permission::Read, agentpost::Permission::Write]),
            "a read+write"
        );
    }
}
