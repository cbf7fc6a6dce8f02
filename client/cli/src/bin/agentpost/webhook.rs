//! `agentpost webhook listen`: a webhook receiver on this machine that verifies calls, prints them and answers as told.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentpost::verify::Verifier;
use agentpost_cli::output;
use agentpost_cli::terminal::escaped;
use agentpost_testkit::receiver::{Answer, Call, Server};
use anyhow::Context;
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// Upper bound on the characters of a body that a line shows.
const SHOWN_CHARS_MAX: usize = 200;
/// The pause between two bytes of a dripping answer.
const DRIP: Duration = Duration::from_secs(1);

#[derive(clap::Subcommand)]
pub enum Command {
    /// Receive webhooks, verify their signatures and print a line for each call
    #[command(after_help = "\
Examples:
  agentpost webhook listen --port 9000
  agentpost webhook listen --secret whsec_… --answer 500,500,200
  agentpost webhook listen --answer 489      # every delivery is dead at once

The answer to POST /v1/messages/webhook has the secret, the answer to GET /v2/keys the signing keys. A call whose
signature is wrong or missing is answered 401. Without a secret and signing keys no call is verified.

Answers: a status from 200 to 599, `never` (no answer at all) or `drip` (200 and a body that never ends). 489 has the
header Upstash-NonRetryable-Error: true. The cluster must allow calls to this address: agentpostd dev and
scripts/cluster.sh allow http to 127.0.0.0/8 and ::1.")]
    Listen(Listen),
}

#[derive(clap::Args)]
pub struct Listen {
    /// Port to listen on; 0 takes a free one
    #[arg(long, default_value_t = 9000)]
    port: u16,
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    address: std::net::IpAddr,
    /// The webhook's secret; may be repeated
    #[arg(long = "secret", env = "AGENTPOST_WEBHOOK_SECRET", hide_env_values = true)]
    secrets: Vec<String>,
    /// The team's current signing key
    #[arg(long, env = "QSTASH_CURRENT_SIGNING_KEY", hide_env_values = true)]
    signing_key: Option<String>,
    /// The team's next signing key
    #[arg(long, env = "QSTASH_NEXT_SIGNING_KEY", hide_env_values = true)]
    #[arg(requires = "signing_key")]
    next_signing_key: Option<String>,
    /// Answers to the calls of each delivery, in turn; the last one repeats
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "200", value_parser = Reply::parse)]
    answer: Vec<Reply>,
    /// Exit after this many calls
    #[arg(long, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Print a line of JSON for each call, with headers and body
    #[arg(long)]
    json: bool,
}

/// One answer of `--answer`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reply {
    Status(u16),
    Never,
    Drip,
}

impl Reply {
    fn parse(text: &str) -> Result<Self, String> {
        match (text, text.parse()) {
            ("never", _) => Ok(Reply::Never),
            ("drip", _) => Ok(Reply::Drip),
            (_, Ok(status @ 200..600)) => Ok(Reply::Status(status)),
            _ => Err("expected a status from 200 to 599, `never` or `drip`".to_owned()),
        }
    }

    fn answer(self) -> Answer {
        match self {
            Reply::Never => Answer::never(),
            Reply::Drip => Answer::dripping(DRIP),
            Reply::Status(489) => Answer::status(489).header("upstash-nonretryable-error", "true"),
            Reply::Status(status) => Answer::status(status),
        }
    }

    fn shown(self) -> String {
        match self {
            Reply::Status(status) => status.to_string(),
            Reply::Never => "never".to_owned(),
            Reply::Drip => "drip".to_owned(),
        }
    }
}

/// Runs the command.
pub async fn run(command: Command) -> anyhow::Result<()> {
    let Command::Listen(args) = command;
    let calls = args.count.unwrap_or(u64::MAX);
    let responder = Responder {
        verifier: verifier(&args)?,
        replies: args.answer.clone(),
        json: args.json,
        taken: HashMap::new(),
    };
    // The queue is bounded: while the terminal is slow, calls are answered 503.
    let (printed, mut lines) = mpsc::channel(64);
    let responder = Arc::new(Mutex::new(responder));
    let server = Server::start((args.address, args.port), move |call| {
        let mut responder = responder.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (line, reply) = responder.take(&call);
        match printed.try_send(line) {
            Ok(()) => reply.answer(),
            // The cluster delivers the message again.
            Err(_) => Answer::status(503),
        }
    });
    let server = server
        .await
        .with_context(|| format!("cannot listen on {}:{}", args.address, args.port))?;
    eprintln!("Listening at {}", server.url());
    for _ in 0..calls {
        match lines.recv().await {
            Some(line) => output::text(&line)?,
            None => break,
        }
    }
    // The last answer is still on its way to the caller.
    if args.count.is_some() {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

fn verifier(args: &Listen) -> anyhow::Result<Option<Verifier>> {
    if args.secrets.is_empty() && args.signing_key.is_none() {
        return Ok(None);
    }
    let mut verifier = Verifier::new();
    for secret in &args.secrets {
        verifier = verifier.secret(secret)?;
    }
    if let Some(current) = &args.signing_key {
        verifier = verifier.signing_keys(current, args.next_signing_key.as_ref().unwrap_or(current));
    }
    Ok(Some(verifier))
}

/// Verifies each call and chooses its answer.
struct Responder {
    verifier: Option<Verifier>,
    replies: Vec<Reply>,
    json: bool,
    /// The number of calls of each delivery.
    taken: HashMap<String, usize>,
}

/// The result of verifying a call.
enum Trust {
    Unknown,
    Verified,
    Refused(String),
}

impl Responder {
    fn take(&mut self, call: &Call) -> (String, Reply) {
        let trust = match &self.verifier {
            None => Trust::Unknown,
            Some(verifier) => match verifier.verify(|name| call.header(name), &call.body) {
                Ok(_) => Trust::Verified,
                Err(error) => Trust::Refused(error.to_string()),
            },
        };
        let reply = if matches!(trust, Trust::Refused(_)) {
            Reply::Status(401)
        } else {
            let id = call.header("webhook-id").unwrap_or_default();
            let taken = self.taken.entry(id.to_owned()).or_default();
            *taken += 1;
            self.replies[(*taken - 1).min(self.replies.len() - 1)]
        };
        let line = if self.json {
            json_line(call, &trust, reply)
        } else {
            text_line(call, &trust, reply)
        };
        (line, reply)
    }
}

/// `[dlv_…] attempt 1, verified, answered 500: message.received a → b: {"text":"hello"}`
fn text_line(call: &Call, trust: &Trust, reply: Reply) -> String {
    let header = |name| call.header(name).unwrap_or("-");
    let trust = match trust {
        Trust::Unknown => "not verified".to_owned(),
        Trust::Verified => "verified".to_owned(),
        Trust::Refused(reason) => format!("refused ({reason})"),
    };
    let (id, attempt, reply) = (header("webhook-id"), header("x-attempt"), reply.shown());
    let line = format!(
        "[{id}] attempt {attempt}, {trust}, answered {reply}: {}",
        content(&call.body)
    );
    format!("{}\n", escaped(&line))
}

fn content(body: &[u8]) -> String {
    let Ok(event) = serde_json::from_slice::<Value>(body) else {
        return shortened(&String::from_utf8_lossy(body));
    };
    let text = |name: &str| event[name].as_str().unwrap_or("-").to_owned();
    let topic = event["topic"].as_str().map(|topic| format!(" topic={topic}"));
    format!(
        "{} {} → {}{}: {}",
        text("event"),
        text("fromAgentId"),
        text("toAgentId"),
        topic.unwrap_or_default(),
        shortened(&event["body"].to_string())
    )
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn json_line(call: &Call, trust: &Trust, reply: Reply) -> String {
    let headers: serde_json::Map<String, Value> = call
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into()))
        .collect();
    let body: Value =
        serde_json::from_slice(&call.body).unwrap_or_else(|_| String::from_utf8_lossy(&call.body).into_owned().into());
    let (verified, error) = match trust {
        Trust::Unknown => (Value::Null, Value::Null),
        Trust::Verified => (true.into(), Value::Null),
        Trust::Refused(reason) => (false.into(), reason.as_str().into()),
    };
    let line = json!({
        "path": call.path, "verified": verified, "error": error, "answered": reply.shown(),
        "headers": headers, "body": body,
    });
    format!("{line}\n")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use agentpost_testkit::receiver::{HeaderMap, Method};

    fn call(id: &str) -> Call {
        let mut headers = HeaderMap::new();
        headers.insert("webhook-id", id.parse().unwrap());
        headers.insert("x-attempt", "2".parse().unwrap());
        let body = json!({"event": "message.topic", "fromAgentId": "a", "toAgentId": "b", "topic": "t",
                          "body": {"text": "x\u{1b}"}});
        Call {
            method: Method::POST,
            path: "/hook".to_owned(),
            headers,
            body: body.to_string().into(),
            at_us: 0,
            wall_ms: 0,
        }
    }

    fn responder(verifier: Option<Verifier>, json: bool) -> Responder {
        Responder {
            verifier,
            replies: vec![Reply::Status(500), Reply::Status(200)],
            json,
            taken: HashMap::new(),
        }
    }

    #[test]
    fn each_delivery_gets_the_answers_in_turn() {
        let mut responder = responder(None, false);
        let mut next = |id: &str| responder.take(&call(id)).1.shown();
        assert_eq!(
            [next("dlv_1"), next("dlv_2"), next("dlv_1"), next("dlv_1")],
            ["500", "500", "200", "200"]
        );
    }

    #[test]
    fn a_call_is_printed_on_one_line_without_control_characters() {
        let (line, _) = responder(None, false).take(&call("dlv_1"));
        let expected = "[dlv_1] attempt 2, not verified, answered 500: \
                        message.topic a → b topic=t: {\"text\":\"x\\u001b\"}\n";
        assert_eq!(line, expected);
        let (line, _) = responder(None, true).take(&call("dlv_1"));
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            (&value["answered"], &value["verified"], &value["headers"]["x-attempt"]),
            (&json!("500"), &json!(null), &json!("2"))
        );
        assert_eq!(value["body"]["topic"], "t");
        assert_eq!(shortened(&"ü".repeat(201)), format!("{}…", "ü".repeat(200)));
    }

    #[test]
    fn a_call_without_a_signature_is_refused_and_uses_up_no_answer() {
        let verifier = Verifier::new().secret("whsec_AAAA").unwrap();
        let mut responder = responder(Some(verifier), false);
        let (line, reply) = responder.take(&call("dlv_1"));
        assert_eq!(reply, Reply::Status(401));
        let expected = "[dlv_1] attempt 2, refused (the header webhook-timestamp is missing), answered 401: ";
        assert!(line.starts_with(expected), "{line}");
        assert!(responder.taken.is_empty());
    }

    #[test]
    fn an_answer_is_a_status_or_never_or_drip() {
        assert_eq!(Reply::parse("489"), Ok(Reply::Status(489)));
        assert_eq!(Reply::parse("never"), Ok(Reply::Never));
        assert_eq!(Reply::parse("drip"), Ok(Reply::Drip));
        for bad in ["", "100", "600", "99999", "ok"] {
            assert!(Reply::parse(bad).is_err(), "{bad}");
        }
    }
}
