//! The agents with webhooks: ten agents in each of ten teams, each with a URL. Together their limits (8 calls at a time
//! for a URL, 64 for a team) allow more calls than a node makes at a time (512).

use std::sync::Arc;

use agentpost::Agentpost;
use agentpost::api::abbababa::WebhookRequest;
use agentpost::http::Request;
use anyhow::Context;
use futures::stream::{StreamExt, TryStreamExt, iter};

use crate::Bench;
use crate::lane::{Lane, Template};
use crate::nodes::Nodes;
use crate::sink::{Health, Sink};
use crate::traffic::{SENDER, Shape};

/// Teams with webhooks.
pub const TEAMS: usize = 10;
/// Agents of each team.
pub const AGENTS: usize = 10;
/// Registrations in flight at a time.
const REGISTERING: usize = 16;

/// The agents of a team; the names are the same in every team.
pub fn agents() -> Vec<String> {
    (0..AGENTS).map(|n| format!("hook-{n}")).collect()
}

/// Registers all webhooks and replaces earlier ones. Agent `n` of team `t` has endpoint `t * AGENTS + n`.
pub async fn register(bench: &Bench<'_>, sink: &Sink, health: impl Fn(usize) -> Health) -> anyhow::Result<()> {
    let mut requests = Vec::new();
    for (team, (_, key)) in bench.tenants.iter().take(TEAMS).enumerate() {
        let post = Agentpost::builder(bench.urls.join(" ")).key(&*key.api_key).build()?;
        let client = post.http();
        for (number, agent) in agents().into_iter().enumerate() {
            let n = team * AGENTS + number;
            let webhook = WebhookRequest {
                url: sink.url(health(n), n),
                events: vec!["message.received".to_owned()],
            };
            let request = Request::post("/v1/messages/webhook").json(&webhook)?.agent(agent);
            requests.push((client.clone(), request));
        }
    }
    let made = iter(requests).map(|(client, request)| async move { client.request(&request).await });
    let made: Vec<_> = made.buffer_unordered(REGISTERING).try_collect().await.context(
        "cannot register a webhook; the nodes need webhooks.allow_http and allow_networks = [\"127.0.0.0/8\"]",
    )?;
    debug_assert_eq!(made.len(), TEAMS * AGENTS);
    Ok(())
}

/// Removes all webhooks, which cancels the deliveries that still wait.
pub async fn remove(bench: &Bench<'_>) -> anyhow::Result<()> {
    for (_, key) in bench.tenants.iter().take(TEAMS) {
        let post = Agentpost::builder(bench.urls.join(" ")).key(&*key.api_key).build()?;
        let client = post.http();
        for agent in agents() {
            client
                .request(&Request::delete("/v1/messages/webhook").agent(agent))
                .await
                .context("cannot remove a webhook")?;
        }
    }
    Ok(())
}

/// Opens a connection for each team; the teams take the nodes in turn.
pub async fn lanes(bench: &Bench<'_>, nodes: &Nodes, shape: Shape) -> anyhow::Result<Vec<Lane>> {
    let addresses = nodes.addresses(bench.args.target())?;
    let mut lanes = Vec::new();
    for ((_, key), address) in bench.tenants.iter().take(TEAMS).zip(addresses.iter().cycle()) {
        let template = Arc::new(Template::new(shape.path(), &key.api_key, SENDER)?);
        lanes.push(Lane::dial(address, &template).await?);
    }
    Ok(lanes)
}
