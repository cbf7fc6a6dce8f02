//! The methods of the socket: what a management command asks for on a session of its own, and any other session may.
//!
//! - A session's requests are carried out one after another, in the order in which they came, and answered in that
//!   order: each gets one answer, unless the session ends before its turn.
//! - The one at hand is a future inside the session, polled between events, acks and pings and while those are
//!   written. It is never a task of its own, so it ends with the session; but what it proposed may happen all the
//!   same.
//! - The key is authorised again for each request. Reads are linearizable. Everything a caller gets wrong, and every
//!   refusal, is an answer with `ok: false`; no request ends a session.
//! - What a request says is parsed when it comes, so that what waits is small, and is never repeated at length.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;

use agentpost_proto::api::kite::rpc as wire;
use agentpost_proto::command::Permission;
use agentpost_proto::frame::ServerFrame;
use agentpost_proto::id::{self, KeyId};
use agentpost_proto::limits;
use agentpost_raft_store::core::query;
use agentpost_raft_store::disk::state::StateDb;
use axum::extract::ws::Utf8Bytes;
use axum::http::StatusCode;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::feed::Feed;
use super::feed::recent::History;
use super::frame;
use super::handshake::Opened;
use crate::server::auth::{self, Caller};
use crate::server::error::{ApiError, Result};
use crate::server::keys;
use crate::server::services::Services;
use crate::wire::json::explain;

/// How much of an unknown method's name is repeated.
const METHOD_CHARS_SHOWN: usize = 64;

/// What a request asks for.
#[derive(Debug)]
enum Call {
    Recent(wire::RecentParams),
    Stats,
    ListKeys,
    CreateKey(Box<wire::CreateKeyParams>),
    RevokeKey(wire::KeyId),
    /// Nothing that can be had: why.
    Refused(String),
}

/// The requests of one session.
pub struct Requests<'a> {
    services: &'a Services,
    key_id: KeyId,
    key_hash: [u8; 32],
    waiting: VecDeque<(String, Call)>,
    running: Option<Running<'a>>,
    answer: Option<Utf8Bytes>,
}

/// The request at hand.
struct Running<'a> {
    id: String,
    changes: Changes,
    outcome: Outcome<'a>,
}

type Outcome<'a> = Pin<Box<dyn Future<Output = Result<Value>> + Send + 'a>>;

/// What a request may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Changes {
    Nothing,
    Keys,
    /// It revokes the key of its own session.
    OwnKey,
}

impl<'a> Requests<'a> {
    /// Of a session that opened; none yet.
    pub fn new(services: &'a Services, opened: &Opened) -> Self {
        Requests {
            services,
            key_id: opened.key_id,
            key_hash: opened.key_hash,
            waiting: VecDeque::new(),
            running: None,
            answer: None,
        }
    }

    /// Whether one more may wait.
    pub fn has_room(&self) -> bool {
        self.waiting.len() < limits::RPC_REQUESTS_WAITING_MAX
    }

    /// Whether every request has its answer.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_none() && self.answer.is_none()
    }

    /// Whether the session's key is being revoked at its own wish: then the answer comes before the end.
    pub fn revokes_own_key(&self) -> bool {
        let running = self.running.as_ref();
        running.is_some_and(|running| running.changes == Changes::OwnKey)
    }

    /// Takes a request in. `bytes` is the length of its frame.
    pub fn put(&mut self, mut id: String, method: &str, params: Value, bytes: usize) {
        let call = if id.len() > limits::RPC_ID_BYTES_MAX {
            id = id[..id.floor_char_boundary(limits::RPC_ID_BYTES_MAX)].to_owned();
            Call::Refused(format!(
                "the id of a request has at most {} bytes",
                limits::RPC_ID_BYTES_MAX
            ))
        } else if bytes > limits::SMALL_REQUEST_BYTES_MAX {
            Call::Refused(format!(
                "a request has at most {} bytes",
                limits::SMALL_REQUEST_BYTES_MAX
            ))
        } else {
            Call::parse(method, params).unwrap_or_else(Call::Refused)
        };
        self.services.metrics.ws_request(call.label());
        self.waiting.push_back((id, call));
    }

    /// Begins the next request, if one waits and the one before was answered. `feed` is what the session sees.
    pub fn begin(&mut self, feed: &Feed) {
        if self.running.is_some() || self.answer.is_some() {
            return;
        }
        let Some((id, call)) = self.waiting.pop_front() else {
            return;
        };
        let changes = call.changes(self.key_id);
        let key = Key {
            services: self.services,
            hash: self.key_hash,
        };
        let outcome: Outcome<'a> = match call {
            Call::Recent(params) => boxed(key.recent(feed.clone(), params)),
            Call::Stats => boxed(key.stats()),
            Call::ListKeys => boxed(key.list_keys()),
            Call::CreateKey(params) => boxed(key.create_key(*params)),
            Call::RevokeKey(params) => boxed(key.revoke_key(params)),
            Call::Refused(why) => {
                self.answer = Some(refusal(id, why));
                return;
            }
        };
        self.running = Some(Running { id, changes, outcome });
    }

    /// Goes on with the request at hand; returns when its answer is there. Cancel-safe.
    pub async fn work(&mut self) {
        let Some(running) = &mut self.running else {
            return std::future::pending().await;
        };
        let outcome = running.outcome.as_mut().await;
        let id = std::mem::take(&mut running.id);
        self.running = None;
        self.answer = Some(match outcome {
            Ok(payload) => frame::text(&ServerFrame::Response { id, ok: true, payload }),
            Err(error) => refusal(id, said(error)),
        });
    }

    /// The answer to be written next.
    pub fn answer(&mut self) -> Option<Utf8Bytes> {
        self.answer.take()
    }

    /// Ends them all: an answer each, for a client that is told to go elsewhere.
    pub fn give_up(&mut self, why: &str) -> Vec<Utf8Bytes> {
        let running = self.running.take().map(|running| match running.changes {
            Changes::Nothing => refusal(running.id, not_carried_out(why)),
            Changes::Keys | Changes::OwnKey => refusal(running.id, unknown()),
        });
        let waiting = self.waiting.drain(..);
        let waiting = waiting.map(|(id, _)| refusal(id, not_carried_out(why)));
        self.answer.take().into_iter().chain(running).chain(waiting).collect()
    }
}

fn boxed<'a, T: Serialize>(outcome: impl Future<Output = Result<T>> + Send + 'a) -> Outcome<'a> {
    Box::pin(async move { serde_json::to_value(outcome.await?).map_err(ApiError::internal) })
}

fn refusal(id: String, error: String) -> Utf8Bytes {
    // A string always encodes.
    let payload = serde_json::to_value(wire::Refused { error }).unwrap_or_default();
    frame::text(&ServerFrame::Response { id, ok: false, payload })
}

/// An error in a sentence, by whose first words a client knows whether to ask another node. There is no idempotency
/// key here that it could try again with when nobody knows.
fn said(error: ApiError) -> String {
    match error.status {
        StatusCode::GATEWAY_TIMEOUT => unknown(),
        StatusCode::SERVICE_UNAVAILABLE => not_carried_out(&error.message),
        _ => error.message.into_owned(),
    }
}

fn not_carried_out(why: &str) -> String {
    format!("{}{why}", wire::NOT_CARRIED_OUT)
}

fn unknown() -> String {
    format!(
        "{}the request may or may not have been carried out; keys.list tells",
        wire::OUTCOME_UNKNOWN
    )
}

impl Call {
    /// The error goes to the client.
    fn parse(method: &str, params: Value) -> Result<Self, String> {
        match method {
            "events.recent" => recent_params(params).map(Call::Recent),
            "dashboard.stats" => Ok(Call::Stats),
            "keys.list" => Ok(Call::ListKeys),
            "keys.create" => read(params).map(|params| Call::CreateKey(Box::new(params))),
            "keys.revoke" => read(params).map(Call::RevokeKey),
            "hooks.list"
            | "hooks.create"
            | "hooks.deactivate"
            | "hooks.rotate_secret"
            | "hooks.github.prepare_install" => {
                Err(format!("{method} is not supported: this server takes no webhooks in"))
            }
            "" => Err("a request needs a string \"method\"".to_owned()),
            _ => {
                let shown: String = method.chars().take(METHOD_CHARS_SHOWN).collect();
                Err(format!("unknown method {shown:?}"))
            }
        }
    }

    fn changes(&self, own: KeyId) -> Changes {
        match self {
            Call::RevokeKey(params) if params.id.parse() == Ok(own) => Changes::OwnKey,
            Call::RevokeKey(_) | Call::CreateKey(_) => Changes::Keys,
            Call::Recent(_) | Call::Stats | Call::ListKeys | Call::Refused(_) => Changes::Nothing,
        }
    }

    /// Its name in the metrics.
    fn label(&self) -> &'static str {
        match self {
            Call::Recent(_) => "events.recent",
            Call::Stats => "dashboard.stats",
            Call::ListKeys => "keys.list",
            Call::CreateKey(_) => "keys.create",
            Call::RevokeKey(_) => "keys.revoke",
            Call::Refused(_) => "refused",
        }
    }
}

fn recent_params(params: Value) -> Result<wire::RecentParams, String> {
    let params: wire::RecentParams = read(params)?;
    if let Some(thread_id) = &params.thread_id {
        id::validate_opaque("thread_id", thread_id).map_err(|e| e.to_string())?;
    }
    Ok(params)
}

/// Missing and `null` params are empty ones.
fn read<T: DeserializeOwned>(params: Value) -> Result<T, String> {
    let params = match params {
        Value::Null => Value::Object(serde_json::Map::new()),
        Value::Object(_) => params,
        // serde would also take an array for a struct.
        _ => return Err("params must be a JSON object".to_owned()),
    };
    serde_json::from_value(params).map_err(|e| format!("params: {}", explain(&e)))
}

/// The session's key, about to ask for something.
#[derive(Clone, Copy)]
struct Key<'a> {
    services: &'a Services,
    hash: [u8; 32],
}

impl<'a> Key<'a> {
    /// Authorised against the very state that it reads.
    async fn reads(self) -> Result<(Arc<StateDb>, Caller)> {
        let state = self.services.replica.reader.linearizable().await?;
        self.authorized(state).await
    }

    /// As good as this node knows: apply decides again.
    async fn changes_keys(self) -> Result<Caller> {
        let (_, caller) = self.authorized(self.services.replica.reader.local()).await?;
        manages_keys(&caller)?;
        caller.require(Permission::Admin)?;
        Ok(caller)
    }

    async fn authorized(self, state: Arc<StateDb>) -> Result<(Arc<StateDb>, Caller)> {
        let (state, caller) = auth::authorize(
            &self.services.replica.reader,
            &self.services.wall_time,
            &self.hash,
            state,
        )
        .await?;
        caller.require(Permission::Read)?;
        self.services.bursts.request(&caller, self.services.wall_time.clock())?;
        Ok((state, caller))
    }

    async fn recent(self, feed: Feed, params: wire::RecentParams) -> Result<wire::Recent> {
        let (state, _) = self.reads().await?;
        let limit = params.limit.unwrap_or(limits::RECENT_EVENTS_DEFAULT);
        let mut history = History::before(params.before_seq.unwrap_or(u64::MAX), limit, params.thread_id);
        while feed.recall(&*state, &mut history)? {
            tokio::task::yield_now().await;
        }
        Ok(history.page())
    }

    async fn stats(self) -> Result<wire::Stats> {
        let (state, caller) = self.reads().await?;
        let (team, wall_ms) = (caller.team, self.services.wall_time.now_ms());
        let key = query::key::by_id(&*state, team, caller.key_id)?.ok_or_else(auth::refused)?;
        Ok(wire::Stats {
            team_id: team.to_string(),
            webhooks_today: query::team::events_today(&*state, team, wall_ms)?,
            active_endpoints: query::team::head(&*state, team)?.endpoints.into(),
            active_api_keys: query::key::count_active(&*state, team, wall_ms)?,
            current_key_permissions: keys::permission_names(&key),
            plan_name: "self-hosted".to_owned(),
            active_sources_limit: limits::TOPICS_MAX.into(),
        })
    }

    async fn list_keys(self) -> Result<wire::KeyList> {
        let (state, caller) = self.reads().await?;
        manages_keys(&caller)?;
        keys::listed(&*state, caller.team)
    }

    async fn create_key(self, params: wire::CreateKeyParams) -> Result<wire::CreatedKey> {
        let caller = self.changes_keys().await?;
        keys::create(self.services, &caller, caller.team, keys::wanted(params)).await
    }

    async fn revoke_key(self, params: wire::KeyId) -> Result<wire::KeyId> {
        let caller = self.changes_keys().await?;
        keys::revoke_own(self.services, &caller, &params.id).await?;
        Ok(params)
    }
}

/// A key that acts for one agent has no business with those of the others.
fn manages_keys(caller: &Caller) -> Result<()> {
    match caller.bound_agent {
        Some(_) => Err(ApiError::forbidden(
            "this API key is bound to an agent: it cannot manage keys",
        )),
        None => Ok(()),
    }
}
