//! The URLs of the cluster and the key of its operator API.

use std::path::PathBuf;

use agentpost::Agentpost;
use agentpost::operator::Operator;
use agentpost::urls::parse_bases;
use anyhow::{Context, bail};

const DEFAULT_URL: &str = "http://127.0.0.1:7700";

/// Flags that every command takes.
#[derive(clap::Args)]
#[command(next_help_heading = "Connection")]
pub struct Connection {
    /// HTTP URLs of the nodes, separated by commas or spaces; may be repeated
    #[arg(
        long = "url",
        global = true,
        env = "AGENTPOST_URLS",
        default_value = "http://127.0.0.1:7700"
    )]
    urls: Vec<String>,
    /// File with the admin key [env: AGENTPOST_ADMIN_KEY holds the key itself]
    // No flag takes the key itself: every user of the machine can see command lines.
    #[arg(long, global = true, value_name = "FILE")]
    admin_key_file: Option<PathBuf>,
}

impl Connection {
    /// The nodes, in the order given.
    pub fn urls(&self) -> anyhow::Result<Vec<String>> {
        let given = self.urls.join(" ");
        // An empty variable counts as not set.
        Ok(parse_bases(if given.trim().is_empty() { DEFAULT_URL } else { &given })?)
    }

    /// The operator API, with the admin key.
    pub fn operator(&self) -> anyhow::Result<Operator> {
        let post = Agentpost::builder(self.urls()?.join(" ")).key(self.admin_key()?);
        Ok(post.build()?.operator())
    }

    fn admin_key(&self) -> anyhow::Result<String> {
        let (key, place) = match &self.admin_key_file {
            Some(path) => {
                let text = std::fs::read_to_string(path);
                (
                    text.with_context(|| format!("cannot read {}", path.display()))?,
                    path.display().to_string(),
                )
            }
            None => match std::env::var("AGENTPOST_ADMIN_KEY") {
                Ok(key) => (key, "AGENTPOST_ADMIN_KEY".to_owned()),
                Err(_) => bail!("no admin key: set AGENTPOST_ADMIN_KEY or give --admin-key-file FILE"),
            },
        };
        let key = key.trim();
        if key.is_empty() {
            bail!("{place} is empty");
        }
        Ok(key.to_owned())
    }
}
