//! `agentpost signing-keys`: the keys that sign `Upstash-Signature` of a team's webhooks.

use agentpost::api::abbababa::SigningKeys;
use agentpost_cli::output;

use crate::connection::Connection;
use crate::team;

#[derive(clap::Subcommand)]
pub enum Command {
    /// Show the current and the next signing key of a team
    #[command(after_help = "\
Example:
  agentpost signing-keys show --team research

Receivers verify with both keys, the current one first. In the vendor's libraries they are QSTASH_CURRENT_SIGNING_KEY
and QSTASH_NEXT_SIGNING_KEY. Agents read them with GET /v2/keys.")]
    Show(Args),
    /// Make the next signing key the current one and create a new next key
    #[command(after_help = "\
Example:
  agentpost signing-keys rotate --team research

The new current key signs deliveries at once. Receivers that know both keys go on verifying. Give them the new pair
before you rotate again: after a second rotation they would know neither key.")]
    Rotate(Args),
}

#[derive(clap::Args)]
pub struct Args {
    /// The team's id or name
    #[arg(long)]
    team: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs one of the commands.
pub async fn run(command: Command, connection: &Connection) -> anyhow::Result<()> {
    let operator = connection.operator()?;
    let (args, rotates) = match command {
        Command::Show(args) => (args, false),
        Command::Rotate(args) => (args, true),
    };
    let team = team::id_of(&operator, &args.team).await?;
    let keys = if rotates {
        operator.rotate_signing_keys(&team).await?
    } else {
        operator.signing_keys(&team).await?
    };
    if args.json {
        return output::json(&keys);
    }
    output::text(&shown(if rotates { "Rotated" } else { "Signing keys" }, &keys))
}

fn shown(head: &str, keys: &SigningKeys) -> String {
    format!("{head}\n  current: {}\n  next:    {}\n", keys.current.0, keys.next.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_keys_are_shown() {
        let keys = SigningKeys {
            current: "sig_1".to_owned().into(),
            next: "sig_2".to_owned().into(),
        };
        let expected = "Signing keys\n  current: sig_1\n  next:    sig_2\n";
        assert_eq!(shown("Signing keys", &keys), expected);
    }
}
