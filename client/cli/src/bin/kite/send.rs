//! `kite agent send`: sends one message.

use std::io::Write;

use agentpost::Error;
use agentpost::api::kite::SendRequest;
use agentpost::http::Request;
use agentpost_cli::terminal::escaped;
use anyhow::anyhow;

use crate::config::Config;
use crate::environment::Environment;
use crate::servers::post;

const HELP: &str = "\
Examples:
  kite agent send --to agent-alpha \"Here are the results you asked for.\"
  kite agent send --to agent-alpha --thread thread-abc123 --reply-to 01HABC \"Re: those results\"

When the command succeeds, a majority of the nodes has the message on disk. If an answer is lost, the command sends the
message again, and the server stores it once. Sending needs a key with the permission write.";

#[derive(clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    /// The id of the receiving agent
    #[arg(long, value_name = "AGENT_ID")]
    to: String,
    /// The id of the sending agent [default: the registered agent]
    #[arg(long, value_name = "AGENT_ID", num_args = 0..=1)]
    from: Option<Option<String>>,
    /// The conversation that the message belongs to
    #[arg(long, value_name = "THREAD_ID")]
    thread: Option<String>,
    /// The id of the event that the message answers
    #[arg(long, value_name = "EVENT_ID")]
    reply_to: Option<String>,
    /// The text of the message
    body: String,
}

/// Sends the message and prints its id.
pub async fn run(args: Args, environment: &Environment, config: &Config) -> anyhow::Result<()> {
    let post = post(environment, config)?;
    let from = sender(args.from, config)?;
    let message = SendRequest {
        from,
        to: args.to,
        body: args.body,
        thread_id: args.thread,
        reply_to_id: args.reply_to,
    };
    // Every 2xx is a success: like the vendor's command line, this one accepts an answer without an id, which
    // `Kite::send` does not.
    let request = Request::post("/api/v1/agents/messages")
        .query("team_id", post.team().unwrap_or_default())
        .json(&message)?
        .idempotency_key(uuid::Uuid::now_v7().to_string());
    let answer = post.http().request(&request).await.map_err(|e| failed(&e))?;
    let reply: serde_json::Value = serde_json::from_str(&answer.body).unwrap_or_default();
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "Sent agent message\n  from: {}\n  to:   {}",
        message.from, message.to
    )?;
    match reply.get("id").and_then(|id| id.as_str()) {
        Some(id) if !id.is_empty() => writeln!(out, "  id:   {}", escaped(id))?,
        _ => {}
    }
    Ok(())
}

/// `--from ID`, else the registered agent. If no agent is registered, the errors with and without `--from` differ.
fn sender(from: Option<Option<String>>, config: &Config) -> anyhow::Result<String> {
    match from {
        Some(Some(id)) => Ok(id),
        Some(None) => Ok(config.agent_id()?.to_owned()),
        None => match config.text("agent", "id")? {
            Some(id) => Ok(id.to_owned()),
            None => Err(anyhow!(
                "No --from agent id specified and no local agent registered. \
                 Run `kite agent register` first or pass --from <id>."
            )),
        },
    }
}

fn failed(error: &Error) -> anyhow::Error {
    match (error.answer(), error) {
        (Some(answer), _) => anyhow!("send failed ({}): {}", answer.status, escaped(&answer.body)),
        (None, Error::OutcomeUnknown { .. }) => anyhow!("{error}; the message may have been sent"),
        (None, _) => anyhow!("send failed: {error}"),
    }
}
