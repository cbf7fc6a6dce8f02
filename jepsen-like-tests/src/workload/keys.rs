//! Workload G: operators create and revoke keys while clients use them through random nodes; and two teams with
//! agents and topics of the same names request each other's data. At the end every inbox is read.

mod listener;
mod probes;
mod shared_key;

use std::sync::Arc;
use std::time::Duration;

use agentpost::http::Request;
use agentpost::kite::Kite;
use agentpost::retry::RetryPolicy;
use agentpost::{Agent, Agentpost, Error, Permission};
use anyhow::{Context as _, Result};
use jiff::{SignedDuration, Timestamp};
use rand::RngExt;
use rand::rngs::StdRng;

use self::probes::Tenant;
use self::shared_key::{ActiveKeys, SINK, SharedKey, WRITER, to};
use super::ask::{self, NodeClients, RequestOutcome};
use super::load::{Load, StopFlag};
use super::{message, send};
use crate::cluster::Team;
use crate::record::history::{Fields, Item, Lane, Op, Outcome};
use crate::workload::context::ClientContext;

/// The number of operators; each has one key at a time.
const OPERATORS: usize = 8;
/// The number of clients that use the current keys.
const USERS: u64 = 8;
/// Uses per second of all clients at most: the linear-order search examines each.
const RATE_MAX: u64 = 400;
/// How long a revoked key is still tried.
const AFTERWARDS: Duration = Duration::from_millis(1_500);

/// Starts operators, users, and two teams that probe each other.
pub async fn start(ctx: &ClientContext) -> Result<Load> {
    let tenants = [
        Tenant::create(ctx, "keys-a").await?,
        Tenant::create(ctx, "keys-b").await?,
    ];
    let audited = tenants.clone();
    let mut load = Load::new(move |ctx| async move {
        for tenant in &audited {
            audit(&ctx, tenant).await?;
        }
        Ok(())
    });
    probes::start(ctx, &tenants, &mut load)?;
    let keys = ActiveKeys::default();
    for number in 0..OPERATORS {
        let lane = ctx.recorder.lane();
        let tenant = &tenants[number % tenants.len()];
        let operator = Operator {
            nodes: NodeClients::new(ctx, &ctx.admin_key, "operator")?,
            team: tenant.team.clone(),
            of: tenant.name,
            random: ask::random(ctx, lane.number()),
            lane,
            ctx: ctx.clone(),
            keys: keys.clone(),
        };
        load.spawn(operator.run(load.stop()));
    }
    for _ in 0..USERS {
        let lane = ctx.recorder.lane();
        let rate = if ctx.rate == 0 {
            RATE_MAX
        } else {
            ctx.rate.min(RATE_MAX)
        };
        let user = User {
            random: ask::random(ctx, lane.number()),
            lane,
            keys: keys.clone(),
            gap: send::pace(rate, USERS, 1),
        };
        load.spawn(user.run(load.stop()));
    }
    Ok(load)
}

/// Creates a key, lets users try it, revokes it, and lets them try it a little longer.
struct Operator {
    ctx: ClientContext,
    nodes: NodeClients,
    team: Team,
    /// The name of the team.
    of: &'static str,
    lane: Lane,
    random: StdRng,
    keys: ActiveKeys,
}

impl Operator {
    async fn run(mut self, stop: StopFlag) -> Result<()> {
        for number in 0.. {
            if stop.is_set() {
                break;
            }
            let name = format!("{}/{}-{number}", self.of, self.lane.number());
            let Some((id, key_in_use)) = self.create(&name).await? else {
                self.pause(100..300).await;
                continue;
            };
            let key_in_use = Arc::new(key_in_use);
            self.keys.change(|keys| keys.push(key_in_use.clone()));
            let over = StopFlag::default();
            let listener = self.random.random_bool(0.5).then(|| {
                let lane = self.ctx.recorder.lane();
                tokio::spawn(listener::listen(
                    self.ctx.clone(),
                    lane,
                    key_in_use.clone(),
                    over.clone(),
                ))
            });
            self.pause(100..2_500).await;
            self.lane.invoke(None, Op::KeyRevoke, &name, Fields::default());
            let response = ask::retry_until_decided(&self.nodes, &mut self.random, &stop, |client| {
                let id = id.clone();
                async move { client.post().operator().revoke_key(&id).await }
            });
            self.lane.end(response.await?.outcome(|()| Fields::default()));
            tokio::time::sleep(AFTERWARDS).await;
            self.keys
                .change(|keys| keys.retain(|other| !Arc::ptr_eq(other, &key_in_use)));
            over.set();
            if let Some(listener) = listener {
                listener.await.context("a client panicked")??;
            }
        }
        Ok(())
    }

    /// Creates a key with random properties; `None` if the outcome is not a success.
    async fn create(&mut self, name: &str) -> Result<Option<(String, SharedKey)>> {
        let writes = self.random.random_bool(0.7);
        let bound = self.random.random_bool(0.5);
        let life = self.random.random_bool(0.25).then(|| self.random.random_range(1..3));
        let scoped = self.random.random_bool(0.3);
        let (node, client) = self.nodes.any(&mut self.random);
        let permission = if writes { Permission::Write } else { Permission::Read };
        let mut wanted = client
            .post()
            .operator()
            .create_key(&self.team.id, name)
            .permission(permission);
        if bound {
            wanted = wanted.agent(WRITER);
        }
        if scoped {
            wanted = wanted.scopes([format!("agent_to:{WRITER}")]);
        }
        if let Some(s) = life {
            wanted = wanted.expires_at((Timestamp::now() + SignedDuration::from_secs(s)).to_string());
        }
        let asked = Fields {
            n: life.map(|s| s as u64 * 1_000_000_000),
            ..Fields::default()
        };
        self.lane.invoke(Some(node), Op::KeyCreate, name, asked);
        let created = match RequestOutcome::of(wanted.await)? {
            RequestOutcome::Done(created) => created,
            other => {
                self.lane.end(other.outcome(|_| Fields::default()));
                return Ok(None);
            }
        };
        self.lane.end(Outcome::Ok(Fields::id(&created.id)));
        let key_in_use = SharedKey {
            name: name.to_owned(),
            team: self.team.id.clone(),
            nodes: NodeClients::new(&self.ctx, &created.api_key, WRITER)?,
            secret: created.api_key,
            writes,
        };
        Ok(Some((created.id, key_in_use)))
    }

    async fn pause(&mut self, ms: std::ops::Range<u64>) {
        let ms = self.random.random_range(ms);
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }
}

/// Uses keys: linearizable reads, local reads, methods over a socket, and writes that the audit looks for.
struct User {
    lane: Lane,
    random: StdRng,
    keys: ActiveKeys,
    gap: Duration,
}

impl User {
    async fn run(mut self, stop: StopFlag) -> Result<()> {
        let mut number = 0;
        while !stop.is_set() {
            let next = tokio::time::Instant::now() + self.gap;
            if let Some(key_in_use) = self.keys.any(&mut self.random) {
                self.try_key(&key_in_use, number).await?;
                number += 1;
            }
            tokio::time::sleep_until(next.max(tokio::time::Instant::now() + Duration::from_millis(1))).await;
        }
        Ok(())
    }

    async fn try_key(&mut self, key_in_use: &SharedKey, number: u64) -> Result<()> {
        let ways = ["read", "read", "local", "local", "socket", "write", "write", "write"];
        let way = ways[self
            .random
            .random_range(0..if key_in_use.writes { ways.len() } else { 5 })];
        let team = key_in_use.name.split('/').next().unwrap_or_default();
        let key = format!("{team}/{}-{number}", self.lane.number());
        let asked = Fields {
            name: Some(way.to_owned()),
            key: (way == "write").then(|| key.clone()),
            ..Fields::default()
        };
        let (node, client) = key_in_use.nodes.any(&mut self.random);
        self.lane.invoke(Some(node), Op::KeyUse, &key_in_use.name, asked);
        let result = match way {
            "read" => client.request(&Request::get("/v1/messages?limit=1")).await.map(drop),
            "local" => {
                let request = Request::get("/v1/messages?limit=1&consistency=local");
                client.request(&request).await.map(drop)
            }
            "socket" => socket(key_in_use, &client.post().urls()[0])?.stats().await.map(drop),
            _ => client.draft(to(SINK, &key)?).await.map(drop),
        };
        self.lane.end(match result {
            // Code 4001 is the equivalent of status 401 on a socket.
            Err(Error::Session { code: 4001, message }) => Outcome::Fail(format!("401 {message}")),
            result => RequestOutcome::of(result)?.outcome(|()| Fields::default()),
        });
        Ok(())
    }
}

/// A client for methods over a socket to one node.
fn socket(key_in_use: &SharedKey, url: &str) -> Result<Kite> {
    let post = Agentpost::builder(url).key(&*key_in_use.secret).team(&key_in_use.team);
    Ok(post.retry(RetryPolicy::once()).build()?.kite())
}

/// Reads every inbox of a team from every node.
async fn audit(ctx: &ClientContext, tenant: &Tenant) -> Result<()> {
    let mut lane = ctx.recorder.lane();
    for node in 1..=ctx.nodes() {
        let client = ctx.node(node, &tenant.team.key, SINK)?;
        for agent in probes::AGENTS {
            lane.invoke(
                Some(node),
                Op::Inbox,
                format!("{}/{agent}", tenant.name),
                Fields::default(),
            );
            let outcome = inbox(&client, agent).await;
            lane.end(outcome);
        }
    }
    Ok(())
}

async fn inbox(client: &Agent, agent: &str) -> Outcome {
    match ask::whole_inbox(client, agent).await {
        Ok(messages) => {
            let item = |body: &str| Item {
                id: String::new(),
                key: message::key_of(body),
                seq: None,
            };
            Outcome::Ok(Fields::items(messages.iter().map(|m| item(m.body.get())).collect()))
        }
        Err(error) => Outcome::Info(format!("{error:#}")),
    }
}
