//! The headers `X-RateLimit-Limit`, `-Remaining` and `-Reset` on every answer of the Abba Baba API.
//!
//! | request | limit and usage in the headers |
//! |---|---|
//! | any path | the path selects the quota: sends, inbox reads, or webhook registrations |
//! | an authenticated caller | the caller's own limit and usage |
//! | a caller without a valid key | the plan's default limit, 0 remaining |
//!
//! A handler that learns the exact usage returns it in the extensions of its response. For all other answers
//! [`set_headers`] looks the key up again and takes the usage from this node's state, which may lag behind another
//! node's.
//!
//! Decisions where the specification is silent: the day is that of replicated wall time, or of majority time if that is
//! ahead. A 429 of a quota always shows 0 remaining, whichever quota it met; a 429 of a burst limit shows the day's
//! remaining units, because the caller need not wait for the next day.

use agentpost_proto::command::send_outcome::Outcome;
use agentpost_proto::command::{SendOutcome, SendReply, TeamLimits};
use agentpost_proto::id::{AgentId, TeamId};
use agentpost_proto::time;
use agentpost_raft_store::core::apply::team::default_limits;
use agentpost_raft_store::core::kv::Fatal;
use agentpost_raft_store::core::{keys, query};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::response::Response;
use bytes::Bytes;

use super::app_state::AppState;
use crate::cluster::leases::{Leases, Standing};
use crate::server::error::ApiError;
use crate::shard::local_state::LocalState;

/// The value of a rate limit header that stands for "unlimited".
const UNLIMITED: u64 = 2_147_483_647;
const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// Returns the response with the usage that its headers will show.
pub(super) fn with_usage(standing: Option<Standing>, mut response: Response) -> Response {
    if let Some(standing) = standing {
        response.extensions_mut().insert(standing);
    }
    response
}

/// The usage after the send of the message `id`. A reply about another id answers an earlier, identical request.
pub(super) fn after_send(id: &Bytes, sent: &SendReply) -> Option<Standing> {
    usage(sent.sends_used, sent.sends_limit).filter(|_| sent.message_id == *id)
}

/// The usage after the last send of a batch of the messages `ids`.
pub(super) fn after_batch(ids: &[Bytes], outcomes: &[SendOutcome]) -> Option<Standing> {
    let standings = ids
        .iter()
        .zip(outcomes)
        .filter_map(|(id, outcome)| match &outcome.outcome {
            Some(Outcome::Sent(sent)) => after_send(id, sent),
            _ => None,
        });
    standings.max_by_key(|standing| standing.used)
}

/// The usage in a reply; `None` if the operation counted nothing.
pub(super) fn usage(used: u64, limit: u64) -> Option<Standing> {
    (used > 0).then_some(Standing { used, limit })
}

/// The quota of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Quota {
    Sends,
    Reads,
    Registrations,
}

impl Quota {
    /// `None` outside the Abba Baba API.
    pub fn of(method: &Method, path: &str) -> Option<Self> {
        let below = path.strip_prefix("/api").unwrap_or(path).strip_prefix("/v1")?;
        match below {
            "/agents" | "/agents/messages" => None,
            "/messages" if method == Method::POST => Some(Quota::Sends),
            "/messages/batch" => Some(Quota::Sends),
            "/messages/subscribe" | "/messages/webhook" => Some(Quota::Registrations),
            _ if below.is_empty() || below.starts_with('/') => Some(Quota::Reads),
            _ => None,
        }
    }

    fn limit(self, limits: &TeamLimits) -> u64 {
        match self {
            Quota::Sends => limits.daily_sends,
            Quota::Reads => limits.daily_reads,
            Quota::Registrations => limits.daily_webhook_registrations,
        }
    }
}

/// Sets the quota headers of a response. `asked` are the headers of its request.
pub(super) fn set_headers(app: &AppState, quota: Quota, asked: &HeaderMap, mut response: Response) -> Response {
    let (services, leases) = (&app.services, &app.http.leases);
    let quota = match response.status() {
        StatusCode::METHOD_NOT_ALLOWED => Quota::Reads,
        _ => quota,
    };
    let state = services.replica.reader.local();
    let wall_ms = leases.wall_ms(&state).unwrap_or_else(|_| services.wall_time.now_ms());
    let burst = response.extensions().get().is_some_and(ApiError::is_burst);
    let standing = match response.extensions().get::<Standing>() {
        _ if response.status() == StatusCode::UNAUTHORIZED => None,
        Some(standing) => Some(*standing),
        None => app.known(&state, asked).and_then(|caller| {
            let agent = caller.agent(asked).ok();
            standing(leases, &state, quota, caller.team, agent.as_ref(), wall_ms).ok()
        }),
    };
    let (limit, remaining) = match standing {
        None => default_quota(quota),
        Some(standing) if response.status() == StatusCode::TOO_MANY_REQUESTS && !burst => {
            (limit_and_remaining(standing).0, 0)
        }
        Some(standing) => limit_and_remaining(standing),
    };
    let headers = response.headers_mut();
    headers.insert(LIMIT, HeaderValue::from(limit));
    headers.insert(REMAINING, HeaderValue::from(remaining));
    headers.insert(RESET, HeaderValue::from(time::next_midnight_s(wall_ms)));
    response
}

/// The plan's default with nothing remaining, for a caller without a valid key.
fn default_quota(quota: Quota) -> (u64, u64) {
    (quota.limit(&default_limits()), 0)
}

/// The limit and the remaining units.
fn limit_and_remaining(standing: Standing) -> (u64, u64) {
    match standing.limit {
        0 => (UNLIMITED, UNLIMITED),
        limit => (limit, limit.saturating_sub(standing.used)),
    }
}

/// The usage of a quota in this node's state; zero without an agent.
fn standing(
    leases: &Leases,
    state: &LocalState,
    quota: Quota,
    team: TeamId,
    agent: Option<&AgentId>,
    wall_ms: u64,
) -> Result<Standing, Fatal> {
    let limits = query::team::by_id(state, team)?.and_then(|team| team.limits);
    let limit = quota.limit(&limits.unwrap_or_else(default_limits));
    let Some(agent) = agent.filter(|_| limit != 0) else {
        return Ok(Standing { used: 0, limit });
    };
    let row = match quota {
        Quota::Sends => keys::send_count(team, agent.as_str()),
        Quota::Reads => return leases.standing(team, agent.as_str(), state),
        Quota::Registrations => keys::registration_count(team, agent.as_str()),
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
        for (method, path, quota) in [
            (Method::POST, "/messages", Some(Quota::Sends)),
            (Method::GET, "/messages", Some(Quota::Reads)),
            (Method::POST, "/messages/batch", Some(Quota::Sends)),
            (Method::GET, "/messages/msg_1", Some(Quota::Reads)),
            (Method::PATCH, "/messages/msg_1", Some(Quota::Reads)),
            (Method::GET, "/messages/msg_1/receipt", Some(Quota::Reads)),
            (Method::DELETE, "/messages/subscribe", Some(Quota::Registrations)),
            (Method::POST, "/messages/webhook", Some(Quota::Registrations)),
            (Method::GET, "/deliveries", Some(Quota::Reads)),
            (Method::POST, "/deliveries/dlv_1/redrive", Some(Quota::Reads)),
            (Method::GET, "", Some(Quota::Reads)),
            (Method::GET, "/nowhere", Some(Quota::Reads)),
            (Method::POST, "/agents/messages", None),
            (Method::POST, "/agents/others", Some(Quota::Reads)),
        ] {
            for mount in ["/v1", "/api/v1"] {
                let path = format!("{mount}{path}");
                assert_eq!(Quota::of(&method, &path), quota, "{method} {path}");
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
            assert_eq!(Quota::of(&Method::GET, path), None, "{path}");
        }
    }

    #[test]
    fn remaining_units_are_never_negative() {
        assert_eq!(limit_and_remaining(Standing { used: 7, limit: 5 }), (5, 0));
        assert_eq!(limit_and_remaining(Standing { used: 1, limit: 5 }), (5, 4));
        let unlimited = UNLIMITED;
        assert_eq!(
            limit_and_remaining(Standing { used: 7, limit: 0 }),
            (unlimited, unlimited)
        );
        assert_eq!(default_quota(Quota::Registrations), (100, 0));
    }
}
