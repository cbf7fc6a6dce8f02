//! `agentpostd dev`: one node that needs no configuration.
//!
//! All files are in one directory: the secret, the data, the admin key, and `keys.env`, which holds the keys of a team
//! as shell exports. The keys are written to that file before they exist in the cluster, and each start creates what
//! the state lacks. So the next start completes one that was interrupted at any moment.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agentpost_proto::command::{CreateKey, CreateTeam, Operation, Permission, Principal, TeamLimits};
use agentpost_proto::id::TeamId;
use agentpost_proto::operation::Op;
use agentpost_raft_store::core::query;
use anyhow::Context as _;
use toml::Value;

use crate::base::clock::{Clock, IdSource};
use crate::base::config::Config;
use crate::base::secrets::{self, NewKey, SECRET_BYTES};
use crate::node::RunningNode;
use crate::server::services::Services;

/// The team that `dev` creates.
pub const TEAM: &str = "default";
/// The agent that the second key of the team is bound to.
pub const AGENT: &str = "agent-alpha";

const TEAM_KEY: &str = "KITE_API_KEY";
const AGENT_KEY: &str = "AGENTPOST_AGENT_KEY";

/// The directory of a development node.
pub struct Dev {
    dir: PathBuf,
    /// Whether an earlier start created the directory.
    reused: bool,
}

impl Dev {
    /// Creates the directory and the secret, unless they exist.
    pub fn prepare(dir: &Path) -> anyhow::Result<Self> {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.with_context(|| format!("creating {}", dir.display()))?;
        let dev = Dev {
            dir: std::path::absolute(dir)?,
            reused: dir.join("cluster.secret").exists(),
        };
        if !dev.reused {
            let secret: [u8; SECRET_BYTES] = IdSource::new(Clock::system()).random();
            secrets::write_private(&dev.secret_file(), &secret)?;
        }
        Ok(dev)
    }

    /// The configuration of the node; environment variables override it.
    pub fn config(&self, port: u16) -> anyhow::Result<Config> {
        let peer_port = port.checked_add(100).filter(|_| port != 0).unwrap_or(0);
        let path = |path: PathBuf| Value::String(path.display().to_string()).to_string();
        // `localhost` has two addresses on most machines, and a name is refused when webhooks may not call one of its
        // addresses. So ::1 is allowed as well as 127.0.0.0/8.
        let text = format!(
            "[node]\ndata_dir = {}\nclient_addr = \"127.0.0.1:{port}\"\npeer_addr = \"127.0.0.1:{peer_port}\"\n\
             [cluster]\nsecret_file = {}\n[bootstrap]\nadmin_key_file = {}\n\
             [webhooks]\nallow_http = true\nallow_networks = [\"127.0.0.0/8\", \"::1/128\"]\n\
             [storage]\nmin_free_percent = 0\nballast_bytes = 0\n",
            path(self.dir.join("data")),
            path(self.secret_file()),
            path(self.admin_key_file()),
        );
        Ok(Config::from_parts(
            "agentpostd dev",
            &text,
            crate::base::config::environment(),
        )?)
    }

    /// Creates the team and the keys unless they exist; returns the text that tells a developer how to use them.
    pub async fn welcome(&self, node: &RunningNode) -> anyhow::Result<String> {
        let services = &node.services;
        let admin = self.admin(services).await?;
        let team = self.team(services, &admin).await?;
        let keys = self.keys(services, node.client_addr, team)?;
        for (name, agent) in [(TEAM_KEY, ""), (AGENT_KEY, AGENT)] {
            let key = keys
                .get(name)
                .with_context(|| format!("{} lacks {name}", self.keys_file().display()))?;
            create_key(services, &admin, team, key, agent).await?;
        }
        self.describe(node.client_addr, team, &keys)
    }

    fn secret_file(&self) -> PathBuf {
        self.dir.join("cluster.secret")
    }

    fn admin_key_file(&self) -> PathBuf {
        self.dir.join("admin.key")
    }

    fn keys_file(&self) -> PathBuf {
        self.dir.join("keys.env")
    }

    /// Waits for the admin key and returns its principal.
    async fn admin(&self, services: &Services) -> anyhow::Result<Principal> {
        loop {
            if let Ok(text) = std::fs::read_to_string(self.admin_key_file())
                && let Ok(state) = services.replica.reader.linearizable().await
            {
                let hash = services.secrets.key_hash(text.trim());
                if let Some(key) = query::key::by_hash(&state, &hash)? {
                    return Ok(Principal {
                        team_id: key.team_id,
                        key_id: key.id,
                    });
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn team(&self, services: &Services, admin: &Principal) -> anyhow::Result<TeamId> {
        let state = services.replica.reader.linearizable().await?;
        if let Some(team) = query::team::named(&state, TEAM)? {
            return Ok(team);
        }
        let id = TeamId(services.ids.random());
        // A developer's test loops should not run into the quota of a plan.
        let limits = Some(TeamLimits::default());
        let op = CreateTeam {
            team_id: id.to_bytes(),
            name: TEAM.to_owned(),
            limits,
        };
        propose(services, admin, op).await?;
        Ok(id)
    }

    /// Reads the keys from the file; creates the file if it does not exist.
    fn keys(&self, services: &Services, address: SocketAddr, team: TeamId) -> anyhow::Result<BTreeMap<String, String>> {
        let path = self.keys_file();
        let mut keys = BTreeMap::new();
        if let Ok(text) = std::fs::read_to_string(&path) {
            let lines = text
                .lines()
                .filter_map(|line| line.strip_prefix("export ")?.split_once('='));
            keys.extend(lines.map(|(name, value)| (name.to_owned(), value.trim_matches('"').to_owned())));
        }
        keys.entry(TEAM_KEY.to_owned())
            .or_insert_with(|| NewKey::team(&services.ids).api_key);
        keys.entry(AGENT_KEY.to_owned())
            .or_insert_with(|| NewKey::agent(&services.ids).api_key);
        let admin = std::fs::read_to_string(self.admin_key_file())?;
        keys.insert("AGENTPOST_ADMIN_KEY".to_owned(), admin.trim().to_owned());
        keys.insert("AGENTPOST_URLS".to_owned(), format!("http://{address}"));
        keys.insert("KITE_TEAM_ID".to_owned(), team.to_string());
        keys.insert("KITE_WS_URL".to_owned(), format!("ws://{address}/ws"));
        let mut text = "# Written by agentpostd dev.\n".to_owned();
        for (name, value) in &keys {
            writeln!(text, "export {name}=\"{value}\"")?;
        }
        secrets::write_private(&path, text.as_bytes())?;
        Ok(keys)
    }

    fn describe(&self, address: SocketAddr, team: TeamId, keys: &BTreeMap<String, String>) -> anyhow::Result<String> {
        let mut out = String::new();
        let state = if self.reused { "reused" } else { "new" };
        let (dir, file) = (self.dir.display(), self.keys_file());
        writeln!(out, "Agentpost, one node for development. Data in {dir} ({state}).\n")?;
        writeln!(out, "  URL        http://{address}")?;
        writeln!(out, "  Team       {team}  ({TEAM})")?;
        if self.reused {
            writeln!(out, "  Keys       as before, in {}\n", file.display())?;
            writeln!(
                out,
                "For the command lines:\n\n  . {}\n\nCtrl-C stops the node.",
                file.display()
            )?;
            return Ok(out);
        }
        let (key, agent_key) = (&keys[TEAM_KEY], &keys[AGENT_KEY]);
        writeln!(out, "  Team key   {key}  (write, any agent)")?;
        writeln!(out, "  Agent key  {agent_key}  (write, bound to {AGENT})")?;
        writeln!(out, "  Admin key  in {}", self.admin_key_file().display())?;
        writeln!(out, "  All keys   in {}, to be sourced by a shell\n", file.display())?;
        writeln!(out, "Send a message, then read it as {AGENT}:\n")?;
        writeln!(
            out,
            "  curl -sX POST http://{address}/v1/messages -H 'X-API-Key: {key}' -H 'X-Agent-Id: agent-beta' \\"
        )?;
        writeln!(
            out,
            "    -H 'Content-Type: application/json' -d '{{\"toAgentId\":\"{AGENT}\",\"type\":\"greeting\",\"body\":{{\"text\":\"hello\"}}}}'"
        )?;
        writeln!(
            out,
            "  curl -s http://{address}/v1/messages -H 'X-API-Key: {agent_key}'\n"
        )?;
        writeln!(out, "For the kite command line:\n")?;
        writeln!(out, "  export KITE_API_KEY={key} KITE_TEAM_ID={team}")?;
        writeln!(out, "  export KITE_WS_URL=ws://{address}/ws\n\nCtrl-C stops the node.")?;
        Ok(out)
    }
}

/// Creates the key in the state unless it exists.
async fn create_key(
    services: &Services,
    admin: &Principal,
    team: TeamId,
    api_key: &str,
    agent: &str,
) -> anyhow::Result<()> {
    let hash = services.secrets.key_hash(api_key);
    if query::key::by_hash(&services.replica.reader.linearizable().await?, &hash)?.is_some() {
        return Ok(());
    }
    let op = CreateKey {
        team_id: team.to_bytes(),
        key_id: NewKey::team(&services.ids).id.to_bytes(),
        key_hash: hash.to_vec().into(),
        key_prefix: secrets::prefix_of(api_key),
        name: if agent.is_empty() {
            "dev".to_owned()
        } else {
            format!("dev {agent}")
        },
        permissions: vec![Permission::Write as i32],
        scopes: vec!["*".to_owned()],
        agent_id: agent.to_owned(),
        expires_at_ms: 0,
    };
    propose(services, admin, op).await
}

async fn propose<O: Op>(services: &Services, admin: &Principal, op: O) -> anyhow::Result<()> {
    let operation = Operation::of(admin.clone(), op);
    services.replica.proposer.propose(operation).await?.answer_to::<O>()?;
    Ok(())
}
