//! The request methods of the socket. A management command uses them on its own session, but every session may.
//!
//! - A session's requests are executed one after another, in order of arrival, and answered in that order. Each gets
//!   one answer, unless the session ends before its turn.
//! - The current request is a future inside the session. It is polled between events, acks and pings, and while those
//!   are written. It is not a separate task, so it ends with the session, but an operation that it proposed may still
//!   be applied.
//! - The key is authorised again for each request. Reads are linearizable. Every error of the caller and every refusal
//!   is an answer with `ok: false`; no request ends a session.
//! - A request is parsed when it arrives, so a waiting request is small. Answers never repeat long parts of a request.
//! - A request that changes keys is charged to the node's budget for the bytes of its frame, from its arrival to its
//!   answer. Beyond the team's share or the budget it is refused at once, in its turn.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;

use agentpost_proto::api::kite::rpc as wire;
use agentpost_proto::command::Permission;
use agentpost_proto::frame::ServerFrame;
use agentpost_proto::id::{self, KeyId, TeamId};
use agentpost_proto::limits;
use agentpost_raft_store::core::kv::Kv;
use agentpost_raft_store::core::query;
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
use crate::server::services::{SMALL_REQUEST_BYTES_MAX, Services};
use crate::shard::budget::{Payer, Permit};
use crate::shard::local_state::LocalState;
use crate::wire::json::explain;

/// Upper bound on the RPC requests that wait in one session. Beyond it the session reads no further request.
pub const REQUESTS_WAITING_MAX: usize = 16;
/// Upper bound on the bytes of the id of an RPC request, which is kept in memory until the request is answered.
const ID_BYTES_MAX: usize = 128;
/// The most characters of an unknown method's name that the answer repeats.
const METHOD_CHARS_SHOWN: usize = 64;

/// A parsed request.
enum Call {
    Recent(wire::RecentParams),
    Stats,
    ListKeys,
    CreateKey(Box<wire::CreateKeyParams>, Permit),
    RevokeKey(wire::KeyId, Permit),
    /// An invalid request, with the reason.
    Refused(String),
}

/// The requests of one session.
pub struct Requests<'a> {
    services: &'a Services,
    team: TeamId,
    key_id: KeyId,
    key_hash: [u8; 32],
    waiting: VecDeque<(String, Call)>,
    running: Option<Running<'a>>,
    answer: Option<Utf8Bytes>,
}

/// The current request.
struct Running<'a> {
    id: String,
    changes: Changes,
    outcome: Outcome<'a>,
}

type Outcome<'a> = Pin<Box<dyn Future<Output = Result<Value>> + Send + 'a>>;

/// The keys that a request changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Changes {
    Nothing,
    Keys,
    /// The request revokes the key of its own session.
    OwnKey,
}

impl<'a> Requests<'a> {
    /// Creates the empty queue of a new session.
    pub fn new(services: &'a Services, opened: &Opened) -> Self {
        Requests {
            services,
            team: opened.team,
            key_id: opened.key_id,
            key_hash: opened.key_hash,
            waiting: VecDeque::new(),
            running: None,
            answer: None,
        }
    }

    /// Whether one more request may be queued.
    pub fn has_room(&self) -> bool {
        self.waiting.len() < REQUESTS_WAITING_MAX
    }

    /// Whether every request was answered.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_none() && self.answer.is_none()
    }

    /// Whether a request of the session is revoking its own key: then its answer is sent before the session ends.
    pub fn revokes_own_key(&self) -> bool {
        let running = self.running.as_ref();
        running.is_some_and(|running| running.changes == Changes::OwnKey)
    }

    /// Queues a request. `bytes` is the length of its frame.
    pub fn put(&mut self, mut id: String, method: &str, params: Value, bytes: usize) {
        let call = if id.len() > ID_BYTES_MAX {
            id = id[..id.floor_char_boundary(ID_BYTES_MAX)].to_owned();
            Call::Refused(format!("the id of a request has at most {ID_BYTES_MAX} bytes"))
        } else if bytes > SMALL_REQUEST_BYTES_MAX {
            Call::Refused(format!("a request has at most {SMALL_REQUEST_BYTES_MAX} bytes"))
        } else {
            let proposer = &self.services.replica.proposer;
            let admit = || proposer.admit(Payer::Team(self.team), bytes);
            Call::parse(method, params, || admit().map_err(|error| said(error.into()))).unwrap_or_else(Call::Refused)
        };
        self.services.metrics.ws.request(call.label());
        self.waiting.push_back((id, call));
    }

    /// Starts the next queued request once the one before was answered. `feed` is the events of the session.
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
            Call::CreateKey(params, permit) => boxed(key.create_key(*params, permit)),
            Call::RevokeKey(params, permit) => boxed(key.revoke_key(params, permit)),
            Call::Refused(why) => {
                self.answer = Some(refusal(id, why));
                return;
            }
        };
        self.running = Some(Running { id, changes, outcome });
    }

    /// Advances the current request; returns when its answer is ready. Cancel-safe.
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

    /// Takes the next answer to be written.
    pub fn answer(&mut self) -> Option<Utf8Bytes> {
        self.answer.take()
    }

    /// Answers every open request, for a client that is sent to another node.
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

/// Describes an error in a sentence whose first words tell a client whether to retry on another node. Requests have no
/// idempotency key, so a client cannot safely retry when the outcome is unknown.
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
    /// Parses a request, and admits it if it changes keys. The error is sent to the client.
    fn parse(method: &str, params: Value, admit: impl FnOnce() -> Result<Permit, String>) -> Result<Self, String> {
        match method {
            "events.recent" => recent_params(params).map(Call::Recent),
            "dashboard.stats" => Ok(Call::Stats),
            "keys.list" => Ok(Call::ListKeys),
            "keys.create" => Ok(Call::CreateKey(Box::new(read(params)?), admit()?)),
            "keys.revoke" => Ok(Call::RevokeKey(read(params)?, admit()?)),
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
            Call::RevokeKey(params, _) if params.id.parse() == Ok(own) => Changes::OwnKey,
            Call::RevokeKey(..) | Call::CreateKey(..) => Changes::Keys,
            Call::Recent(_) | Call::Stats | Call::ListKeys | Call::Refused(_) => Changes::Nothing,
        }
    }

    /// The name of the method in the metrics.
    fn label(&self) -> &'static str {
        match self {
            Call::Recent(_) => "events.recent",
            Call::Stats => "dashboard.stats",
            Call::ListKeys => "keys.list",
            Call::CreateKey(..) => "keys.create",
            Call::RevokeKey(..) => "keys.revoke",
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

/// Parses the params; missing and `null` params count as empty.
fn read<T: DeserializeOwned>(params: Value) -> Result<T, String> {
    let params = match params {
        Value::Null => Value::Object(serde_json::Map::new()),
        Value::Object(_) => params,
        // serde would also accept an array as a struct.
        _ => return Err("params must be a JSON object".to_owned()),
    };
    serde_json::from_value(params).map_err(|e| format!("params: {}", explain(&e)))
}

/// The context of one request: the session's key and the services that it uses.
#[derive(Clone, Copy)]
struct Key<'a> {
    services: &'a Services,
    hash: [u8; 32],
}

impl<'a> Key<'a> {
    /// Authorises a read. What waits for a place on the pool of reads is authorised again, see [`Self::read`].
    async fn reads(self) -> Result<(LocalState, Caller)> {
        let state = self.services.replica.reader.linearizable().await?;
        self.authorized(state).await
    }

    /// Authorises a write from this node's state; apply checks it again.
    async fn changes_keys(self) -> Result<Caller> {
        let (_, caller) = self.authorized(self.services.replica.reader.local()).await?;
        manages_keys(&caller)?;
        caller.require(Permission::Admin)?;
        Ok(caller)
    }

    async fn authorized(self, state: LocalState) -> Result<(LocalState, Caller)> {
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

    /// Runs `read` on the pool of reads. It is authorised against the state that it reads.
    async fn read<T: Send + 'static>(
        self,
        state: &LocalState,
        team: TeamId,
        read: impl FnOnce(&dyn Kv) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        auth::read(state, team, self.hash, &self.services.wall_time, read).await
    }

    async fn recent(self, feed: Feed, params: wire::RecentParams) -> Result<wire::Recent> {
        let (state, caller) = self.reads().await?;
        let limit = params.limit.unwrap_or(wire::RECENT_EVENTS_DEFAULT);
        let mut history = History::before(params.before_seq.unwrap_or(u64::MAX), limit, params.thread_id);
        let feed = Arc::new(feed);
        // Each step is a turn of its own on the pool of reads.
        loop {
            let feed = Arc::clone(&feed);
            let wall_ms = self.services.wall_time.now_ms();
            let step = self.read(&state, caller.team, move |state| {
                let more = feed.recall(&state, &mut history, wall_ms)?;
                Ok((history, more))
            });
            let (read, more) = step.await?;
            if !more {
                return Ok(read.page());
            }
            history = read;
        }
    }

    async fn stats(self) -> Result<wire::Stats> {
        let (state, caller) = self.reads().await?;
        let (team, wall_ms) = (caller.team, self.services.wall_time.now_ms());
        let key = query::key::by_id(&state, team, caller.key_id)?.ok_or_else(auth::refused)?;
        let counted = self.read(&state, team, move |state| {
            Ok(query::key::count_active(&state, team, wall_ms)?)
        });
        Ok(wire::Stats {
            team_id: team.to_string(),
            webhooks_today: query::team::events_today(&state, team, wall_ms)?,
            active_endpoints: query::team::head(&state, team)?.endpoints.into(),
            active_api_keys: counted.await?,
            current_key_permissions: keys::permission_names(&key),
            plan_name: "self-hosted".to_owned(),
            active_sources_limit: limits::TOPICS_MAX.into(),
        })
    }

    async fn list_keys(self) -> Result<wire::KeyList> {
        let (state, caller) = self.reads().await?;
        manages_keys(&caller)?;
        let team = caller.team;
        self.read(&state, team, move |state| keys::listed(state, team)).await
    }

    async fn create_key(self, params: wire::CreateKeyParams, permit: Permit) -> Result<wire::CreatedKey> {
        let caller = self.changes_keys().await?;
        keys::create(self.services, &caller, &permit, caller.team, keys::wanted(params)).await
    }

    async fn revoke_key(self, params: wire::KeyId, permit: Permit) -> Result<wire::KeyId> {
        let caller = self.changes_keys().await?;
        keys::revoke_own(self.services, &caller, &permit, &params.id).await?;
        Ok(params)
    }
}

/// Refuses a key that is bound to an agent, because it must not manage the keys of others.
fn manages_keys(caller: &Caller) -> Result<()> {
    match caller.bound_agent {
        Some(_) => Err(ApiError::forbidden(
            "this API key is bound to an agent: it cannot manage keys",
        )),
        None => Ok(()),
    }
}
