//! Workload D: clients that compete for the last units of a daily send quota and of a monthly event quota, through
//! every node. Each quota lives for a few seconds in a team of its own: a small limit that is raised now and then, so
//! that it is reached often. A send with an unknown outcome is retried under its key, and some accepted sends are
//! repeated: a repeat must count once.

use std::sync::Arc;
use std::time::Duration;

use agentpost::api::abbababa::SendRequest;
use agentpost::api::admin::LimitsPatch;
use agentpost::api::kite;
use agentpost::http::Request;
use agentpost::{Agent, Error};
use anyhow::{Context as _, Result};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use parking_lot::Mutex;
use rand::RngExt;
use rand::rngs::StdRng;
use tokio::task::JoinSet;

use super::ask::{self, NodeClients, RequestOutcome};
use super::load::{Load, StopFlag};
use super::send;
use crate::cluster::Team;
use crate::record::history::{Fields, Item, Lane, Op, Outcome};
use crate::workload::context::ClientContext;

/// Quotas that exist at the same time; every third is monthly.
const SLOTS: u64 = 6;
/// Clients that compete for one quota.
const RACERS: u64 = 6;
/// Sends per second of all clients at most: most of more would be refused.
const RATE_MAX: u64 = 300;
/// How often a limit is raised in the lifetime of a quota.
const RAISES: u64 = 3;
/// The agents that send and receive.
const SPENDER: &str = "spender";
const RECEIVER: &str = "receiver";

#[derive(Clone)]
struct Quota {
    /// Its name in the history.
    name: String,
    team: Team,
    period: Period,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Period {
    /// Sends of an agent, with the Abba Baba API.
    Day,
    /// Events of a team, with the Kite API.
    Month,
}

type Raced = Arc<Mutex<Vec<Quota>>>;

/// Starts [`SLOTS`] series of quotas.
pub async fn start(ctx: &ClientContext) -> Result<Load> {
    let raced = Raced::default();
    let audited = raced.clone();
    let mut load = Load::new(move |ctx| async move {
        let quotas = audited.lock().clone();
        audit(&ctx, &quotas).await
    });
    for number in 0..SLOTS {
        let lane = ctx.recorder.lane();
        let slot = Slot {
            number,
            period: if number % 3 == 2 { Period::Month } else { Period::Day },
            operator: NodeClients::new(ctx, &ctx.admin_key, SPENDER)?,
            random: ask::random(ctx, lane.number()),
            lane,
            ctx: ctx.clone(),
            raced: raced.clone(),
        };
        load.spawn(slot.run(load.stop()));
    }
    Ok(load)
}

/// Runs one quota after the other.
struct Slot {
    number: u64,
    period: Period,
    ctx: ClientContext,
    lane: Lane,
    random: StdRng,
    operator: NodeClients,
    raced: Raced,
}

impl Slot {
    async fn run(mut self, stop: StopFlag) -> Result<()> {
        for life in 0.. {
            if stop.is_set() {
                break;
            }
            let mut limit = self.random.random_range(2..20);
            let name = format!("quota-{}-{life}", self.number);
            self.lane.invoke(None, Op::Limit, &name, self.limit(limit));
            // A team whose creation has an unknown outcome is abandoned.
            let team = match self.ctx.team(&name, Some(self.patch(limit))).await {
                Ok(team) => team,
                Err(error) => {
                    self.lane.end(Outcome::Info(format!("{error:#}")));
                    self.pause(100..300).await;
                    continue;
                }
            };
            self.lane.end(Outcome::Ok(Fields::default()));
            let quota = Quota {
                name,
                team,
                period: self.period,
            };
            self.raced.lock().push(quota.clone());
            let (over, racers) = self.racers(&quota, &stop)?;
            for _ in 0..RAISES {
                self.pause(300..900).await;
                limit += self.random.random_range(1..12);
                if stop.is_set() || !self.raise(&quota, limit).await? {
                    break;
                }
            }
            self.pause(300..900).await;
            over.set();
            for raced in racers.join_all().await {
                raced?;
            }
        }
        Ok(())
    }

    fn racers(&mut self, quota: &Quota, stop: &StopFlag) -> Result<(StopFlag, JoinSet<Result<()>>)> {
        let over = StopFlag::default();
        let mut racers = JoinSet::new();
        let nodes = NodeClients::new(&self.ctx, &quota.team.key, SPENDER)?;
        for _ in 0..RACERS {
            let lane = self.ctx.recorder.lane();
            let rate = if self.ctx.rate == 0 {
                RATE_MAX
            } else {
                self.ctx.rate.min(RATE_MAX)
            };
            let racer = Racer {
                quota: quota.clone(),
                nodes: nodes.clone(),
                random: ask::random(&self.ctx, lane.number()),
                lane,
                gap: send::pace(rate, SLOTS * RACERS, 1),
            };
            racers.spawn(racer.run(over.clone(), stop.clone()));
        }
        Ok((over, racers))
    }

    /// Raises a limit without retries, because a late retry could lower a limit that was raised since. Returns false
    /// if the outcome is unknown; such a limit is not changed again.
    async fn raise(&mut self, quota: &Quota, limit: u64) -> Result<bool> {
        let (node, client) = self.operator.any(&mut self.random);
        let change = client.post().operator().update_team(&quota.team.id);
        let change = change.limits(self.patch(limit));
        self.lane.invoke(Some(node), Op::Limit, &quota.name, self.limit(limit));
        let response = RequestOutcome::of(change.await)?;
        let known = !matches!(response, RequestOutcome::Unknown(_));
        self.lane.end(response.outcome(|_| Fields::default()));
        Ok(known)
    }

    fn limit(&self, n: u64) -> Fields {
        Fields {
            n: Some(n),
            ..Fields::default()
        }
    }

    fn patch(&self, limit: u64) -> LimitsPatch {
        let (day, month) = match self.period {
            Period::Day => (limit, 0),
            Period::Month => (0, limit),
        };
        LimitsPatch {
            daily_sends: Some(day),
            monthly_events: Some(month),
            daily_reads: Some(0),
            ..LimitsPatch::default()
        }
    }

    async fn pause(&mut self, ms: std::ops::Range<u64>) {
        let ms = self.random.random_range(ms);
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }
}

/// Spends one unit after the other.
struct Racer {
    quota: Quota,
    lane: Lane,
    random: StdRng,
    nodes: NodeClients,
    gap: Duration,
}

impl Racer {
    async fn run(mut self, over: StopFlag, stop: StopFlag) -> Result<()> {
        let mut number = 0;
        while !over.is_set() && !stop.is_set() {
            let next = tokio::time::Instant::now() + self.gap;
            let key = format!("{}/{}-{number}", self.quota.name, self.lane.number());
            number += 1;
            let accepted = self.spend(&key, &stop).await?;
            if accepted && self.random.random_bool(0.15) {
                self.spend(&key, &stop).await?;
            }
            tokio::time::sleep_until(next).await;
        }
        Ok(())
    }

    async fn spend(&mut self, key: &str, stop: &StopFlag) -> Result<bool> {
        self.lane.invoke(None, Op::Spend, &self.quota.name, Fields::key(key));
        let period = self.quota.period;
        let response = ask::retry_until_decided(&self.nodes, &mut self.random, stop, |client| {
            let key = key.to_owned();
            async move {
                match period {
                    Period::Day => send_of_day(&client, &key).await,
                    Period::Month => event_of_month(&client, &key).await,
                }
            }
        });
        let response = response.await?;
        let accepted = matches!(response, RequestOutcome::Done(_));
        self.lane.end(response.outcome(|fields| fields));
        Ok(accepted)
    }
}

async fn send_of_day(client: &Agent, key: &str) -> Result<Fields, Error> {
    let note = ask::note(key).map_err(|error| Error::Invalid(error.to_string()))?;
    let message = SendRequest {
        to_agent_id: Some(RECEIVER.to_owned()),
        ..note
    };
    Ok(Fields::id(client.draft(message).await?.id))
}

async fn event_of_month(client: &Agent, key: &str) -> Result<Fields, Error> {
    let event = kite::SendRequest {
        from: SPENDER.to_owned(),
        to: RECEIVER.to_owned(),
        body: key.to_owned(),
        thread_id: None,
        reply_to_id: None,
    };
    let request = Request::post("/api/v1/agents/messages")
        .json(&event)?
        .idempotency_key(key);
    let sent: kite::SendResponse = client.call(request).await?;
    Ok(Fields {
        n: Some(sent.usage.events_used),
        ..Fields::id(sent.id)
    })
}

/// Reads the accepted sends from every node.
async fn audit(ctx: &ClientContext, quotas: &[Quota]) -> Result<()> {
    let mut lane = ctx.recorder.lane();
    for quota in quotas {
        for node in 1..=ctx.nodes() {
            lane.invoke(Some(node), Op::Spent, &quota.name, Fields::default());
            let client = ctx.node(node, &quota.team.key, RECEIVER)?;
            let spent = ask::whole_inbox(&client, RECEIVER).await;
            let items = spent.and_then(|all| all.iter().map(|message| counted(quota.period, message)).collect());
            lane.end(match items {
                Ok(items) => Outcome::Ok(Fields::items(items)),
                Err(error) => Outcome::Info(format!("{error:#}")),
            });
        }
    }
    Ok(())
}

/// An accepted message with the day or month in which it was counted: it is created and counted at the same time.
fn counted(period: Period, message: &agentpost::api::abbababa::Message) -> Result<Item> {
    let at: Timestamp = message.created_at.parse().context("createdAt")?;
    let date = at.to_zoned(TimeZone::UTC).date();
    let seq = match period {
        Period::Day => u64::try_from(at.as_second())? / 86_400,
        Period::Month => u64::try_from(date.year())? * 12 + u64::try_from(date.month())?,
    };
    let body: serde_json::Value = serde_json::from_str(message.body.get())?;
    // The body of a message that was sent with the Kite API has `text`.
    let key = ["key", "text"].iter().find_map(|name| body.get(name)?.as_str());
    Ok(Item {
        id: message.id.clone(),
        key: key.unwrap_or_default().to_owned(),
        seq: Some(seq),
    })
}
