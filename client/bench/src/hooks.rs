//! The agents that the benchmark's webhooks belong to: ten of each of ten teams, a URL each. That is more than a node
//! calls at a time (512) with what a URL (8) and a team (64) may have under way.

use std::sync::Arc;

use agentpost::Client;
use agentpost::api::abbababa::WebhookRequest;
use agentpost::client::Request;
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
/// Registrations under way at a time.
const REGISTERING: usize = 16;

/// The agents of a team; all teams name theirs alike.
pub fn agents() -> Vec<String> {
    (0..AGENTS).map(|n| format!("hook-{n}")).collect()
}

/// Registers all webhooks, in the place of what was registered. Agent `n` of team `t` has endpoint `t * AGENTS + n`.
pub async fn register(bench: &Bench<'_>, sink: &Sink, health: impl Fn(usize) -> Health) -> anyhow::Result<()> {
    let mut requests = Vec::new();
    for (team, (_, key)) in bench.tenants.iter().take(TEAMS).enumerate() {
        let client = Client::builder(bench.urls.join(" ")).api_key(&*key.api_key).build()?;
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

/// Removes all webhooks, and with them what was still to be delivered.
pub async fn remove(bench: &Bench<'_>) -> anyhow::Result<()> {
    for (_, key) in bench.tenants.iter().take(TEAMS) {
        let client = Client::builder(bench.urls.join(" ")).api_key(&*key.api_key).build()?;
        for agent in agents() {
            client
                .request(&Request::delete("/v1/messages/webhook").agent(agent))
                .await
                .context("cannot remove a webhook")?;
        }
    }
    Ok(())
}

/// A connection for each team, to the nodes in turn.
pub async fn lanes(bench: &Bench<'_>, nodes: &Nodes, shape: Shape) -> anyhow::Result<Vec<Lane>> {
    let addresses = nodes.addresses(bench.args.target)?;
    let mut lanes = Vec::new();
    for ((_, key), address) in bench.tenants.iter().take(TEAMS).zip(addresses.iter().cycle()) {
        let template = Arc::new(Template::new(shape.path(), &key.api_key, SENDER)?);
        lanes.push(Lane::dial(address, &template).await?);
    }
    Ok(lanes)
}
