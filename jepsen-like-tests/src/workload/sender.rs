//! A sender that sends one message after the other, for workloads that choose the receiver and the body.

use std::time::Duration;

use agentpost::api::abbababa::SendRequest;
use agentpost::{Agent, Error};
use anyhow::Result;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::load::StopFlag;
use crate::cluster::Team;
use crate::record::history::{Fields, Item, Lane, Op, Outcome};
use crate::workload::context::ClientContext;

/// Attempts of one send before its client gives up and records the outcome as unknown.
const ATTEMPTS_MAX: usize = 60;

pub struct MessageSender {
    lane: Lane,
    ctx: ClientContext,
    team: Team,
    clients: Vec<Agent>,
    random: StdRng,
}

impl MessageSender {
    /// Creates a sender without a name; call [`MessageSender::rename`] before the first send.
    pub fn new(ctx: &ClientContext, team: &Team) -> Self {
        let lane = ctx.recorder.lane();
        MessageSender {
            random: StdRng::seed_from_u64(ctx.seed ^ u64::from(lane.number()) << 32),
            lane,
            ctx: ctx.clone(),
            team: team.clone(),
            clients: Vec::new(),
        }
    }

    /// The number of its lane, for the keys of its messages.
    pub fn number(&self) -> u32 {
        self.lane.number()
    }

    /// Sets the agent that it sends as.
    pub fn rename(&mut self, agent: &str) -> Result<()> {
        let nodes = 1..=self.ctx.nodes();
        let clients: Result<_> = nodes.map(|node| self.ctx.node(node, &self.team.key, agent)).collect();
        self.clients = clients?;
        Ok(())
    }

    /// Sends a message under this key and retries it through random nodes until it is decided. Returns whether it was
    /// stored.
    pub async fn send(&mut self, key: &str, message: SendRequest, stop: &StopFlag) -> bool {
        let item = |id: String| Item {
            id,
            key: key.to_owned(),
            seq: None,
        };
        let to = message.to_agent_id.clone().unwrap_or_default();
        let asked = Fields::items(vec![item(String::new())]);
        self.lane.invoke(None, Op::Send, to, asked);
        let outcome = match self.decide(message, stop).await {
            Ok(id) => Outcome::Ok(Fields::items(vec![item(id)])),
            Err(outcome) => outcome,
        };
        let stored = matches!(outcome, Outcome::Ok(_));
        self.lane.end(outcome);
        stored
    }

    async fn decide(&mut self, message: SendRequest, stop: &StopFlag) -> Result<String, Outcome> {
        let mut last = String::new();
        for _ in 0..ATTEMPTS_MAX {
            let client = &self.clients[self.random.random_range(0..self.clients.len())];
            match client.draft(message.clone()).await {
                Ok(sent) => return Ok(sent.id),
                // 429 under overload is the one refusal that a retry can cure.
                Err(Error::Refused(answer)) if answer.status.as_u16() != 429 => {
                    return Err(Outcome::Fail(answer.to_string()));
                }
                Err(error) => last = error.to_string(),
            }
            if stop.is_set() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(self.random.random_range(20..200))).await;
        }
        Err(Outcome::Info(last))
    }
}
