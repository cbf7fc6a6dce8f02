//! Workload C: agents that subscribe and unsubscribe, and publishes to one, to some and to hundreds of them, through
//! every node. At the end every inbox is read from every node.

use std::time::Duration;

use agentpost::api::abbababa::SendRequest;
use agentpost::http::Request;
use agentpost::{Agent, Fanout, Sent};
use anyhow::{Context as _, Result};
use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::ask::{self, NodeClients, RequestOutcome};
use super::load::{Load, StopFlag};
use super::{message, send};
use crate::cluster::Team;
use crate::record::history::{Fields, Item, Lane, Op, Outcome};
use crate::workload::context::ClientContext;

/// The name of the team; every name in the history begins with it and `/`.
const TEAM: &str = "topics";
/// Topics: the name, the number of permanent subscribers, and the percentage of publishes.
const TOPICS: [(&str, usize, u32); 4] = [("lonely", 1, 65), ("room", 20, 23), ("hall", 60, 7), ("crowd", 300, 5)];
/// Clients that publish. They are subscribed to [`LOUD`] themselves and must not receive their own publishes.
const PUBLISHERS: u64 = 8;
/// The topic that the publishers are subscribed to.
const LOUD: &str = "room";
/// Agents that subscribe and unsubscribe all the time.
const GUESTS: usize = 16;
/// Publishes per second at most: an audit reads every entry of every inbox from every node.
const RATE_MAX: u64 = 50;
/// How often the audit asks whether all inboxes have the last publish; the server waits up to five seconds each time.
/// The audit reports what is missing after that.
const LAST_WAITS: usize = 24;
/// Concurrent clients that prepare, and that audit each node.
const HANDS: usize = 6;

/// Subscribes the permanent subscribers, then starts publishers and guests.
pub async fn start(ctx: &ClientContext) -> Result<Load> {
    let team = ctx.team(TEAM, None).await?;
    let owner = team.clone();
    let mut load = Load::new(move |ctx| async move { audit(&ctx, &owner).await });
    subscribe_all(ctx, &team, &load.stop()).await?;
    for number in 0..PUBLISHERS {
        let lane = ctx.recorder.lane();
        let publisher = Publisher {
            nodes: NodeClients::new(ctx, &team.key, &publisher_name(number))?,
            name: publisher_name(number),
            random: ask::random(ctx, lane.number()),
            lane,
        };
        let rate = if ctx.rate == 0 {
            RATE_MAX
        } else {
            ctx.rate.min(RATE_MAX)
        };
        load.spawn(publisher.run(load.stop(), send::pace(rate, PUBLISHERS, 1)));
    }
    for number in 0..GUESTS {
        let lane = ctx.recorder.lane();
        let guest = Guest {
            nodes: NodeClients::new(ctx, &team.key, &guest_name(number))?,
            name: guest_name(number),
            random: ask::random(ctx, lane.number()),
            lane,
        };
        load.spawn(guest.run(load.stop()));
    }
    Ok(load)
}

fn publisher_name(number: u64) -> String {
    format!("publisher-{number}")
}

fn guest_name(number: usize) -> String {
    format!("guest-{number}")
}

fn agent_name(number: usize) -> String {
    format!("agent-{number}")
}

/// A name in the history.
fn full(name: &str) -> String {
    format!("{TEAM}/{name}")
}

/// Subscribes all permanent subscribers.
async fn subscribe_all(ctx: &ClientContext, team: &Team, stop: &StopFlag) -> Result<()> {
    let staying = TOPICS
        .iter()
        .flat_map(|(topic, count, _)| (0..*count).map(|n| (agent_name(n), *topic)));
    let listening = (0..PUBLISHERS).map(|number| (publisher_name(number), LOUD));
    let all: Vec<(String, &str)> = staying.chain(listening).collect();
    let mut hands = JoinSet::new();
    for part in all.chunks(all.len().div_ceil(HANDS)) {
        let mut lane = ctx.recorder.lane();
        let mut random = ask::random(ctx, lane.number());
        let nodes = NodeClients::new(ctx, &team.key, "nobody")?;
        let (part, stop) = (part.to_vec(), stop.clone());
        hands.spawn(async move {
            for (agent, topic) in part {
                let asked = Fields {
                    name: Some(full(&agent)),
                    ..Fields::default()
                };
                lane.invoke(None, Op::Subscribe, full(topic), asked);
                let response = ask::retry_until_decided(&nodes, &mut random, &stop, |client| {
                    let agent = agent.clone();
                    async move {
                        let request = Request::post("/v1/messages/subscribe").json(&json!({ "topic": topic }))?;
                        client.request(&request.agent(agent)).await
                    }
                });
                lane.end(response.await?.outcome(|_| Fields::default()));
            }
            anyhow::Ok(())
        });
    }
    while let Some(hand) = hands.join_next().await {
        hand.context("a client panicked")??;
    }
    Ok(())
}

struct Publisher {
    lane: Lane,
    name: String,
    nodes: NodeClients,
    random: StdRng,
}

impl Publisher {
    async fn run(mut self, stop: StopFlag, gap: Duration) -> Result<()> {
        for number in 0.. {
            if stop.is_set() {
                break;
            }
            let next = Instant::now() + gap;
            let topic = self.topic();
            let key = full(&format!("{}-{number}", self.lane.number()));
            publish(
                &mut self.lane,
                &self.nodes,
                &mut self.random,
                &stop,
                &self.name,
                topic,
                &key,
            )
            .await?;
            tokio::time::sleep_until(next).await;
        }
        Ok(())
    }

    fn topic(&mut self) -> &'static str {
        let chosen = TOPICS.choose_weighted(&mut self.random, |topic| topic.2);
        chosen.map_or(LOUD, |topic| topic.0)
    }
}

/// Publishes under a key and retries until the outcome is decided. Returns whether the fan-out had finished; the
/// response's `fanout` is recorded as `name`.
async fn publish(
    lane: &mut Lane,
    nodes: &NodeClients,
    random: &mut StdRng,
    stop: &StopFlag,
    publisher: &str,
    topic: &str,
    key: &str,
) -> Result<bool> {
    let asked = Fields {
        name: Some(full(publisher)),
        ..Fields::key(key)
    };
    lane.invoke(None, Op::Publish, full(topic), asked);
    let message = SendRequest {
        topic: Some(topic.to_owned()),
        ..ask::note(key)?
    };
    let response = ask::retry_until_decided(nodes, random, stop, |client| {
        let message = message.clone();
        async move { client.draft(message).await }
    });
    let response = response.await?;
    let done = matches!(
        &response,
        RequestOutcome::Done(Sent {
            fanout: Fanout::Complete,
            ..
        })
    );
    lane.end(response.outcome(|sent| Fields {
        name: (sent.fanout != Fanout::Complete).then(|| sent.fanout.to_string()),
        ..Fields::id(sent.id)
    }));
    Ok(done)
}

/// Subscribes and unsubscribes without retries, so an unknown outcome stays unknown.
struct Guest {
    lane: Lane,
    name: String,
    nodes: NodeClients,
    random: StdRng,
}

impl Guest {
    async fn run(mut self, stop: StopFlag) -> Result<()> {
        let mut subscribed = [false; TOPICS.len()];
        while !stop.is_set() {
            let place = self.random.random_range(0..TOPICS.len());
            let topic = TOPICS[place].0;
            // Sometimes it requests the state that it already has.
            let comes = subscribed[place] == self.random.random_bool(0.1);
            subscribed[place] = comes;
            let (node, client) = self.nodes.any(&mut self.random);
            let asked = Fields {
                name: Some(full(&self.name)),
                ..Fields::default()
            };
            let op = if comes { Op::Subscribe } else { Op::Unsubscribe };
            self.lane.invoke(Some(node), op, full(topic), asked);
            let response = match comes {
                true => client.subscribe(topic).await.map(drop),
                false => client.unsubscribe(topic).await,
            };
            self.lane
                .end(RequestOutcome::of(response)?.outcome(|()| Fields::default()));
            let pause = self.random.random_range(50..500);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        Ok(())
    }
}

/// Waits until all fan-outs have finished, then reads every inbox from every node.
async fn audit(ctx: &ClientContext, team: &Team) -> Result<()> {
    await_last(ctx, team).await?;
    let mut agents: Vec<String> = (0..TOPICS.iter().map(|t| t.1).max().unwrap_or(0))
        .map(agent_name)
        .collect();
    agents.extend((0..GUESTS).map(guest_name));
    agents.extend((0..PUBLISHERS).map(publisher_name));
    let mut hands = JoinSet::new();
    for node in 1..=ctx.nodes() {
        for part in agents.chunks(agents.len().div_ceil(HANDS)) {
            let (lane, client) = (ctx.recorder.lane(), ctx.node(node, &team.key, "nobody")?);
            hands.spawn(read(lane, node, client, part.to_vec()));
        }
    }
    while let Some(hand) = hands.join_next().await {
        hand.context("a client panicked")?;
    }
    Ok(())
}

/// Publishes once more to every topic. A topic's publishes fan out in order, so the last one arrives last.
async fn await_last(ctx: &ClientContext, team: &Team) -> Result<()> {
    let mut lane = ctx.recorder.lane();
    let mut random = ask::random(ctx, lane.number());
    let nodes = NodeClients::new(ctx, &team.key, "last")?;
    for (topic, ..) in TOPICS {
        let key = full(&format!("{}-{topic}", lane.number()));
        for _ in 0..LAST_WAITS {
            if publish(
                &mut lane,
                &nodes,
                &mut random,
                &StopFlag::default(),
                "last",
                topic,
                &key,
            )
            .await?
            {
                break;
            }
        }
    }
    Ok(())
}

async fn read(mut lane: Lane, node: usize, client: Agent, agents: Vec<String>) {
    for agent in agents {
        lane.invoke(Some(node), Op::Inbox, full(&agent), Fields::default());
        let messages = ask::whole_inbox(&client, &agent).await;
        lane.end(match messages {
            Ok(messages) => Outcome::Ok(Fields::items(messages.iter().map(|m| keyed(m.body.get())).collect())),
            Err(error) => Outcome::Info(format!("{error:#}")),
        });
    }
}

/// A message by its key alone, because there are very many.
fn keyed(body: &str) -> Item {
    Item {
        id: String::new(),
        key: message::key_of(body),
        seq: None,
    }
}
