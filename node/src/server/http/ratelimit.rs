//! The headers `X-RateLimit-Limit`, `-Remaining` and `-Reset` on every answer of the Abba Baba API.
//!
//! | request | limit and usage in the headers |
//! |---|---|
//! | any path | the path selects the quota: sends, inbox reads, or webhook registrations |
//! | an authenticated caller | the caller's own limit and usage |
//! | any other caller | the plan's default with 0 remaining, as a 401 shows |
//!
//! The code that authorises a request notes the caller, and the code that gets a reply with a count notes the count, so
//! no key is looked up twice and the count is exact. Otherwise the usage comes from this node's state, which may lag
//! behind another node's. The notes live as long as the request.
//!
//! Decisions where the specification is silent: the day is that of replicated wall time, or of majority time if that is
//! ahead. A 429 of a quota always shows 0 remaining, whichever quota it met; a 429 of a burst limit shows the day's
//! remaining units, because the caller need not wait for the next day.

use std::cell::RefCell;
use std::future::Future;

use agentpost_proto::command::operation::Op;
use agentpost_proto::command::reply::Reply;
use agentpost_proto::command::send_outcome::Outcome;
use agentpost_proto::command::{SendReply, TeamLimits};
use agentpost_proto::id::{AgentId, TeamId};
use agentpost_proto::{limits, time};
use agentpost_raft_store::core::apply::team::default_limits;
use agentpost_raft_store::core::kv::Fatal;
use agentpost_raft_store::core::{keys, query};
use agentpost_raft_store::disk::state::StateDb;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::response::Response;
use bytes::Bytes;

use crate::cluster::leases::{Leases, Standing};
use crate::server::auth::Caller;
use crate::server::services::Services;

const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

tokio::task_local! {
    static NOTES: RefCell<Notes>;
}

/// The notes of a request.
#[derive(Default)]
struct Notes {
    caller: Option<Who>,
    standing: Option<Standing>,
    /// Whether a burst limit refused the request.
    burst: bool,
}

struct Who {
    team: TeamId,
    /// `None` if the request names no agent that the key may act as.
    agent: Option<AgentId>,
}

/// Writes a note. Requests to the other APIs keep none.
fn note(write: impl FnOnce(&mut Notes)) {
    let _ = NOTES.try_with(|notes| write(&mut notes.borrow_mut()));
}

/// Notes the caller.
pub(super) fn note_caller(caller: &Caller, headers: &HeaderMap) {
    note(|notes| {
        notes.caller = Some(Who {
            team: caller.team,
            agent: caller.agent(headers).ok(),
        });
    });
}

/// Notes the usage of the quota that the answer will show.
pub(super) fn note_standing(standing: Standing) {
    note(|notes| notes.standing = Some(standing));
}

/// Notes that a burst limit refused the request.
pub(super) fn note_burst() {
    note(|notes| notes.burst = true);
}

/// The ids of the messages that an operation sends. A reply about other ids answers an earlier, identical request.
pub(super) struct Sending(Vec<Bytes>);

impl Sending {
    pub fn of(op: &Op) -> Self {
        Sending(match op {
            Op::Send(send) => vec![send.message_id.clone()],
            Op::SendBatch(batch) => batch.sends.iter().map(|send| send.message_id.clone()).collect(),
            _ => Vec::new(),
        })
    }

    /// Notes the count in a reply.
    pub fn note_counted(&self, reply: &Reply) {
        let standing = match reply {
            Reply::Send(sent) => self.counted(0, sent),
            Reply::SendBatch(batch) => {
                let outcomes = batch.outcomes.iter().enumerate();
                let standings = outcomes.filter_map(|(place, outcome)| match &outcome.outcome {
                    Some(Outcome::Sent(sent)) => self.counted(place, sent),
                    _ => None,
                });
                standings.max_by_key(|standing| standing.used)
            }
            Reply::Subscription(reply) => counted(reply.registrations_used, reply.registrations_limit),
            Reply::Webhook(reply) => counted(reply.registrations_used, reply.registrations_limit),
            _ => None,
        };
        if let Some(standing) = standing {
            note_standing(standing);
        }
    }

    fn counted(&self, place: usize, sent: &SendReply) -> Option<Standing> {
        let fresh = self.0.get(place) == Some(&sent.message_id);
        fresh.then(|| counted(sent.sends_used, sent.sends_limit)).flatten()
    }
}

fn counted(used: u64, limit: u64) -> Option<Standing> {
    (used > 0).then_some(Standing { used, limit })
}

/// The quota of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Counted {
    Sends,
    Reads,
    Registrations,
}

impl Counted {
    /// `None` outside the Abba Baba API.
    pub fn of(method: &Method, path: &str) -> Option<Self> {
        let below = path.strip_prefix("/api").unwrap_or(path).strip_prefix("/v1")?;
        match below {
            "/agents" | "/agents/messages" => None,
            "/messages" if method == Method::POST => Some(Counted::Sends),
            "/messages/batch" => Some(Counted::Sends),
            "/messages/subscribe" | "/messages/webhook" => Some(Counted::Registrations),
            _ if below.is_empty() || below.starts_with('/') => Some(Counted::Reads),
            _ => None,
        }
    }

    fn limit(self, limits: &TeamLimits) -> u64 {
        match self {
            Counted::Sends => limits.daily_sends,
            Counted::Reads => limits.daily_reads,
            Counted::Registrations => limits.daily_webhook_registrations,
        }
    }
}

/// Awaits the answer and sets its headers.
pub(super) async fn shown(
    services: &Services,
    leases: &Leases,
    counted: Counted,
    answer: impl Future<Output = Response>,
) -> Response {
    let watched = async {
        let response = answer.await;
        (response, NOTES.with(RefCell::take))
    };
    let (mut response, notes) = NOTES.scope(RefCell::default(), watched).await;
    let counted = match response.status() {
        StatusCode::METHOD_NOT_ALLOWED => Counted::Reads,
        _ => counted,
    };
    let state = services.replica.reader.local();
    let wall_ms = leases.wall_ms(&state).unwrap_or_else(|_| services.wall_time.now_ms());
    let standing = notes.standing.map(Ok).or_else(|| {
        let who = notes.caller.as_ref()?;
        Some(standing(leases, &state, counted, who, wall_ms))
    });
    let (limit, remaining) = match (response.status(), standing) {
        (StatusCode::UNAUTHORIZED, _) | (_, None | Some(Err(_))) => nobody(counted),
        (StatusCode::TOO_MANY_REQUESTS, Some(Ok(standing))) if !notes.burst => (shown_of(standing).0, 0),
        (_, Some(Ok(standing))) => shown_of(standing),
    };
    let headers = response.headers_mut();
    headers.insert(LIMIT, HeaderValue::from(limit));
    headers.insert(REMAINING, HeaderValue::from(remaining));
    headers.insert(RESET, HeaderValue::from(time::next_midnight_s(wall_ms)));
    response
}

/// The plan's default with nothing remaining, for a caller without a valid key.
fn nobody(counted: Counted) -> (u64, u64) {
    (counted.limit(&default_limits()), 0)
}

/// The limit and the remaining units.
fn shown_of(standing: Standing) -> (u64, u64) {
    match standing.limit {
        0 => (limits::UNLIMITED_RATE_SHOWN, limits::UNLIMITED_RATE_SHOWN),
        limit => (limit, limit.saturating_sub(standing.used)),
    }
}

/// The usage of a quota in this node's state; zero without an agent.
fn standing(leases: &Leases, state: &StateDb, counted: Counted, who: &Who, wall_ms: u64) -> Result<Standing, Fatal> {
    let limits = query::team::by_id(state, who.team)?.and_then(|team| team.limits);
    let limit = counted.limit(&limits.unwrap_or_else(default_limits));
    let Some(agent) = who.agent.as_ref().filter(|_| limit != 0) else {
        return Ok(Standing { used: 0, limit });
    };
    let row = match counted {
        Counted::Sends => keys::send_count(who.team, agent.as_str()),
        Counted::Reads => return leases.standing(who.team, agent.as_str(), state),
        Counted::Registrations => keys::registration_count(who.team, agent.as_str()),
    };
    let count = query::team::day_count(state, &row)?;
    let used = if count.day < time::day(wall_ms) { 0 } else { count.used };
    Ok(Standing { used, limit })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_says_which_quota_is_shown() {
        for (method, path, counted) in [
            (Method::POST, "/messages", Some(Counted::Sends)),
            (Method::GET, "/messages", Some(Counted::Reads)),
            (Method::POST, "/messages/batch", Some(Counted::Sends)),
            (Method::GET, "/messages/msg_1", Some(Counted::Reads)),
            (Method::PATCH, "/messages/msg_1", Some(Counted::Reads)),
            (Method::GET, "/messages/msg_1/receipt", Some(Counted::Reads)),
            (Method::DELETE, "/messages/subscribe", Some(Counted::Registrations)),
            (Method::POST, "/messages/webhook", Some(Counted::Registrations)),
            (Method::GET, "/deliveries", Some(Counted::Reads)),
            (Method::POST, "/deliveries/dlv_1/redrive", Some(Counted::Reads)),
            (Method::GET, "", Some(Counted::Reads)),
            (Method::GET, "/nowhere", Some(Counted::Reads)),
            (Method::POST, "/agents/messages", None),
            (Method::POST, "/agents/others", Some(Counted::Reads)),
        ] {
            for mount in ["/v1", "/api/v1"] {
                let path = format!("{mount}{path}");
                assert_eq!(Counted::of(&method, &path), counted, "{method} {path}");
            }
        }
        for path in [
            "/",
            "/health",
            "/v10/messages",
            "/v2/keys",
            "/api/messages",
            "/admin/v1/teams",
            "/ws",
        ] {
            assert_eq!(Counted::of(&Method::GET, path), None, "{path}");
        }
    }

    #[test]
    fn what_remains_is_never_negative() {
        assert_eq!(shown_of(Standing { used: 7, limit: 5 }), (5, 0));
        assert_eq!(shown_of(Standing { used: 1, limit: 5 }), (5, 4));
        let unlimited = limits::UNLIMITED_RATE_SHOWN;
        assert_eq!(shown_of(Standing { used: 7, limit: 0 }), (unlimited, unlimited));
        assert_eq!(nobody(Counted::Registrations), (100, 0));
    }
}
