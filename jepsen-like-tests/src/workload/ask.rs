//! Requests of clients with an operation of their own: one attempt at one node, or retries through any node until the
//! outcome is decided.

use std::future::Future;
use std::time::{Duration, Instant};

use agentpost::api::abbababa::{ListResponse, Message, SendRequest};
use agentpost::http::{Answer, Request};
use agentpost::{Agent, Error};
use anyhow::{Context as _, Result, bail};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use serde_json::value::to_raw_value;

use super::load::StopFlag;
use crate::record::history::{Fields, Outcome};
use crate::workload::context::ClientContext;

/// Attempts of one request before its client gives up and records the outcome as unknown.
const ATTEMPTS_MAX: usize = 60;
/// How long a client that should end keeps retrying its last request; the faults are over by then.
const LAST_WORD: Duration = Duration::from_secs(30);
/// Time limit for an audit to get a response from a node that has just been healed.
const AUDIT_PATIENCE: Duration = Duration::from_secs(60);

/// The random number generator of a lane.
pub fn random(ctx: &ClientContext, lane: u32) -> StdRng {
    StdRng::seed_from_u64(ctx.seed ^ u64::from(lane) << 32)
}

/// One client per node, without retries.
#[derive(Clone)]
pub struct NodeClients(Vec<Agent>);

impl NodeClients {
    /// Clients that act as an agent with a key.
    pub fn new(ctx: &ClientContext, key: &str, agent: &str) -> Result<Self> {
        let clients: Result<Vec<Agent>> = (1..=ctx.nodes()).map(|node| ctx.node(node, key, agent)).collect();
        Ok(NodeClients(clients?))
    }

    /// A random client and its node.
    pub fn any(&self, random: &mut StdRng) -> (usize, &Agent) {
        let place = random.random_range(0..self.0.len());
        (place + 1, &self.0[place])
    }
}

/// The outcome of a request.
#[derive(Debug)]
pub enum RequestOutcome<T> {
    /// It took effect; the response.
    Done(T),
    /// It did not take effect and never will.
    Refused(Answer),
    /// It did not take effect: no server accepted it.
    NotTaken(String),
    /// The outcome is unknown.
    Unknown(String),
}

impl<T> RequestOutcome<T> {
    /// The outcome of one attempt. A request that cannot even be sent is an error of the harness.
    pub fn of(result: Result<T, Error>) -> Result<Self> {
        Ok(match result {
            Ok(done) => RequestOutcome::Done(done),
            Err(Error::Refused(answer)) => RequestOutcome::Refused(answer),
            Err(Error::Unavailable { reason, .. }) => RequestOutcome::NotTaken(reason),
            Err(Error::Invalid(why)) => bail!("the request cannot be sent: {why}"),
            Err(error) => RequestOutcome::Unknown(error.to_string()),
        })
    }

    /// The outcome as the history records it; refusals as status and body.
    pub fn outcome(self, show: impl FnOnce(T) -> Fields) -> Outcome {
        match self {
            RequestOutcome::Done(done) => Outcome::Ok(show(done)),
            RequestOutcome::Refused(answer) => Outcome::Fail(format!("{} {}", answer.status.as_u16(), answer.body)),
            RequestOutcome::NotTaken(why) => Outcome::Fail(why),
            RequestOutcome::Unknown(why) => Outcome::Info(why),
        }
    }
}

/// Retries a request through random nodes until it is decided. A refusal decides only if no earlier attempt had an
/// unknown outcome, because such an attempt may still take effect.
pub async fn retry_until_decided<T, F>(
    nodes: &NodeClients,
    random: &mut StdRng,
    stop: &StopFlag,
    ask: impl Fn(Agent) -> F,
) -> Result<RequestOutcome<T>>
where
    F: Future<Output = Result<T, Error>>,
{
    let mut unknown = None;
    let mut last = String::new();
    let mut stopped: Option<Instant> = None;
    for _ in 0..ATTEMPTS_MAX {
        let client = nodes.any(random).1.clone();
        match RequestOutcome::of(ask(client).await)? {
            RequestOutcome::Done(done) => return Ok(RequestOutcome::Done(done)),
            RequestOutcome::Refused(answer) if unknown.is_none() => return Ok(RequestOutcome::Refused(answer)),
            RequestOutcome::Refused(answer) => {
                return Ok(RequestOutcome::Unknown(format!(
                    "refused after an unknown attempt: {answer}"
                )));
            }
            RequestOutcome::NotTaken(why) => last = why,
            RequestOutcome::Unknown(why) => unknown = Some(why),
        }
        if stop.is_set() && stopped.get_or_insert_with(Instant::now).elapsed() > LAST_WORD {
            break;
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(20..200))).await;
    }
    Ok(match unknown {
        Some(why) => RequestOutcome::Unknown(why),
        None => RequestOutcome::NotTaken(last),
    })
}

/// A message without a receiver whose body contains its key.
pub fn note(key: &str) -> Result<SendRequest> {
    Ok(SendRequest {
        kind: Some("test.note".to_owned()),
        body: Some(to_raw_value(&json!({ "key": key }))?),
        idempotency_key: Some(key.to_owned()),
        ..SendRequest::default()
    })
}

/// Reads an agent's whole inbox from one node, oldest first.
pub async fn whole_inbox(client: &Agent, agent: &str) -> Result<Vec<Message>> {
    let deadline = Instant::now() + AUDIT_PATIENCE;
    let mut messages = Vec::new();
    let mut cursor = String::new();
    loop {
        let request = Request::get(format!("/v1/messages?limit=200{cursor}")).agent(agent);
        let page: ListResponse = match client.request(&request).await {
            Ok(answer) => serde_json::from_str(&answer.body).context("a page of an inbox")?,
            Err(error) if Instant::now() > deadline => return Err(error).context("reading an inbox"),
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if page.messages.is_empty() {
            return Ok(messages);
        }
        messages.extend(page.messages);
        cursor = format!("&cursor={}", page.cursor);
    }
}
