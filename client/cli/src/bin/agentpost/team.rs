//! `agentpost team`: teams and their limits.

use agentpost::api::admin::{LimitsPatch, Team};
use agentpost::operator::Operator;
use agentpost_cli::output;
use agentpost_cli::table::{Align, Paint, Table, Tone};
use anyhow::{Context, bail};

use crate::connection::Connection;

#[derive(clap::Subcommand)]
pub enum Command {
    /// Create a team; no other team may have its name
    #[command(after_help = "\
Examples:
  agentpost team create research
  agentpost team create crawlers --daily-sends 0 --monthly-events 5000000

A limit that is not given has the default of the plan. 0 means unlimited.")]
    Create(Create),
    /// List the teams and their limits
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show and change the limits of a team
    #[command(subcommand, arg_required_else_help = true)]
    Limits(Limits),
}

#[derive(clap::Subcommand)]
pub enum Limits {
    /// Show the limits of a team
    Show {
        /// The team's id or name
        team: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Change some limits of a team; every node applies them from the next request on
    #[command(after_help = "\
Examples:
  agentpost team limits set research --daily-sends 5000
  agentpost team limits set crawlers --monthly-events 0 --no-overage

A limit that is not given stays as it is. 0 means unlimited.")]
    Set(Set),
}

#[derive(clap::Args)]
pub struct Create {
    /// The team's name
    name: String,
    #[command(flatten)]
    limits: Flags,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub struct Set {
    /// The team's id or name
    team: String,
    #[command(flatten)]
    limits: Flags,
    /// Refuse events beyond the monthly limit
    #[arg(long, conflicts_with = "overage_price_atomic")]
    no_overage: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The limits that an operator may set.
#[derive(clap::Args)]
struct Flags {
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
    /// Allow events beyond the monthly limit at this price in atomic units
    #[arg(long, value_name = "PRICE")]
    overage_price_atomic: Option<u64>,
}

impl Flags {
    fn patch(self) -> LimitsPatch {
        LimitsPatch {
            daily_sends: self.daily_sends,
            daily_reads: self.daily_reads,
            daily_webhook_registrations: self.daily_webhook_registrations,
            monthly_events: self.monthly_events,
            overage_price_atomic: self.overage_price_atomic.map(Some),
        }
    }
}

/// Runs one of the commands.
pub async fn run(command: Command, connection: &Connection) -> anyhow::Result<()> {
    let operator = connection.operator()?;
    match command {
        Command::Create(args) => create(&operator, args).await,
        Command::List { json } => {
            let teams = operator.teams().await?;
            if json {
                output::json(&teams)
            } else {
                output::text(&table(&teams).render(Paint::for_stdout()))
            }
        }
        Command::Limits(Limits::Show { team, json }) => {
            let team = find(&operator, &team).await?;
            show_limits(&team, "Limits", json)
        }
        Command::Limits(Limits::Set(args)) => set_limits(&operator, args).await,
    }
}

async fn create(operator: &Operator, args: Create) -> anyhow::Result<()> {
    let team = operator.create_team(args.name).limits(args.limits.patch()).await?;
    if args.json {
        return output::json(&team);
    }
    output::text(&format!("Created team\n  name: {}\n  id:   {}\n", team.name, team.id))
}

/// The id of a team that the user names by its id or its name.
pub async fn id_of(operator: &Operator, team: &str) -> anyhow::Result<String> {
    if team.parse::<agentpost_proto::id::TeamId>().is_ok() {
        return Ok(team.to_owned());
    }
    Ok(find(operator, team).await?.id)
}

/// Looks a team up by its id or name.
async fn find(operator: &Operator, team: &str) -> anyhow::Result<Team> {
    let teams = operator.teams().await.context("cannot look the team up")?;
    match teams.into_iter().find(|known| known.name == team || known.id == team) {
        Some(known) => Ok(known),
        None => bail!("no team has the name or id `{team}`; `agentpost team list` shows all"),
    }
}

async fn set_limits(operator: &Operator, args: Set) -> anyhow::Result<()> {
    let mut patch = args.limits.patch();
    if args.no_overage {
        patch.overage_price_atomic = Some(None);
    }
    if patch == LimitsPatch::default() {
        bail!("no limit given; `agentpost team limits set --help` names them");
    }
    let team = id_of(operator, &args.team).await?;
    let team = operator.update_team(team).limits(patch).await?;
    show_limits(&team, "Changed the limits", args.json)
}

fn show_limits(team: &Team, what: &str, json: bool) -> anyhow::Result<()> {
    if json {
        return output::json(&team.limits);
    }
    let name = agentpost_cli::terminal::escaped(&team.name);
    output::text(&format!("{what} of team {name}\n{}", limit_lines(team)))
}

fn limit(n: u64) -> String {
    if n == 0 { "unlimited".to_owned() } else { n.to_string() }
}

fn overage(team: &Team) -> String {
    let price = team.limits.overage_price_atomic;
    price.map_or("refused".to_owned(), |price| price.to_string())
}

fn limit_lines(team: &Team) -> String {
    let limits = &team.limits;
    format!(
        "  sends of an agent per day:                 {}\n  \
           inbox reads of an agent per day:           {}\n  \
           webhook registrations of an agent per day: {}\n  \
           events of the team per month:              {}\n  \
           price of an event beyond, atomic units:    {}\n",
        limit(limits.daily_sends),
        limit(limits.daily_reads),
        limit(limits.daily_webhook_registrations),
        limit(limits.monthly_events),
        overage(team)
    )
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
                overage(team),
                if team.strict_recipients { "yes" } else { "no" }.to_owned(),
            ],
        );
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use agentpost::api::admin;

    const LINES: &str = "  \
  sends of an agent per day:                 unlimited
  inbox reads of an agent per day:           10000
  webhook registrations of an agent per day: 100
  events of the team per month:              unlimited
  price of an event beyond, atomic units:    refused
";

    #[test]
    fn zero_is_shown_as_unlimited() {
        let limits = admin::Limits {
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
        assert_eq!(limit_lines(&team), LINES);
        assert_eq!(table(&[team]).render(Paint::Never), expected);
    }
}
