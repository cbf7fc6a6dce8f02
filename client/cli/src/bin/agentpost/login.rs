//! `agentpost login`: approves or denies machines that wait for a key. The machine itself runs `kite login`.

use std::io::{BufRead, IsTerminal, Write};

use agentpost::api::admin::{LoginTeam, WaitingLogin};
use agentpost::limits::LOGIN_TTL_MS;
use agentpost::operator::Operator;
use agentpost_cli::output;
use agentpost_cli::table::{Align, Paint, Table, Tone};
use agentpost_cli::terminal::escaped;
use anyhow::bail;

use crate::connection::Connection;
use crate::key::{Permission, joined};

#[derive(clap::Subcommand)]
pub enum Command {
    /// Show the machine that waits with a code, and the teams that this key can approve it for
    Show {
        /// The code that the machine shows
        code: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Approve the machine: it gets a key of the team
    #[command(after_help = "\
Examples:
  agentpost login approve BCDF-GHJK --team research
  agentpost login approve bcdfghjk --team research --permissions read
  agentpost login approve BCDF-GHJK --admin-key-file team-admin.key

Compare the code with the one on the screen of the machine: the program that asked for the code gets the key. The
command shows the machine and, on a terminal, asks for confirmation. With the operator's key name the team by --team;
the admin key of a team approves machines for that team only.")]
    Approve(Approve),
    /// Deny the machine a key
    Deny {
        /// The code that the machine shows
        code: String,
    },
}

#[derive(clap::Args)]
pub struct Approve {
    /// The code that the machine shows, with or without the dash, in upper or lower case
    code: String,
    /// The team's id or name [default: the key's own team]
    #[arg(long)]
    team: Option<String>,
    /// Permissions of the machine's key; write includes read, admin includes both
    #[arg(long, value_enum, value_delimiter = ',', default_value = "write")]
    permissions: Vec<Permission>,
    /// Do not ask for confirmation
    #[arg(long, short)]
    yes: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs one of the commands.
pub async fn run(command: Command, connection: &Connection) -> anyhow::Result<()> {
    let operator = connection.operator()?;
    match command {
        Command::Show { code, json } => {
            let waiting = operator.waiting_login(&code).await?;
            if json {
                return output::json(&waiting);
            }
            output::text(&who(&waiting))?;
            output::text(&format!("\n{}", teams(&waiting.teams).render(Paint::for_stdout())))
        }
        Command::Approve(args) => approve(&operator, args).await,
        Command::Deny { code } => {
            operator.deny_login(&code).await?;
            output::text(&format!("Denied {}\n", escaped(&code)))
        }
    }
}

async fn approve(operator: &Operator, args: Approve) -> anyhow::Result<()> {
    let waiting = operator.waiting_login(&args.code).await?;
    let team = chosen(&waiting.teams, args.team.as_deref())?;
    let permissions: Vec<agentpost::Permission> = args.permissions.into_iter().map(Into::into).collect();
    // A pipe gets the result only, so this goes to stderr.
    std::io::stderr().lock().write_all(who(&waiting).as_bytes())?;
    if !args.yes && std::io::stdin().is_terminal() {
        let place = team.as_ref().map(|team| format!("into {} ", escaped(&team.name)));
        let question = format!(
            "Let it in {}with {}?",
            place.unwrap_or_default(),
            joined(&permissions, ", ")
        );
        if !confirmed(&question)? {
            bail!("not approved; the machine goes on waiting. `agentpost login deny` turns it away");
        }
    }
    let mut approval = operator.approve_login(args.code).permissions(permissions);
    if let Some(team) = team {
        approval = approval.team(team.id);
    }
    let approved = approval.await?;
    if args.json {
        return output::json(&approved);
    }
    output::text(&format!(
        "Approved {}\n  team:        {} ({})\n  permissions: {}\n",
        escaped(&approved.user_code),
        escaped(&approved.team.name),
        escaped(&approved.team.id),
        escaped(&approved.permissions.join(","))
    ))
}

/// Asks a question on the terminal. Every answer but yes means no.
fn confirmed(question: &str) -> std::io::Result<bool> {
    let mut err = std::io::stderr().lock();
    write!(err, "{question} [y/N] ")?;
    err.flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

/// The team that the machine's key is for; `None` lets the server choose.
fn chosen(teams: &[LoginTeam], named: Option<&str>) -> anyhow::Result<Option<LoginTeam>> {
    if let Some(named) = named {
        let known = teams.iter().find(|team| team.id == named);
        let known = known.or_else(|| teams.iter().find(|team| team.name == named));
        // An unknown team is sent as it is, so that the server refuses it.
        let unknown = || LoginTeam {
            id: named.to_owned(),
            name: named.to_owned(),
        };
        return Ok(Some(known.cloned().unwrap_or_else(unknown)));
    }
    match teams {
        [] => Ok(None),
        [only] => Ok(Some(only.clone())),
        _ => bail!(
            "this key can let the machine into {} teams: name one with --team\n{}",
            teams.len(),
            names(teams)
        ),
    }
}

fn names(teams: &[LoginTeam]) -> String {
    const SHOWN: usize = 10;
    let mut text: String = teams
        .iter()
        .take(SHOWN)
        .map(|team| format!("  {}\n", escaped(&team.name)))
        .collect();
    if teams.len() > SHOWN {
        text.push_str("  ...; `agentpost team list` shows all\n");
    }
    text.truncate(text.trim_end().len());
    text
}

fn who(waiting: &WaitingLogin) -> String {
    let device = match waiting.client.as_str() {
        "" => "-".into(),
        device => escaped(device),
    };
    // The cluster's time counts: the clock of this machine may be wrong.
    let age_s = (LOGIN_TTL_MS / 1000).saturating_sub(waiting.expires_in);
    format!(
        "Login {}\n  device:  {device}\n  asked:   {} ago ({})\n  ends in: {}\n",
        escaped(&waiting.user_code),
        span(age_s),
        escaped(&waiting.requested_at),
        span(waiting.expires_in)
    )
}

fn span(seconds: u64) -> String {
    match (seconds / 60, seconds % 60) {
        (0, s) => format!("{s} s"),
        (m, 0) => format!("{m} min"),
        (m, s) => format!("{m} min {s} s"),
    }
}

fn teams(teams: &[LoginTeam]) -> Table {
    let mut table = Table::new(&[("TEAM", Align::Left), ("ID", Align::Left)]);
    for team in teams {
        table.row(Tone::Plain, vec![team.name.clone(), team.id.clone()]);
    }
    table
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn team(n: u32) -> LoginTeam {
        LoginTeam {
            id: format!("team_{n}"),
            name: format!("name {n}"),
        }
    }

    #[test]
    fn a_waiting_device_is_shown_with_its_age_and_without_control_characters() {
        let waiting = WaitingLogin {
            user_code: "BCDF-GHJK".to_owned(),
            client: "kite 0.1.0 on laptop\n\u{1b}[2Jtrusted".to_owned(),
            requested_at: "2026-04-30T10:00:00.000Z".to_owned(),
            expires_in: 475,
            teams: vec![team(1), team(22)],
        };
        let expected = "Login BCDF-GHJK\n  device:  kite 0.1.0 on laptop\\n\\u{1b}[2Jtrusted\n  \
                        asked:   2 min 5 s ago (2026-04-30T10:00:00.000Z)\n  ends in: 7 min 55 s\n";
        assert_eq!(who(&waiting), expected);
        let table = "TEAM     ID\nname 1   team_1\nname 22  team_22\n";
        assert_eq!(teams(&waiting.teams).render(Paint::Never), table);
        assert_eq!(
            (span(0), span(59), span(600)),
            ("0 s".into(), "59 s".into(), "10 min".into())
        );
    }

    #[test]
    fn the_team_is_the_one_named_or_the_only_one() {
        let id = |teams: &[LoginTeam], named| chosen(teams, named).unwrap().map(|team| team.id);
        assert_eq!(id(&[team(1), team(2)], Some("name 2")).unwrap(), "team_2");
        assert_eq!(id(&[team(1), team(2)], Some("team_1")).unwrap(), "team_1");
        assert_eq!(id(&[team(1)], Some("other")).unwrap(), "other", "the server decides");
        assert_eq!(id(&[team(1)], None).unwrap(), "team_1");
        assert_eq!(id(&[], None), None);
        let many: Vec<LoginTeam> = (1..=11).map(team).collect();
        let error = chosen(&many, None).unwrap_err().to_string();
        assert!(error.starts_with("this key can let the machine into 11 teams: name one with --team\n  name 1\n"));
        assert!(
            error.ends_with("  name 10\n  ...; `agentpost team list` shows all"),
            "{error}"
        );
    }
}
