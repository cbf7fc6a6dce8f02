//! `agentpost team`: tenants.

use agentpost::Client;
use agentpost::api::admin::{CreateTeam, LimitsPatch, Team};
use anyhow::{Context, bail};

use crate::connection::Connection;
use crate::output;
use crate::table::{Align, Paint, Table, Tone};

#[derive(clap::Subcommand)]
pub enum Command {
    /// Create a team; its name must be new
    #[command(after_help = "\
Examples:
  agentpost team create research
  agentpost team create crawlers --daily-sends 0 --monthly-events 5000000

Limits that are not given take the plan's default. 0 is unlimited.")]
    Create(Create),
    /// List the teams and their limits
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(clap::Args)]
pub struct Create {
    /// The team's name
    name: String,
    /// Sends of each agent per UTC day
    #[arg(long, value_name = "N")]
    daily_sends: Option<u64>,
    /// Inbox reads of each agent per UTC day
    #[arg(long, value_name = "N")]
    daily_reads: Option<u64>,
    /// Webhook registrations of each agent per UTC day
    #[arg(long, value_name = "N")]
    daily_webhook_registrations: Option<u64>,
    /// Events of the team per UTC month
    #[arg(long, value_name = "N")]
    monthly_events: Option<u64>,
    /// Allow events over the monthly limit at this price, in atomic units
    #[arg(long, value_name = "PRICE")]
    overage_price_atomic: Option<u64>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs one of the commands.
pub async fn run(command: Command, connection: &Connection) -> anyhow::Result<()> {
    let client = connection.admin()?;
    match command {
        Command::Create(args) => create(&client, args).await,
        Command::List { json } => {
            let teams = client.teams().await?;
            if json {
                output::json(&teams)
            } else {
                output::text(&table(&teams).render(Paint::for_stdout()))
            }
        }
    }
}

async fn create(client: &Client, args: Create) -> anyhow::Result<()> {
    let limits = LimitsPatch {
        daily_sends: args.daily_sends,
        daily_reads: args.daily_reads,
        daily_webhook_registrations: args.daily_webhook_registrations,
        monthly_events: args.monthly_events,
        overage_price_atomic: args.overage_price_atomic.map(Some),
    };
    let team = client
        .create_team(&CreateTeam {
            name: args.name,
            limits: Some(limits),
        })
        .await?;
    if args.json {
        return output::json(&team);
    }
    output::text(&format!("Created team\n  name: {}\n  id:   {}\n", team.name, team.id))
}

/// The id of a team that is given by its id or its name.
pub async fn id_of(client: &Client, team: &str) -> anyhow::Result<String> {
    if team.parse::<agentpost_proto::id::TeamId>().is_ok() {
        return Ok(team.to_owned());
    }
    let teams = client.teams().await.context("cannot look the team up by its name")?;
    match teams.into_iter().find(|known| known.name == team) {
        Some(known) => Ok(known.id),
        None => bail!("no team has the name `{team}`; `agentpost team list` shows all"),
    }
}

fn table(teams: &[Team]) -> Table {
    let mut table = Table::new(&[
        ("ID", Align::Left),
        ("NAME", Align::Left),
        ("SENDS/DAY", Align::Right),
        ("READS/DAY", Align::Right),
        ("WEBHOOKS/DAY", Align::Right),
        ("EVENTS/MONTH", Align::Right),
        ("OVERAGE", Align::Right),
        ("STRICT", Align::Left),
    ]);
    let limit = |n: u64| if n == 0 { "unlimited".to_owned() } else { n.to_string() };
    for team in teams {
        table.row(
            Tone::Plain,
            vec![
                team.id.clone(),
                team.name.clone(),
                limit(team.limits.daily_sends),
                limit(team.limits.daily_reads),
                limit(team.limits.daily_webhook_registrations),
                limit(team.limits.monthly_events),
                team.limits
                    .overage_price_atomic
                    .map_or("refused".to_owned(), |price| price.to_string()),
                if team.strict_recipients { "yes" } else { "no" }.to_owned(),
            ],
        );
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use agentpost::api::admin::Limits;

    #[test]
    fn zero_is_shown_as_unlimited() {
        let limits = Limits {
            daily_sends: 0,
            daily_reads: 10_000,
            daily_webhook_registrations: 100,
            monthly_events: 0,
            overage_price_atomic: None,
        };
        let team = Team {
            id: "team_1".to_owned(),
            name: "research".to_owned(),
            limits,
            strict_recipients: false,
        };
        let expected = "\
ID      NAME      SENDS/DAY  READS/DAY  WEBHOOKS/DAY  EVENTS/MONTH  OVERAGE  STRICT
team_1  research  unlimited      10000           100     unlimited  refused  no
";
        assert_eq!(table(&[team]).render(Paint::Never), expected);
    }
}
