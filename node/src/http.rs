//! The client port: routes, and what all of them share. The doors translate and decide nothing: a handler
//! takes its input apart, makes one call, and converts the result.
//!
//! - [`abbababa`], [`kite`], [`admin`], [`signing`], [`health`]: the faces, each with its own shapes;
//!   [`agents`]: who is there; [`login`], [`activate`]: how devices get a key, and the page for whoever lets them in;
//!   `deliveries`, [`keys`]: what two doors show alike;
//! - [`auth`]: who is calling; [`error`]: the one map from what can go wrong to HTTP;
//! - [`ratelimit`]: what the Abba Baba face says about quotas; [`burst`]: what a key may ask of this node at once;
//! - [`body`], [`json`], [`cursor`]: strict input and opaque output; [`serve`]: connections and their bounds.
//!
//! **Invariant**: every answer is JSON (but `/metrics`, and the files of `/activate`), and no bad input makes a 5xx.

pub mod abbababa;
pub mod activate;
pub mod admin;
pub mod agents;
pub mod auth;
pub mod body;
pub mod burst;
pub mod cursor;
mod deliveries;
pub mod error;
pub mod health;
pub mod json;
pub mod keys;
pub mod kite;
pub mod login;
pub mod ratelimit;
pub mod serve;
pub mod signing;

use std::sync::Arc;
use std::time::Duration;

use agentpost_proto::command::{Operation, operation, reply};
use agentpost_proto::{id, limits};
use agentpost_raft_store::db::StateDb;
use agentpost_raft_store::kv::Order;
use axum::Router;
use axum::body::Body;
use axum::extract::{MatchedPath, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::Response;

use self::auth::{Caller, Remembered};
use self::cursor::Cursors;
use self::error::{ApiError, Result};
use crate::metrics::Face;
use crate::node::Services;

/// A request from its header to its answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// A transfer of leadership waits for the calls to webhooks that run, which may take longer than that.
const TRANSFER_TIMEOUT: Duration = Duration::from_millis(limits::DRAIN_MS + 10_000);
/// The same for a long poll.
const POLL_TIMEOUT: Duration = Duration::from_secs(limits::WAIT_SECONDS_MAX + 30);

/// What every handler works with.
pub struct Doors {
    services: Services,
    cursors: Cursors,
    remembered: Remembered,
    logins: login::Limits,
}

/// The extractor of the shared state.
type Door = State<Arc<Doors>>;

/// All routes of the client port.
pub fn router(services: Services) -> Router {
    let doors = Arc::new(Doors {
        cursors: Cursors::new(services.secrets.cursor_key()),
        remembered: Remembered::default(),
        logins: login::Limits::default(),
        services: services.clone(),
    });
    forget_on_revocation(&doors);
    Router::new()
        .merge(abbababa::routes())
        .merge(kite::routes())
        .merge(agents::routes())
        .merge(login::routes())
        .merge(activate::routes())
        .merge(admin::routes())
        .merge(signing::routes())
        .merge(health::routes())
        .merge(crate::ws::route(services))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(Arc::clone(&doors), around))
        .with_state(doors)
}

/// Empties the remembered keys whenever some key was revoked.
fn forget_on_revocation(doors: &Arc<Doors>) {
    let shutdown = doors.services.cluster.shutdown.clone();
    let mut revoked = doors.services.wakeups.keys();
    let weak = Arc::downgrade(doors);
    doors.services.cluster.tasks.spawn(async move {
        loop {
            tokio::select! {
                () = revoked.woken() => {}
                () = shutdown.cancelled() => return,
            }
            let Some(doors) = weak.upgrade() else { return };
            doors.remembered.forget();
        }
    });
}

impl Doors {
    /// The caller of a write. A remembered key is good enough: apply checks it again.
    async fn writer(&self, headers: &HeaderMap) -> Result<Arc<Caller>> {
        let services = &self.services;
        let key_hash = services.secrets.key_hash(auth::presented(headers)?);
        let generation = match self.remembered.get(&key_hash, services.wall_time.now_ms()) {
            Ok(caller) => {
                self.admit(&caller, headers)?;
                return Ok(caller);
            }
            Err(generation) => generation,
        };
        let (_, caller) = auth::authorize(services, &key_hash, services.reader.local()).await?;
        let caller = Arc::new(caller);
        self.remembered.insert(generation, key_hash, Arc::clone(&caller));
        self.admit(&caller, headers)?;
        Ok(caller)
    }

    /// The caller of a read, authorised against the very state that it reads.
    async fn reader(&self, headers: &HeaderMap, consistency: Consistency) -> Result<Reading> {
        let services = &self.services;
        let key_hash = services.secrets.key_hash(auth::presented(headers)?);
        let state = match consistency {
            Consistency::Linearizable => services.reader.linearizable().await,
            Consistency::Local => services.reader.local_read(),
        };
        let state = state.inspect_err(|_| self.note_known(headers))?;
        let (state, caller) = auth::authorize(services, &key_hash, state).await?;
        self.admit(&caller, headers)?;
        Ok(Reading {
            state,
            caller,
            key_hash,
        })
    }

    /// Notes who calls, and counts the request.
    fn admit(&self, caller: &Caller, headers: &HeaderMap) -> Result<()> {
        ratelimit::note_caller(caller, headers);
        let admitted = self.services.bursts.request(caller, &self.services.clock);
        admitted.inspect_err(|_| ratelimit::note_burst())
    }

    /// Counts a message before it is proposed.
    fn count_send(&self, caller: &Caller) -> Result<()> {
        let counted = self.services.bursts.send(caller, &self.services.clock);
        counted.inspect_err(|_| ratelimit::note_burst())
    }

    /// Notes who calls, as far as this node knows, where nobody is authorised: only to show their limits.
    fn note_known(&self, headers: &HeaderMap) {
        let services = &self.services;
        let Ok(key) = auth::presented(headers) else { return };
        let (state, key_hash) = (services.reader.local(), services.secrets.key_hash(key));
        if let Ok(auth::Finding::Valid(caller)) = auth::find(&*state, &key_hash, services.wall_time.now_ms()) {
            ratelimit::note_caller(&caller, headers);
        }
    }

    /// The same as [`carry_out`], counting what a request sends.
    async fn propose(&self, caller: &Caller, op: operation::Op) -> Result<reply::Reply> {
        if matches!(op, operation::Op::Send(_)) {
            self.count_send(caller)?;
        }
        let sending = ratelimit::Sending::of(&op);
        let reply = carry_out(&self.services, caller, op).await?;
        sending.note_counted(&reply);
        Ok(reply)
    }
}

/// Has an operation carried out in the caller's name. A refusal is an error.
async fn carry_out(services: &Services, caller: &Caller, op: operation::Op) -> Result<reply::Reply> {
    let operation = Operation {
        principal: Some(caller.principal()),
        op: Some(op),
    };
    match services.proposer.propose(operation).await?.reply {
        Some(reply::Reply::Rejection(rejection)) => Err(rejection.into()),
        Some(reply) => Ok(reply),
        None => Err(ApiError::internal("an empty reply")),
    }
}

/// How fresh a read is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Consistency {
    /// It sees every send acknowledged before it began.
    Linearizable,
    /// What this node knows; works without a quorum.
    Local,
}

impl Consistency {
    fn of(parameters: &Parameters) -> Result<Self> {
        match parameters.get("consistency")? {
            None | Some("linearizable") => Ok(Self::Linearizable),
            Some("local") => Ok(Self::Local),
            Some(_) => Err(ApiError::field("consistency", "must be linearizable or local")),
        }
    }
}

/// An authorised read.
struct Reading {
    state: Arc<StateDb>,
    caller: Caller,
    key_hash: [u8; 32],
}

/// The query string.
struct Parameters(Vec<(String, String)>);

impl Parameters {
    fn of(uri: &Uri) -> Result<Self> {
        let pairs = Query::try_from_uri(uri).map_err(|_| ApiError::invalid("the query string cannot be read"))?;
        Ok(Parameters(pairs.0))
    }

    /// The value of a parameter, which may stand only once. Unknown parameters are ignored.
    fn get(&self, name: &str) -> Result<Option<&str>> {
        let mut values = self
            .0
            .iter()
            .filter(|(key, _)| key == name)
            .map(|(_, value)| value.as_str());
        match (values.next(), values.next()) {
            (_, Some(_)) => Err(ApiError::field(name, "stands twice in the query string")),
            (value, None) => Ok(value),
        }
    }

    /// The order of a list.
    fn order(&self) -> Result<Order> {
        match self.get("order")? {
            None | Some("asc") => Ok(Order::Ascending),
            Some("desc") => Ok(Order::Descending),
            Some(_) => Err(ApiError::field("order", "must be asc or desc")),
        }
    }

    /// A number between `low` and `high`.
    fn number(&self, name: &str, low: u64, high: u64) -> Result<Option<u64>> {
        let Some(text) = self.get(name)? else { return Ok(None) };
        let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        match text.parse() {
            Ok(number) if plain && (low..=high).contains(&number) => Ok(Some(number)),
            _ => Err(ApiError::field(name, format!("must be a number from {low} to {high}"))),
        }
    }
}

/// Parses a JSON body that must be an object.
fn parse<'a, T: serde::Deserialize<'a>>(body: &'a [u8]) -> Result<T> {
    let text = std::str::from_utf8(body).map_err(|_| ApiError::invalid("the request body is not UTF-8"))?;
    // serde would also take an array for a struct.
    if !text.trim_ascii_start().starts_with('{') {
        return Err(ApiError::invalid("the request body must be a JSON object"));
    }
    serde_json::from_str(text)
        .map_err(|e| ApiError::invalid(format!("the request body is not valid JSON: {}", json::explain(&e))))
}

/// The `Idempotency-Key` header; empty without one.
fn idempotency_key(headers: &HeaderMap) -> Result<String> {
    const NAME: &str = "Idempotency-Key";
    let mut values = headers.get_all(NAME).iter();
    let Some(value) = values.next() else {
        return Ok(String::new());
    };
    if values.next().is_some() {
        return Err(ApiError::field(NAME, "stands twice"));
    }
    let text = value.to_str().unwrap_or_default();
    id::validate_idempotency_key(text).map_err(|e| ApiError::named(NAME, e.to_string()))?;
    Ok(text.to_owned())
}

/// A JSON answer.
pub(crate) fn json_response(status: StatusCode, body: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A JSON answer of a type that always serializes.
fn json_of(value: &impl serde::Serialize) -> Result<Response> {
    serde_json::to_vec(value)
        .map(|body| json_response(StatusCode::OK, body))
        .map_err(ApiError::internal)
}

/// Which face a path belongs to.
fn face_of(path: &str) -> Face {
    match path {
        "/api/v1/agents" | "/v1/agents" | "/api/v1/agents/messages" | "/v1/agents/messages" | "/ws" => Face::Kite,
        "/health" | "/healthz" | "/readyz" | "/metrics" => Face::Node,
        _ if path.starts_with("/api/auth/") => Face::Kite,
        _ if path.starts_with("/admin/") || path.starts_with("/activate") => Face::Admin,
        _ => Face::Abbababa,
    }
}

async fn unknown_path(State(doors): Door, headers: HeaderMap, uri: Uri) -> Response {
    doors.note_known(&headers);
    ApiError::not_found("no such path").response(face_of(uri.path()))
}

async fn wrong_method(State(doors): Door, headers: HeaderMap, method: Method, uri: Uri) -> Response {
    doors.note_known(&headers);
    let message = format!("{method} is not allowed here");
    let error = ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message);
    error.response(face_of(uri.path()))
}

/// Around every request: its deadline, its metric, and what all answers carry.
async fn around(State(doors): Door, request: Request, next: Next) -> Response {
    let clock = &doors.services.clock;
    let started = clock.now();
    let face = face_of(request.uri().path());
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("unknown", MatchedPath::as_str);
    let route = format!("{} {route}", method_name(request.method()));
    let polls = request.uri().query().is_some_and(|query| query.contains("wait="));
    let deadline = match request.uri().path() {
        path if path == admin::TRANSFER || path.starts_with(admin::MEMBERS) => TRANSFER_TIMEOUT,
        _ if polls => POLL_TIMEOUT,
        _ => REQUEST_TIMEOUT,
    };
    let counted = ratelimit::Counted::of(request.method(), request.uri().path());
    let answered = next.run(body::guarded(request, &doors.services.cluster.tasks));
    let answered = async {
        let in_time = tokio::time::timeout(deadline, answered).await;
        in_time.unwrap_or_else(|_| ApiError::outcome_unknown().response(face))
    };
    let mut response = match counted {
        Some(counted) => ratelimit::shown(&doors.services, counted, answered).await,
        None => answered.await,
    };
    response
        .headers_mut()
        .insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    doors
        .services
        .metrics
        .http(face, &route, response.status().as_u16(), started.elapsed());
    response
}

/// Only names that we know become labels.
fn method_name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PATCH => "PATCH",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "OTHER",
    }
}

/// A handler's result in the shape of its face.
fn answer(face: Face, result: Result<Response>) -> Response {
    result.unwrap_or_else(|error| error.response(face))
}
