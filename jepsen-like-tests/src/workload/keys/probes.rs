//! Two teams whose agents and topics have the same names. Each sends, publishes and listens, and with its keys
//! requests the other's data: by every route that takes an id, and by the names that they share.

use std::time::{Duration, Instant};

use agentpost::api::abbababa::{ListResponse, SendRequest};
use agentpost::api::kite;
use agentpost::http::Request;
use agentpost::retry::RetryPolicy;
use agentpost::{Agent, Agentpost, Error, Permission, WebhookEvent};
use anyhow::{Context as _, Result};
use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::json;

use super::shared_key::{SINK, WRITER, to};
use crate::cluster::Team;
use crate::record::history::{Fields, Item, Lane, Op, Outcome};
use crate::workload::ask::{self, NodeClients, RequestOutcome};
use crate::workload::context::ClientContext;
use crate::workload::load::{Load, StopFlag};
use crate::workload::message;

/// The agents of both teams.
pub const AGENTS: [&str; 4] = [SINK, WRITER, LISTENER, HOOKED];
/// Subscribed to [`TOPIC`] in its own team.
const LISTENER: &str = "listener";
/// Has a webhook at which no server listens.
const HOOKED: &str = "hooked";
const TOPIC: &str = "news";
/// Time between two requests of a lane.
const GAP: Duration = Duration::from_millis(30);
/// Time limit for the first message to get its delivery.
const PATIENCE: Duration = Duration::from_secs(20);

/// A team and the ids of its data that another team probes.
#[derive(Clone)]
pub struct Tenant {
    /// The prefix of its names in the history.
    pub name: &'static str,
    /// The team with a key that may write.
    pub team: Team,
    /// A key that administers the team.
    admin_key: String,
    /// A key that may only read, and one that is bound to [`WRITER`].
    read_key: String,
    bound_key: String,
    message: String,
    delivery: String,
    key: String,
}

impl Tenant {
    /// Creates a team with a message, a delivery and keys.
    pub async fn create(ctx: &ClientContext, name: &'static str) -> Result<Self> {
        let operator = ctx.operator()?;
        let team = ctx.team(name, None).await?;
        let key = |permission: &str| {
            let key = operator.create_key(&team.id, permission);
            key.permission(Permission::from(permission))
        };
        let (admin, read, bound) = (
            key("admin").await?,
            key("read").await?,
            key("write").agent(WRITER).await?,
        );
        let hooked = Agentpost::builder(ctx.urls.join(" "))
            .key(&team.key)
            .build()?
            .agent(HOOKED);
        // No server listens at this port.
        let url = format!("http://{}:1024/", ctx.host);
        let webhook = hooked.webhook().set(&url).events([WebhookEvent::MessageReceived]);
        webhook.await.context("a webhook")?;
        let first = format!("{name}/first");
        let mut lane = ctx.recorder.lane();
        let asked = Fields {
            key: Some(first.clone()),
            ..named("write")
        };
        lane.invoke(None, Op::KeyUse, format!("{name}/own"), asked);
        let message = hooked.draft(to(HOOKED, &first)?).await?.id;
        lane.end(Outcome::Ok(Fields::default()));
        Ok(Tenant {
            name,
            message,
            delivery: first_delivery(&hooked).await?,
            admin_key: admin.api_key.into(),
            read_key: read.api_key.into(),
            key: read.id,
            bound_key: bound.api_key.into(),
            team,
        })
    }

    /// A name in the history.
    fn full(&self, name: &str) -> String {
        format!("{}/{name}", self.name)
    }

    /// The ids of this team's data.
    fn wanted(&self) -> Ids<'_> {
        Ids {
            message: &self.message,
            delivery: &self.delivery,
            key: &self.key,
            team: &self.team.id,
        }
    }
}

async fn first_delivery(client: &Agent) -> Result<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let page = client.deliveries().await?;
        if let Some(row) = page.deliveries.first() {
            return Ok(row.id.clone());
        }
        anyhow::ensure!(Instant::now() < deadline, "a message to a webhook has no delivery");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Ids for the requests that take one.
#[derive(Clone, Copy)]
struct Ids<'a> {
    message: &'a str,
    delivery: &'a str,
    key: &'a str,
    team: &'a str,
}

/// Well-formed ids that were never assigned.
const ABSENT: Ids<'static> = Ids {
    message: "msg_00000000000070008000000000000000",
    delivery: "dlv_00000000000000000000000000000000",
    key: "key_00000000000000000000000000000000",
    team: "team_00000000000000000000000000000001",
};

/// Starts the traffic of both teams, and the probes of each team against the other.
pub fn start(ctx: &ClientContext, tenants: &[Tenant; 2], load: &mut Load) -> Result<()> {
    for (tenant, other) in [(&tenants[0], &tenants[1]), (&tenants[1], &tenants[0])] {
        let lane = ctx.recorder.lane();
        let traffic = TenantTraffic {
            tenant: tenant.clone(),
            nodes: NodeClients::new(ctx, &tenant.team.key, WRITER)?,
            listener: NodeClients::new(ctx, &tenant.team.key, LISTENER)?,
            random: ask::random(ctx, lane.number()),
            lane,
        };
        load.spawn(traffic.run(load.stop()));
        let lane = ctx.recorder.lane();
        let prober = Prober {
            own: tenant.clone(),
            other: other.clone(),
            writer: NodeClients::new(ctx, &tenant.team.key, HOOKED)?,
            admin: NodeClients::new(ctx, &tenant.admin_key, HOOKED)?,
            reader: NodeClients::new(ctx, &tenant.read_key, WRITER)?,
            bound: NodeClients::new(ctx, &tenant.bound_key, WRITER)?,
            random: ask::random(ctx, lane.number()),
            lane,
        };
        load.spawn(prober.run(load.stop()));
    }
    Ok(())
}

/// The publishes of a team, and a listener that subscribes and unsubscribes.
struct TenantTraffic {
    tenant: Tenant,
    nodes: NodeClients,
    listener: NodeClients,
    lane: Lane,
    random: StdRng,
}

impl TenantTraffic {
    async fn run(mut self, stop: StopFlag) -> Result<()> {
        let topic = self.tenant.full(TOPIC);
        for number in 0.. {
            if stop.is_set() {
                break;
            }
            if self.random.random_bool(0.1) {
                let comes = self.random.random_bool(0.7);
                let (node, client) = self.listener.any(&mut self.random);
                let asked = named(&self.tenant.full(LISTENER));
                let op = if comes { Op::Subscribe } else { Op::Unsubscribe };
                self.lane.invoke(Some(node), op, &topic, asked);
                let response = match comes {
                    true => client.subscribe(TOPIC).await.map(drop),
                    false => client.unsubscribe(TOPIC).await,
                };
                self.lane
                    .end(RequestOutcome::of(response)?.outcome(|()| Fields::default()));
            }
            let key = self.tenant.full(&format!("{}-{number}", self.lane.number()));
            let asked = Fields {
                key: Some(key.clone()),
                ..named(&self.tenant.full(WRITER))
            };
            self.lane.invoke(None, Op::Publish, &topic, asked);
            let message = SendRequest {
                topic: Some(TOPIC.to_owned()),
                ..ask::note(&key)?
            };
            let response = ask::retry_until_decided(&self.nodes, &mut self.random, &stop, |client| {
                let message = message.clone();
                async move { client.draft(message).await }
            });
            self.lane.end(response.await?.outcome(|sent| Fields::id(sent.id)));
            tokio::time::sleep(GAP).await;
        }
        Ok(())
    }
}

fn named(name: &str) -> Fields {
    Fields {
        name: Some(name.to_owned()),
        ..Fields::default()
    }
}

/// Requests the data of one team with the keys of another.
struct Prober {
    own: Tenant,
    other: Tenant,
    writer: NodeClients,
    admin: NodeClients,
    reader: NodeClients,
    bound: NodeClients,
    lane: Lane,
    random: StdRng,
}

impl Prober {
    async fn run(mut self, stop: StopFlag) -> Result<()> {
        while !stop.is_set() {
            match self.random.random_range(0..4) {
                0 => self.by_name().await?,
                1 => self.beyond_its_rights().await?,
                2 if self.random.random_bool(0.3) => self.by_socket().await?,
                _ => self.by_id().await?,
            }
            tokio::time::sleep(GAP).await;
        }
        Ok(())
    }

    /// Requests a route that takes an id, with an id of the other team or an absent one.
    async fn by_id(&mut self) -> Result<()> {
        let exists = self.random.random_bool(0.6);
        let other = self.other.clone();
        let ids = if exists { other.wanted() } else { ABSENT };
        let (for_writers, for_admins) = (writers_routes(ids)?, admins_routes(ids)?);
        let number = self.random.random_range(0..for_writers.len() + for_admins.len());
        let (nodes, (route, request)) = match number.checked_sub(for_writers.len()) {
            None => (&self.writer, &for_writers[number]),
            Some(number) => (&self.admin, &for_admins[number]),
        };
        let (node, client) = nodes.any(&mut self.random);
        let asked = Fields {
            id: Some(if exists { "foreign" } else { "absent" }.to_owned()),
            ..named(self.own.name)
        };
        self.lane.invoke(Some(node), Op::Probe, *route, asked);
        let response = RequestOutcome::of(client.request(request).await)?;
        self.lane.end(response.outcome(|_| Fields::default()));
        Ok(())
    }

    /// The same over a socket: a key of another team, and another team.
    async fn by_socket(&mut self) -> Result<()> {
        let exists = self.random.random_bool(0.6);
        let ids = if exists { self.other.wanted() } else { ABSENT };
        let revokes = self.random.random_bool(0.5);
        let (node, client) = self.admin.any(&mut self.random);
        let post = Agentpost::builder(&client.post().urls()[0])
            .key(&self.own.admin_key)
            .team(if revokes { &self.own.team.id } else { ids.team })
            .retry(RetryPolicy::once());
        let kite = post.build()?.kite();
        let asked = Fields {
            id: Some(if exists { "foreign" } else { "absent" }.to_owned()),
            ..named(self.own.name)
        };
        let route = if revokes { "keys.revoke" } else { "dashboard.stats" };
        self.lane.invoke(Some(node), Op::Probe, route, asked);
        let result = match revokes {
            true => kite.revoke_key(ids.key).await.map(drop),
            false => kite.stats().await.map(drop),
        };
        self.lane.end(match result {
            // This API has no status; the error corresponds to a 4xx elsewhere.
            Err(Error::Declined(why)) => Outcome::Fail(format!("400 {why}")),
            Err(Error::Session { code, message }) => Outcome::Fail(format!("{code} {message}")),
            other => RequestOutcome::of(other)?.outcome(|()| Fields::default()),
        });
        Ok(())
    }

    /// Reads the inbox of an agent whose name both teams have: each must see its own.
    async fn by_name(&mut self) -> Result<()> {
        let agent = AGENTS[self.random.random_range(0..AGENTS.len())];
        let (node, client) = self.writer.any(&mut self.random);
        self.lane
            .invoke(Some(node), Op::Probe, "GET messages", named(self.own.name));
        let request = Request::get("/v1/messages?limit=20&order=desc").agent(agent);
        let outcome = match RequestOutcome::of(client.request(&request).await)? {
            RequestOutcome::Done(answer) => {
                let page: ListResponse = serde_json::from_str(&answer.body).context("a page of an inbox")?;
                let item = |body: &str| Item {
                    id: String::new(),
                    key: message::key_of(body),
                    seq: None,
                };
                Outcome::Ok(Fields::items(
                    page.messages.iter().map(|m| item(m.body.get())).collect(),
                ))
            }
            other => other.outcome(|_| Fields::default()),
        };
        self.lane.end(outcome);
        Ok(())
    }

    /// Requests that exceed the rights of a key within its own team.
    async fn beyond_its_rights(&mut self) -> Result<()> {
        let message = to(SINK, &self.own.full("never"))?;
        let requests = [
            (
                &self.reader,
                "a read key sends",
                Request::post("/v1/messages").json(&message)?,
            ),
            (
                &self.bound,
                "a bound key reads as another",
                Request::get("/v1/messages").agent(SINK),
            ),
            (
                &self.bound,
                "a bound key sends as another",
                Request::post("/v1/messages").json(&message)?.agent(SINK),
            ),
            (&self.writer, "a write key rotates", Request::post("/v2/keys/rotate")),
        ];
        let (nodes, route, request) = &requests[self.random.random_range(0..requests.len())];
        let (node, client) = nodes.any(&mut self.random);
        let asked = Fields {
            id: Some("forbidden".to_owned()),
            ..named(self.own.name)
        };
        self.lane.invoke(Some(node), Op::Probe, *route, asked);
        let response = RequestOutcome::of(client.request(request).await)?;
        self.lane.end(response.outcome(|_| Fields::default()));
        Ok(())
    }
}

type Routes = Vec<(&'static str, Request)>;

/// Routes of agents that take an id.
fn writers_routes(ids: Ids<'_>) -> Result<Routes> {
    let (message, delivery) = (ids.message, ids.delivery);
    let kite = kite::SendRequest {
        from: WRITER.to_owned(),
        to: SINK.to_owned(),
        body: "never".to_owned(),
        thread_id: None,
        reply_to_id: None,
    };
    let kite_path = format!("/api/v1/agents/messages?team_id={}", ids.team);
    Ok(vec![
        ("GET message", Request::get(format!("/v1/messages/{message}"))),
        (
            "PATCH message",
            Request::patch(format!("/v1/messages/{message}")).json(&json!({ "read": true }))?,
        ),
        ("GET receipt", Request::get(format!("/v1/messages/{message}/receipt"))),
        ("GET delivery", Request::get(format!("/v1/deliveries/{delivery}"))),
        ("DELETE delivery", Request::delete(format!("/v1/deliveries/{delivery}"))),
        (
            "POST redrive",
            Request::post(format!("/v1/deliveries/{delivery}/redrive")),
        ),
        ("POST kite message", Request::post(kite_path).json(&kite)?),
    ])
}

/// Routes of team administrators that take an id.
fn admins_routes(ids: Ids<'_>) -> Result<Routes> {
    let Ids {
        delivery, key, team, ..
    } = ids;
    let wanted = json!({ "name": "never", "permissions": ["admin"] });
    let limits = json!({ "limits": { "daily_sends": 1 } });
    let admin = "/admin/v1";
    Ok(vec![
        (
            "PATCH team",
            Request::patch(format!("{admin}/teams/{team}")).json(&limits)?,
        ),
        (
            "POST key",
            Request::post(format!("{admin}/teams/{team}/keys")).json(&wanted)?,
        ),
        ("GET keys", Request::get(format!("{admin}/teams/{team}/keys"))),
        ("DELETE key", Request::delete(format!("{admin}/keys/{key}"))),
        (
            "GET signing keys",
            Request::get(format!("{admin}/teams/{team}/signing-keys")),
        ),
        (
            "POST rotate",
            Request::post(format!("{admin}/teams/{team}/signing-keys/rotate")),
        ),
        (
            "GET team's deliveries",
            Request::get(format!("{admin}/deliveries?team={team}")),
        ),
        (
            "GET team's delivery",
            Request::get(format!("{admin}/deliveries/{delivery}?team={team}")),
        ),
        (
            "DELETE team's delivery",
            Request::delete(format!("{admin}/deliveries/{delivery}?team={team}")),
        ),
        (
            "POST team's redrive",
            Request::post(format!("{admin}/deliveries/{delivery}/redrive?team={team}")),
        ),
    ])
}
