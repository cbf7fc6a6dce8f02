//! Workload G: operators create and revoke keys while clients use them through random nodes; and two teams with
//! agents and topics of the same names request each other's data. At the end every inbox is read.

mod listener;
mod probes;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agentpost::api::abbababa::SendRequest;
use agentpost::api::admin::CreateKey;
use agentpost::client::Request;
use agentpost::retry::RetryPolicy;
use agentpost::rpc::{Options, Rpc};
use agentpost::urls::ws_url;
use agentpost::{Client, Error, Secret};
use anyhow::{Context as _, Result};
use jiff::{SignedDuration, Timestamp};
use rand::RngExt;
use rand::rngs::StdRng;

use self::probes::Tenant;
use super::ask::{self, Nodes, Told};
use super::{Load, Stop, send};
use crate::history::{Fields, Item, Lane, Op, Outcome};
use crate::world::{Team, World};

/// The number of operators; each has one key at a time.
const OPERATORS: usize = 8;
/// The number of clients that use the current keys.
const USERS: u64 = 8;
/// Uses per second of all clients at most: the linear-order search examines each.
const RATE_MAX: u64 = 400;
/// How long a revoked key is still tried.
const AFTERWARDS: Duration = Duration::from_millis(1_500);
/// The receiver of the messages that the keys write.
const SINK: &str = "sink";
/// The agent that keys are bound to, and that unbound keys act as.
const WRITER: &str = "writer";

/// Starts operators, users, and two teams that probe each other.
pub async fn start(world: &World) -> Result<Load> {
    let tenants = [
        Tenant::create(world, "keys-a").await?,
        Tenant::create(world, "keys-b").await?,
    ];
    let audited = tenants.clone();
    let mut load = Load::new(move |world| async move {
        for tenant in &audited {
            audit(&world, tenant).await?;
        }
        Ok(())
    });
    probes::start(world, &tenants, &mut load)?;
    let board = Board::default();
    for number in 0..OPERATORS {
        let lane = world.recorder.lane();
        let tenant = &tenants[number % tenants.len()];
        let operator = Operator {
            nodes: Nodes::new(world, &world.admin_key, "operator")?,
            team: tenant.team.clone(),
            of: tenant.name,
            random: ask::random(world, lane.number()),
            lane,
            world: world.clone(),
            board: board.clone(),
        };
        load.spawn(operator.run(load.stop()));
    }
    for _ in 0..USERS {
        let lane = world.recorder.lane();
        let rate = if world.rate == 0 {
            RATE_MAX
        } else {
            world.rate.min(RATE_MAX)
        };
        let user = User {
            random: ask::random(world, lane.number()),
            lane,
            board: board.clone(),
            gap: send::pace(rate, USERS, 1),
        };
        load.spawn(user.run(load.stop()));
    }
    Ok(load)
}

/// The keys that users may try now.
#[derive(Clone, Default)]
struct Board(Arc<Mutex<Vec<Arc<Lent>>>>);

/// A key that users may try.
struct Lent {
    /// Its name in the history.
    name: String,
    team: String,
    secret: Secret,
    nodes: Nodes,
    writes: bool,
}

impl Board {
    fn change(&self, change: impl FnOnce(&mut Vec<Arc<Lent>>)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn any(&self, random: &mut StdRng) -> Option<Arc<Lent>> {
        let lent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (!lent.is_empty()).then(|| lent[random.random_range(0..lent.len())].clone())
    }
}

/// Creates a key, lets users try it, revokes it, and lets them try it a little longer.
struct Operator {
    world: World,
    nodes: Nodes,
    team: Team,
    /// The name of the team.
    of: &'static str,
    lane: Lane,
    random: StdRng,
    board: Board,
}

impl Operator {
    async fn run(mut self, stop: Stop) -> Result<()> {
        for number in 0.. {
            if stop.is_set() {
                break;
            }
            let name = format!("{}/{}-{number}", self.of, self.lane.number());
            let Some((id, lent)) = self.create(&name).await? else {
                self.pause(100..300).await;
                continue;
            };
            let lent = Arc::new(lent);
            self.board.change(|board| board.push(lent.clone()));
            let over = Stop::default();
            let listener = self.random.random_bool(0.5).then(|| {
                let lane = self.world.recorder.lane();
                tokio::spawn(listener::listen(self.world.clone(), lane, lent.clone(), over.clone()))
            });
            self.pause(100..2_500).await;
            self.lane.invoke(None, Op::KeyRevoke, &name, Fields::default());
            let told = ask::until_told(&self.nodes, &mut self.random, &stop, |client| {
                let id = id.clone();
                async move { client.revoke_key(&id).await }
            });
            self.lane.end(told.await?.outcome(|()| Fields::default()));
            tokio::time::sleep(AFTERWARDS).await;
            self.board
                .change(|board| board.retain(|other| !Arc::ptr_eq(other, &lent)));
            over.set();
            if let Some(listener) = listener {
                listener.await.context("a client panicked")??;
            }
        }
        Ok(())
    }

    /// Creates a key with random properties; `None` if the outcome is not a success.
    async fn create(&mut self, name: &str) -> Result<Option<(String, Lent)>> {
        let writes = self.random.random_bool(0.7);
        let bound = self.random.random_bool(0.5);
        let life = self.random.random_bool(0.25).then(|| self.random.random_range(1..3));
        let wanted = CreateKey {
            name: name.to_owned(),
            permissions: vec![if writes { "write" } else { "read" }.to_owned()],
            agent_id: bound.then(|| WRITER.to_owned()),
            scopes: self.random.random_bool(0.3).then(|| vec![format!("agent_to:{WRITER}")]),
            expires_at: life.map(|s| (Timestamp::now() + SignedDuration::from_secs(s)).to_string()),
        };
        let (node, client) = self.nodes.any(&mut self.random);
        let asked = Fields {
            n: life.map(|s| s as u64 * 1_000_000_000),
            ..Fields::default()
        };
        self.lane.invoke(Some(node), Op::KeyCreate, name, asked);
        let created = match Told::of(client.create_key(&self.team.id, &wanted).await)? {
            Told::Done(created) => created,
            other => {
                self.lane.end(other.outcome(|_| Fields::default()));
                return Ok(None);
            }
        };
        self.lane.end(Outcome::Ok(Fields::id(&created.id)));
        let lent = Lent {
            name: name.to_owned(),
            team: self.team.id.clone(),
            nodes: Nodes::new(&self.world, &created.api_key, WRITER)?,
            secret: created.api_key,
            writes,
        };
        Ok(Some((created.id, lent)))
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
    board: Board,
    gap: Duration,
}

impl User {
    async fn run(mut self, stop: Stop) -> Result<()> {
        let mut number = 0;
        while !stop.is_set() {
            let next = tokio::time::Instant::now() + self.gap;
            if let Some(lent) = self.board.any(&mut self.random) {
                self.try_key(&lent, number).await?;
                number += 1;
            }
            tokio::time::sleep_until(next.max(tokio::time::Instant::now() + Duration::from_millis(1))).await;
        }
        Ok(())
    }

    async fn try_key(&mut self, lent: &Lent, number: u64) -> Result<()> {
        let ways = ["read", "read", "local", "local", "socket", "write", "write", "write"];
        let way = ways[self.random.random_range(0..if lent.writes { ways.len() } else { 5 })];
        let team = lent.name.split('/').next().unwrap_or_default();
        let key = format!("{team}/{}-{number}", self.lane.number());
        let asked = Fields {
            name: Some(way.to_owned()),
            key: (way == "write").then(|| key.clone()),
            ..Fields::default()
        };
        let (node, client) = lent.nodes.any(&mut self.random);
        self.lane.invoke(Some(node), Op::KeyUse, &lent.name, asked);
        let result = match way {
            "read" => client.request(&Request::get("/v1/messages?limit=1")).await.map(drop),
            "local" => {
                let request = Request::get("/v1/messages?limit=1&consistency=local");
                client.request(&request).await.map(drop)
            }
            "socket" => socket(lent, &client.urls()[0])?.stats().await.map(drop),
            _ => client.send(to(SINK, &key)?).await.map(drop),
        };
        self.lane.end(match result {
            // Code 4001 is the equivalent of status 401 on a socket.
            Err(Error::Session { code: 4001, message }) => Outcome::Fail(format!("401 {message}")),
            result => Told::of(result)?.outcome(|()| Fields::default()),
        });
        Ok(())
    }
}

/// A client for methods over a socket to one node.
fn socket(lent: &Lent, url: &str) -> Result<Rpc> {
    let rpc = Rpc::new(Options {
        urls: vec![ws_url(url)?],
        token: lent.secret.clone(),
        team_id: lent.team.clone(),
    })?;
    Ok(rpc.retry(RetryPolicy::once()))
}

fn to(agent: &str, key: &str) -> Result<SendRequest> {
    Ok(SendRequest {
        to_agent_id: Some(agent.to_owned()),
        ..ask::note(key)?
    })
}

/// Reads every inbox of a team from every node.
async fn audit(world: &World, tenant: &Tenant) -> Result<()> {
    let mut lane = world.recorder.lane();
    for node in 1..=world.nodes() {
        let client = world.node(node, &tenant.team.key, SINK)?;
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

async fn inbox(client: &Client, agent: &str) -> Outcome {
    match ask::whole_inbox(client, agent).await {
        Ok(messages) => {
            let item = |body: &str| Item {
                id: String::new(),
                key: send::key_of(body),
                seq: None,
            };
            Outcome::Ok(Fields::items(messages.iter().map(|m| item(m.body.get())).collect()))
        }
        Err(error) => Outcome::Info(format!("{error:#}")),
    }
}
