//! `agentpost deliveries`: lists, shows and redrives webhook deliveries.

use agentpost::operator::Operator;
use agentpost::{Attempt, AttemptEnd, Delivery, DeliveryEnd, DeliveryState, Order};
use agentpost_cli::output;
use agentpost_cli::table::{Align, Paint, Table, Tone};
use agentpost_cli::terminal::escaped;
use clap::ValueEnum;

use crate::connection::Connection;
use crate::team;

#[derive(clap::Subcommand)]
pub enum Command {
    /// List the deliveries of a team, newest first
    #[command(after_help = "\
Examples:
  agentpost deliveries list --team research
  agentpost deliveries list --team research --state dead

States:
  scheduled  waits for its next attempt: the first at once, the others 1, 10 and 100 s after a failure
  claimed    a node may be calling the receiver
  delivered  the receiver answered 2xx
  dead       every attempt failed; the sender has a notice in its inbox, and redrive tries again
  cancelled  the webhook was deleted, or the delivery was cancelled")]
    List(List),
    /// Show a delivery with its attempts
    Show {
        /// The id of the delivery, `dlv_…`
        id: String,
        #[command(flatten)]
        of: Of,
    },
    /// Deliver dead ones again, each under a new id and with all attempts
    #[command(after_help = "\
Example:
  agentpost deliveries redrive dlv_0123456789abcdef0123456789abcdef --team research

Redriving a delivery twice returns the same new id. The command is refused while the URL is disabled (after a 410) or
not registered, and after the message was deleted, 30 days after the delivery died.")]
    Redrive {
        /// The ids of dead deliveries
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
        #[command(flatten)]
        of: Of,
    },
}

#[derive(clap::Args)]
pub struct Of {
    /// The team's id or name
    #[arg(long)]
    team: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub struct List {
    #[command(flatten)]
    of: Of,
    /// Only deliveries in this state
    #[arg(long, value_enum)]
    state: Option<State>,
    /// The greatest number of deliveries
    #[arg(long, value_name = "N", default_value_t = 50)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum State {
    Scheduled,
    Claimed,
    Delivered,
    Dead,
    Cancelled,
}

impl From<State> for DeliveryState {
    fn from(state: State) -> Self {
        match state {
            State::Scheduled => DeliveryState::Scheduled,
            State::Claimed => DeliveryState::Claimed,
            State::Delivered => DeliveryState::Delivered,
            State::Dead => DeliveryState::Dead,
            State::Cancelled => DeliveryState::Cancelled,
        }
    }
}

/// Runs one of the commands.
pub async fn run(command: Command, connection: &Connection) -> anyhow::Result<()> {
    let operator = connection.operator()?;
    match command {
        Command::List(args) => list(&operator, args).await,
        Command::Show { id, of } => {
            let team = team::id_of(&operator, &of.team).await?;
            let delivery = operator.delivery(&team, &id).await?;
            if of.json {
                output::json(&delivery)
            } else {
                output::text(&shown(&delivery, Paint::for_stdout()))
            }
        }
        Command::Redrive { ids, of } => {
            let team = team::id_of(&operator, &of.team).await?;
            for id in ids {
                let new = operator.redrive(&team, &id).await?;
                if of.json {
                    output::json(&serde_json::json!({ "id": id, "redriven_as": new }))?;
                } else {
                    output::text(&format!("Redriven {id}\n  as: {new}\n"))?;
                }
            }
            Ok(())
        }
    }
}

async fn list(operator: &Operator, args: List) -> anyhow::Result<()> {
    let team = team::id_of(operator, &args.of.team).await?;
    let wanted = args.limit as usize;
    let mut found: Vec<Delivery<u32>> = Vec::new();
    let mut cursor: Option<String> = None;
    while found.len() < wanted {
        let limit = (wanted - found.len()).min(agentpost::limits::PAGE_MAX);
        let mut query = operator.deliveries(&team);
        if let Some(state) = args.state {
            query = query.state(state.into());
        }
        query = query.order(Order::Desc);
        if let Some(cursor) = &cursor {
            query = query.cursor(cursor);
        }
        let page = query.limit(limit).await?;
        // An empty page whose cursor has moved on means that there is more to examine.
        let over = page.deliveries.is_empty() && cursor.as_ref() == Some(&page.cursor);
        found.extend(page.deliveries);
        cursor = Some(page.cursor);
        if over {
            break;
        }
    }
    if args.of.json {
        output::json(&found)
    } else {
        output::text(&table(&found).render(Paint::for_stdout()))
    }
}

fn tone(state: &DeliveryState) -> Tone {
    match state {
        DeliveryState::Delivered => Tone::Good,
        DeliveryState::Dead => Tone::Bad,
        _ => Tone::Plain,
    }
}

/// `dead (gone)`.
fn state(state: &DeliveryState, end: Option<&DeliveryEnd>) -> String {
    match end {
        Some(end) if end.as_str() != state.as_str() => format!("{state} ({end})"),
        _ => state.to_string(),
    }
}

fn or_dash(text: Option<&String>) -> String {
    text.cloned().unwrap_or_else(|| "-".to_owned())
}

fn due(due: Option<&String>, due_in_ms: Option<u64>) -> String {
    match (due, due_in_ms) {
        (None, _) => "-".to_owned(),
        (Some(_), Some(0)) => "now".to_owned(),
        (Some(_), Some(ms)) => format!("in {:.1} s", ms as f64 / 1e3),
        (Some(due), None) => due.clone(),
    }
}

fn table(deliveries: &[Delivery<u32>]) -> Table {
    let mut table = Table::new(&[
        ("ID", Align::Left),
        ("STATE", Align::Left),
        ("ATTEMPTS", Align::Right),
        ("STEP", Align::Right),
        ("DUE", Align::Left),
        ("FROM", Align::Left),
        ("TO", Align::Left),
        ("TOPIC", Align::Left),
        ("CREATED", Align::Left),
        ("URL", Align::Left),
    ]);
    for delivery in deliveries {
        table.row(
            tone(&delivery.state),
            vec![
                delivery.id.clone(),
                state(&delivery.state, delivery.end.as_ref()),
                delivery.attempt_count.to_string(),
                delivery.step.to_string(),
                due(delivery.due.as_ref(), delivery.due_in_ms),
                delivery.from_agent_id.clone(),
                delivery.to_agent_id.clone(),
                or_dash(delivery.topic.as_ref()),
                delivery.created_at.clone(),
                or_dash(delivery.url.as_ref()),
            ],
        );
    }
    table
}

fn shown(delivery: &Delivery<Vec<Attempt>>, paint: Paint) -> String {
    let mut out = format!("Delivery {}\n", escaped(&delivery.id));
    let mut line = |name: &str, value: &str| {
        out.push_str(&format!("  {:<14}{}\n", format!("{name}:"), escaped(value)));
    };
    line("state", &state(&delivery.state, delivery.end.as_ref()));
    line("message", &delivery.message_id);
    line("from", &delivery.from_agent_id);
    line("to", &delivery.to_agent_id);
    for (name, value) in [
        ("topic", &delivery.topic),
        ("subscription", &delivery.subscription_id),
        ("url", &delivery.url),
        ("created", &Some(delivery.created_at.clone())),
        ("ended", &delivery.ended_at),
        ("redrive of", &delivery.redrive_of),
        ("redriven as", &delivery.redriven_as),
    ] {
        if let Some(value) = value {
            line(name, value);
        }
    }
    if delivery.due.is_some() {
        line("next attempt", &due(delivery.due.as_ref(), delivery.due_in_ms));
    }
    line("attempts", &delivery.attempt_count.to_string());
    if !delivery.attempts.is_empty() {
        out.push('\n');
        out.push_str(&attempts(delivery).render(paint));
    }
    out
}

fn attempts(delivery: &Delivery<Vec<Attempt>>) -> Table {
    let mut table = Table::new(&[
        ("ATTEMPT", Align::Right),
        ("STEP", Align::Right),
        ("END", Align::Left),
        ("STATUS", Align::Right),
        ("ERROR", Align::Left),
        ("TOOK MS", Align::Right),
        ("STARTED", Align::Left),
        ("RESPONSE", Align::Left),
    ]);
    for attempt in &delivery.attempts {
        let tone = match attempt.end {
            AttemptEnd::Delivered => Tone::Good,
            AttemptEnd::Failed => Tone::Bad,
            _ => Tone::Plain,
        };
        table.row(
            tone,
            vec![
                attempt.number.to_string(),
                attempt.step.to_string(),
                attempt.end.to_string(),
                attempt.status.map_or("-".to_owned(), |status| status.to_string()),
                or_dash(attempt.error.as_ref()),
                attempt.took_ms.map_or("-".to_owned(), |took| took.to_string()),
                or_dash(attempt.started_at.as_ref()),
                or_dash(attempt.response.as_ref()),
            ],
        );
    }
    table
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    fn delivery<A: DeserializeOwned>(attempts: Value) -> Delivery<A> {
        let delivery = json!({
            "id": "dlv_1", "state": "dead", "end": "gone", "messageId": "msg_1", "fromAgentId": "a", "toAgentId": "b",
            "topic": null, "subscriptionId": null, "attempts": attempts, "attemptCount": 1, "step": 0, "due": null,
            "dueInMs": null, "url": "http://h/\u{1b}[2J", "createdAt": "2026-04-30T10:00:00.000Z",
            "endedAt": "2026-04-30T10:00:01.000Z", "redrivenAs": null, "redriveOf": null,
        });
        serde_json::from_value(delivery).unwrap()
    }

    #[test]
    fn deliveries_line_up_with_why_they_ended() {
        let mut waiting = delivery(json!(2));
        (waiting.state, waiting.end, waiting.url) = (DeliveryState::Scheduled, None, None);
        (waiting.due, waiting.due_in_ms) = (Some("2026-04-30T10:00:00.000Z".to_owned()), Some(9_940));
        let expected = "\
ID     STATE        ATTEMPTS  STEP  DUE       FROM  TO  TOPIC  CREATED                   URL
dlv_1  dead (gone)         1     0  -         a     b   -      2026-04-30T10:00:00.000Z  http://h/\\u{1b}[2J
dlv_1  scheduled           1     0  in 9.9 s  a     b   -      2026-04-30T10:00:00.000Z  -
";
        assert_eq!(table(&[delivery(json!(1)), waiting]).render(Paint::Never), expected);
        let cancelled = state(&DeliveryState::Cancelled, Some(&DeliveryEnd::Cancelled));
        assert_eq!(cancelled, "cancelled");
        assert_eq!(due(Some(&"x".to_owned()), Some(0)), "now");
    }

    #[test]
    fn a_delivery_is_shown_with_its_attempts() {
        let attempt = json!({
            "number": 1, "step": 0, "end": "failed", "status": 410, "error": "status", "response": "moved\n",
            "startedAt": "2026-04-30T10:00:00.500Z", "tookMs": 12,
        });
        let expected = "\
Delivery dlv_1
  state:        dead (gone)
  message:      msg_1
  from:         a
  to:           b
  url:          http://h/\\u{1b}[2J
  created:      2026-04-30T10:00:00.000Z
  ended:        2026-04-30T10:00:01.000Z
  attempts:     1

ATTEMPT  STEP  END     STATUS  ERROR   TOOK MS  STARTED                   RESPONSE
      1     0  failed     410  status       12  2026-04-30T10:00:00.500Z  moved\\n
";
        assert_eq!(shown(&delivery(json!([attempt])), Paint::Never), expected);
    }
}
