//! `kite logs`: prints the latest events in the format of the vendor's command line.

use std::io::Write;

use agentpost::kite::RecentEvent;
use agentpost_cli::terminal::escaped;

use crate::config::Config;
use crate::environment::Environment;
use crate::servers::{kite, shown};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  kite logs
  kite logs --limit 20
  kite logs --thread thread-abc123 --limit 1000
  kite logs --before 4711

The newest event comes first. To see older events, give --before the #number of the last line. The line of a message
shows its beginning only; `kite stream --json` and `kite agent listen --json` print all of it.")]
pub struct Args {
    /// The greatest number of events
    #[arg(long, value_name = "N", default_value_t = 100)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    /// Only events before this #number
    #[arg(long, value_name = "SEQ")]
    before: Option<u64>,
    /// Only messages of this conversation
    #[arg(long, value_name = "THREAD_ID")]
    thread: Option<String>,
}

/// Prints pages of events until `--limit` events are printed.
pub async fn run(args: Args, environment: &Environment, config: &Config) -> anyhow::Result<()> {
    let kite = kite(environment, config)?;
    let (mut left, mut before_seq) = (args.limit, args.before);
    while left > 0 {
        let mut query = kite.recent().limit(left);
        if let Some(seq) = before_seq {
            query = query.before(seq);
        }
        if let Some(thread) = &args.thread {
            query = query.thread(thread);
        }
        let page = query.await.map_err(|e| shown(&e))?;
        // A server that does not know `before_seq` names no next page, so the loop ends.
        let rows = page.events.iter().take(usize::try_from(left).unwrap_or(usize::MAX));
        let text: String = rows.clone().map(line).collect();
        std::io::stdout().lock().write_all(text.as_bytes())?;
        left -= rows.len() as u64;
        match page.next_before_seq {
            // Only a smaller number is accepted, so that the loop ends whatever the server answers.
            Some(next) if before_seq.is_none_or(|before| next < before) => before_seq = Some(next),
            _ => break,
        }
    }
    if left == args.limit {
        writeln!(std::io::stdout().lock(), "No events found.")?;
    }
    Ok(())
}

fn line(row: &RecentEvent) -> String {
    format!(
        "#{} [{}] {} - {}\n",
        row.seq.unwrap_or(0),
        escaped(row.created_at.as_deref().unwrap_or("-")),
        escaped(row.kind().unwrap_or("unknown")),
        escaped(row.summary().unwrap_or("No summary"))
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_line_holds_no_more_than_the_server_told_and_drives_no_terminal() {
        assert_eq!(line(&RecentEvent::default()), "#0 [-] unknown - No summary\n");
        let row = RecentEvent {
            seq: Some(7),
            created_at: Some("2026-04-30T10:00:00Z".to_owned()),
            event: json!({"type": "com.github.push", "kitesummary": "a\n\u{1b}[2Jb"}),
        };
        let expected = "#7 [2026-04-30T10:00:00Z] com.github.push - a\\n\\u{1b}[2Jb\n";
        assert_eq!(line(&row), expected);
    }
}
