//! Workload E: messages to agents whose webhook servers work, fail or are gone, and the final state of each delivery.
//!
//! Calls are recorded as they arrive; deliveries, dead letters and notices at the end, when all deliveries are over.

pub mod collect;
pub mod crash_points;
mod sinks;

use std::fs::File;
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agentpost::api::abbababa::SendRequest;
use agentpost::api::admin::LimitsPatch;
use agentpost::{Agentpost, Error, WebhookEvent};
use agentpost_testkit::receiver::{Call, Receiver};
use anyhow::{Context as _, Result, ensure};
use futures::stream::{StreamExt as _, TryStreamExt as _};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use self::collect::{all_over, received_call, record_final_state};
pub use self::sinks::Mix;
use self::sinks::{Servers, Sink};
use super::load::{Load, StopFlag};
use super::message::message;
use super::send::{audit, pace};
use super::sender::MessageSender;
use crate::cluster::Team;
use crate::record::deliveries::{Agent, CALLS, Deletion, DeliveryRecord, ReceivedCall};
use crate::workload::context::ClientContext;

/// Messages per second at most: a slow server takes 8 at a time.
const RATE_MAX: u64 = 400;
/// A sender changes its name after this many messages, before its notices fill its inbox.
const MESSAGES_PER_NAME: u64 = 20_000;
/// Time limit for all deliveries to end: all retries, an attempt with an unknown outcome, and some reserve.
const PATIENCE: Duration = Duration::from_secs(300);
/// Time between two registrations of a server that answered 410.
const GONE_FOR: Duration = Duration::from_millis(700);
/// How long an agent keeps a failing server, in milliseconds: its deliveries are on the second or third step then.
const KEPT_MS: std::ops::Range<u64> = 1_000..4_000;
/// Messages that an inbox keeps before the oldest are removed.
const INBOX_FULL: usize = 100_000;
/// The name of the team; a script that sends messages itself finds the team by it.
pub fn team_name(mix: Mix) -> String {
    format!("webhooks-{}", mix.name())
}

pub async fn start(mix: Mix, ctx: &ClientContext) -> Result<Load> {
    let limits = LimitsPatch {
        daily_sends: Some(0),
        daily_reads: Some(0),
        daily_webhook_registrations: Some(0),
        monthly_events: Some(0),
        ..LimitsPatch::default()
    };
    let team = ctx.team(&team_name(mix), Some(limits)).await?;
    let servers = Servers::start(mix, receiver(ctx).await?).await?;
    register(ctx, &team, &servers).await?;
    if mix == Mix::FullInbox {
        fill(ctx, &team, &sender_name(mix, 0, 0)).await?;
    }
    let deletions: Deletions = Arc::default();
    let servers = Arc::new(servers);
    let (kept, owner, given_up) = (servers.clone(), team.clone(), deletions.clone());
    let mut load = Load::new(move |ctx| async move { conclude(&ctx, &owner, &kept, &given_up).await });
    for (number, sink) in servers.sinks.iter().enumerate() {
        let client = client_of_all_nodes(ctx, &team, &sink.agent)?;
        match sink.sink {
            Sink::Gone => load.spawn(come_back(client, servers.url(sink, 0), load.stop())),
            Sink::Leaving => {
                let leaver = Leaver {
                    client,
                    number,
                    servers: servers.clone(),
                    ctx: ctx.clone(),
                    deletions: deletions.clone(),
                };
                load.spawn(leaver.run(load.stop()));
            }
            _ => {}
        }
    }
    let lanes = mix.lanes();
    for number in 0..lanes {
        let sender = Sender {
            sender: MessageSender::new(ctx, &team),
            mix,
            number,
            cycle: servers.cycle(),
            gap: pace(rate(ctx), lanes, 1),
        };
        load.spawn(sender.run(load.stop()));
    }
    Ok(load)
}

fn rate(ctx: &ClientContext) -> u64 {
    match ctx.rate {
        0 => RATE_MAX,
        rate => rate.min(RATE_MAX),
    }
}

type Deletions = Arc<Mutex<Vec<Deletion>>>;

/// A receiver that records each call before it answers.
async fn receiver(ctx: &ClientContext) -> Result<Receiver> {
    let path = ctx.recorder.dir().join(CALLS);
    let file = File::options().create(true).append(true).open(&path);
    let mut file = file.with_context(|| format!("cannot open {}", path.display()))?;
    let recorder = ctx.recorder.clone();
    let witness = move |call: &Call| {
        let at_us = recorder.now() / 1000;
        // A call without the required headers belongs to no delivery; the checker reports it.
        let received_call = received_call(call, at_us).unwrap_or_else(|_| ReceivedCall {
            path: call.path.clone(),
            at_us,
            ..ReceivedCall::default()
        });
        let line = serde_json::to_vec(&received_call).map_err(std::io::Error::from);
        let written = line.and_then(|line| file.write_all(&[line, b"\n".to_vec()].concat()));
        written.expect("writing the log of calls");
    };
    Ok(Receiver::start_with_witness(ctx.host, Box::new(witness)).await?)
}

/// A client of all nodes.
fn client_of_all_nodes(ctx: &ClientContext, team: &Team, agent: &str) -> Result<agentpost::Agent> {
    let post = Agentpost::builder(ctx.urls.join(" ")).key(&team.key);
    Ok(post.build()?.agent(agent))
}

/// Registers a URL for direct messages.
async fn set_webhook(client: &agentpost::Agent, url: &str) -> Result<(), Error> {
    let webhook = client.webhook().set(url).events([WebhookEvent::MessageReceived]);
    webhook.await.map(drop)
}

async fn register(ctx: &ClientContext, team: &Team, servers: &Servers) -> Result<()> {
    let all = servers
        .sinks
        .iter()
        .map(|sink| (sink.agent.clone(), servers.url(sink, 0)));
    let registering = futures::stream::iter(all.collect::<Vec<_>>()).map(|(agent, url)| async move {
        let client = client_of_all_nodes(ctx, team, &agent)?;
        set_webhook(&client, &url).await?;
        anyhow::Ok(())
    });
    registering.buffer_unordered(8).try_collect().await
}

/// Fills an inbox to its limit and a little more.
async fn fill(ctx: &ClientContext, team: &Team, inbox: &str) -> Result<()> {
    let client = client_of_all_nodes(ctx, team, "filler")?;
    let batches = (0..INBOX_FULL / 100 + 5).map(|batch| {
        let messages: Result<Vec<SendRequest>> =
            (0..100).map(|n| message(inbox, &format!("fill-{batch}-{n}"))).collect();
        let client = client.clone();
        async move {
            client
                .send_all(messages?.into_iter().map(|message| client.draft(message)))
                .await?;
            anyhow::Ok(())
        }
    });
    futures::stream::iter(batches).buffer_unordered(8).try_collect().await
}

/// Registers a server again that answers 410 and so loses its webhook.
async fn come_back(client: agentpost::Agent, url: String, stop: StopFlag) -> Result<()> {
    while !stop.is_set() {
        tokio::time::sleep(GONE_FOR).await;
        // Errors do not matter: the next registration follows soon.
        let _ = set_webhook(&client, &url).await;
    }
    Ok(())
}

/// An agent that deletes its failing webhook while deliveries wait for it, and registers another one.
struct Leaver {
    client: agentpost::Agent,
    number: usize,
    servers: Arc<Servers>,
    ctx: ClientContext,
    deletions: Deletions,
}

impl Leaver {
    async fn run(self, stop: StopFlag) -> Result<()> {
        let mut random = StdRng::seed_from_u64(self.ctx.seed ^ self.number as u64);
        let sink = &self.servers.sinks[self.number];
        let mut life = 0;
        while !stop.is_set() {
            tokio::time::sleep(Duration::from_millis(random.random_range(KEPT_MS))).await;
            give_up(&self.ctx, &self.client, &self.servers.path(sink, life), &self.deletions).await?;
            life += 1;
            let url = self.servers.url(sink, life);
            let deadline = Instant::now() + PATIENCE;
            while let Err(error) = set_webhook(&self.client, &url).await {
                ensure!(Instant::now() < deadline, "{} cannot be registered: {error}", url);
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
        give_up(&self.ctx, &self.client, &self.servers.path(sink, life), &self.deletions).await
    }
}

/// Deletes an agent's webhook and records when the deletion was acknowledged.
async fn give_up(ctx: &ClientContext, client: &agentpost::Agent, path: &str, deletions: &Deletions) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match client.webhook().remove().await {
            Ok(()) => break,
            // An earlier attempt deleted it, and its response was lost.
            Err(Error::Refused(answer)) if answer.status.as_u16() == 404 => break,
            Err(error) => ensure!(Instant::now() < deadline, "{path} cannot be deleted: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let deletion = Deletion {
        path: path.to_owned(),
        at_us: ctx.recorder.now() / 1000,
    };
    deletions.lock().push(deletion);
    Ok(())
}

fn sender_name(mix: Mix, lane: u64, sent: u64) -> String {
    format!("{}-sender-{lane}-{}", mix.name(), sent / MESSAGES_PER_NAME)
}

struct Sender {
    sender: MessageSender,
    mix: Mix,
    number: u64,
    cycle: Vec<String>,
    gap: Duration,
}

impl Sender {
    async fn run(mut self, stop: StopFlag) -> Result<()> {
        // Lanes begin at different positions of the cycle.
        let ahead = self.number as usize * self.cycle.len() / self.mix.lanes() as usize;
        for sent in 0.. {
            if stop.is_set() {
                break;
            }
            if sent % MESSAGES_PER_NAME == 0 {
                self.sender.rename(&sender_name(self.mix, self.number, sent))?;
            }
            let began = Instant::now();
            let to = &self.cycle[(ahead + sent as usize) % self.cycle.len()];
            let key = format!("{}-{sent}", self.sender.number());
            self.sender.send(&key, message(to, &key)?, &stop).await;
            tokio::time::sleep(self.gap.saturating_sub(began.elapsed())).await;
        }
        Ok(())
    }
}

/// Waits until all deliveries are over, and records the final state.
async fn conclude(ctx: &ClientContext, team: &Team, servers: &Servers, deletions: &Deletions) -> Result<()> {
    for sink in servers.sinks.iter().filter(|sink| sink.sink.is_endless()) {
        let client = client_of_all_nodes(ctx, team, &sink.agent)?;
        give_up(ctx, &client, &servers.path(sink, 0), deletions).await?;
    }
    let operator = ctx.operator()?;
    let deadline = Instant::now() + PATIENCE;
    // The checker reports deliveries that are still open after that.
    while !all_over(&operator, team).await? && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let mut more: Vec<DeliveryRecord> = Vec::new();
    for sink in servers.sinks.iter().filter(|sink| sink.sink.is_kept()) {
        more.push(DeliveryRecord::Agent(Agent {
            id: sink.agent.clone(),
            prompt: sink.sink == Sink::Healthy,
        }));
    }
    let deletions = deletions.lock().clone();
    more.extend(deletions.into_iter().map(DeliveryRecord::Deletion));
    record_final_state(ctx, team, more).await?;
    let inboxes: Vec<String> = servers.sinks.iter().map(|sink| sink.agent.clone()).collect();
    audit(ctx, team, &inboxes).await
}
