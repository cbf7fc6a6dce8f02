//! Deliveries as JSON, for the Abba Baba API and for operators.
//!
//! Retries are scheduled in cluster time. `dueInMs`, the remaining wait, is exact. `due`, a date, is an estimate:
//! cluster time is converted with the offset between wall time and cluster time at the last applied entry, and time
//! that passes without a leader delays it.

use agentpost_proto::api::abbababa::{Attempt, Delivery, DeliveryDetail, DeliveryRow};
use agentpost_proto::id::{DeliveryId, MessageId, SubscriptionId, TeamId};
use agentpost_proto::limits;
use agentpost_proto::record::{self, Applied, AttemptEnd, DeliveryState};
use agentpost_proto::time::rfc3339;
use agentpost_raft_store::core::kv::{Kv, Order};
use agentpost_raft_store::core::query::{
    self,
    delivery::{DeliveryPage, DeliveryQuery},
};

use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use bytes::Bytes;

use super::app_state::AppState;
use super::input::{PAGE_DEFAULT, Parameters};
use crate::server::error::{ApiError, Result};

/// A name that no agent can have; it separates these cursors from those of inboxes.
const CURSOR_PURPOSE: &str = "/deliveries";

/// Which parts of a delivery a caller sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    /// All of it: for the receiving agent, an administrator of the team, an operator.
    Everything,
    /// Its state only, without the URL and the responses: for the sender.
    States,
}

/// The parameters of a list.
#[derive(Debug, PartialEq, Eq)]
pub struct Wanted {
    state: Option<DeliveryState>,
    order: Order,
    limit: usize,
    cursor: Option<String>,
}

impl Wanted {
    /// Checks every parameter.
    pub fn of(parameters: &Parameters) -> Result<Self> {
        let state =
            match parameters.get("state")? {
                None => None,
                Some(name) => Some(DeliveryState::from_name(name).ok_or_else(|| {
                    ApiError::field("state", "must be scheduled, claimed, delivered, dead or cancelled")
                })?),
            };
        let limit = parameters.number("limit", 1, limits::PAGE_MAX as u64)?;
        Ok(Wanted {
            state,
            order: parameters.order()?,
            limit: limit.map_or(PAGE_DEFAULT, |limit| limit as usize),
            cursor: parameters.get("cursor")?.map(str::to_owned),
        })
    }
}

/// A page of a team's deliveries, or of one agent's, and the cursor after it.
pub fn page(
    app: &AppState,
    kv: &dyn Kv,
    team: TeamId,
    agent: Option<&str>,
    wanted: &Wanted,
) -> Result<(DeliveryPage, String)> {
    let start = match wanted.order {
        Order::Ascending => 0,
        Order::Descending => u64::MAX,
    };
    let after = match &wanted.cursor {
        None => None,
        Some(text) => {
            let after = app.cursors.decode(team, CURSOR_PURPOSE, wanted.order, text);
            Some(after.map_err(|_| ApiError::field("cursor", "is not a cursor of these deliveries in this order"))?)
        }
    };
    let query = DeliveryQuery {
        after: after.filter(|after| *after != start),
        order: wanted.order,
        limit: wanted.limit,
        state: wanted.state,
        agent,
    };
    let page = query::delivery::page(&kv, team, &query)?;
    let last = page.last.unwrap_or(start);
    let cursor = app.cursors.encode(team, CURSOR_PURPOSE, wanted.order, last);
    Ok((page, cursor))
}

/// Parses a delivery id. A malformed id is answered like an unknown one.
pub fn delivery_id(id: Result<Path<String>, PathRejection>) -> Result<DeliveryId> {
    let id = id.ok().and_then(|Path(text)| text.parse().ok());
    id.ok_or_else(unknown)
}

/// The same error for a delivery that never existed and for one of another team.
pub fn unknown() -> ApiError {
    ApiError::not_found("no such delivery")
}

/// A delivery in a list.
pub fn row(delivery: &record::Delivery, sight: Sight, applied: &Applied) -> Result<DeliveryRow> {
    shown(delivery, sight, applied, delivery.attempt_no)
}

/// A delivery with its attempts.
pub fn detail(delivery: &record::Delivery, sight: Sight, applied: &Applied) -> Result<DeliveryDetail> {
    let attempts = delivery.attempts.iter().map(|one| attempt(one, sight)).collect();
    shown(delivery, sight, applied, attempts)
}

fn shown<A>(delivery: &record::Delivery, sight: Sight, applied: &Applied, attempts: A) -> Result<Delivery<A>> {
    let due_in_ms =
        (delivery.state() == DeliveryState::Scheduled).then(|| delivery.due_ms.saturating_sub(applied.cluster_ms));
    let overdue_ms = applied.cluster_ms.saturating_sub(delivery.due_ms);
    Ok(Delivery {
        id: id_text(&delivery.id)?.unwrap_or_default(),
        state: delivery.state().name().to_owned(),
        end: delivery.end().name().map(str::to_owned),
        message_id: message_id(&delivery.message_id)?,
        from_agent_id: delivery.from.clone(),
        to_agent_id: delivery.agent.clone(),
        topic: some(&delivery.topic),
        subscription_id: subscription_id(&delivery.subscription_id)?,
        attempts,
        attempt_count: delivery.attempt_no,
        step: delivery.step,
        due: due_in_ms.map(|wait_ms| rfc3339((applied.wall_ms + wait_ms).saturating_sub(overdue_ms))),
        due_in_ms,
        url: (sight == Sight::Everything).then(|| delivery.url.clone()),
        created_at: rfc3339(delivery.created_at_ms),
        ended_at: (delivery.ended_at_ms != 0).then(|| rfc3339(delivery.ended_at_ms)),
        redriven_as: id_text(&delivery.redriven_as)?,
        redrive_of: id_text(&delivery.redrive_of)?,
    })
}

fn attempt(attempt: &record::Attempt, sight: Sight) -> Attempt {
    let all = sight == Sight::Everything;
    // An attempt with an unknown outcome has nothing to show.
    let called = all && matches!(attempt.end(), AttemptEnd::Delivered | AttemptEnd::Failed);
    let answered = called && attempt.status != 0;
    Attempt {
        number: attempt.attempt_no,
        step: attempt.step,
        end: attempt.end().name().to_owned(),
        status: answered.then_some(attempt.status),
        error: some(&attempt.error).filter(|_| all),
        response: answered.then(|| plain(&attempt.response)),
        started_at: called.then(|| rfc3339(attempt.started_at_ms)),
        took_ms: called.then_some(attempt.took_ms),
    }
}

/// A stranger's bytes as text, with control characters escaped, so that it cannot control a terminal.
fn plain(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for c in String::from_utf8_lossy(bytes).chars() {
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// A message id in the form of the Abba Baba API.
pub fn message_id(bytes: &[u8]) -> Result<String> {
    let id = MessageId::from_slice(bytes).map_err(ApiError::internal)?;
    Ok(id.abbababa())
}

/// A delivery id; `None` for no bytes.
pub fn id_text(bytes: &Bytes) -> Result<Option<String>> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let id = DeliveryId::from_slice(bytes).map_err(ApiError::internal)?;
    Ok(Some(id.to_string()))
}

fn subscription_id(bytes: &Bytes) -> Result<Option<String>> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let id = SubscriptionId::from_slice(bytes).map_err(ApiError::internal)?;
    Ok(Some(id.to_string()))
}

fn some(text: &str) -> Option<String> {
    Some(text.to_owned()).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use agentpost_proto::record::DeliveryEnd;

    const NOW: Applied = Applied {
        last: None,
        cluster_ms: 50_000,
        wall_ms: 1_770_906_600_000,
        epoch: 0,
        epoch_node: 0,
        state_hash: 0,
    };

    fn failed() -> record::Delivery {
        record::Delivery {
            id: Bytes::from_static(&[1; 16]),
            number: 1,
            message_id: Bytes::from_static(&[2; 16]),
            from: "alpha".into(),
            agent: "beta".into(),
            url: "https://hook.example/x".into(),
            state: DeliveryState::Scheduled as i32,
            step: 1,
            attempt_no: 1,
            due_ms: 60_000,
            attempts: vec![record::Attempt {
                attempt_no: 1,
                end: AttemptEnd::Failed as i32,
                status: 500,
                error: "status".into(),
                response: Bytes::from_static(b"\x1b[2J<b>no</b>\r\n\xff\xc2\x9b"),
                started_at_ms: 1_770_906_599_000,
                took_ms: 12,
                ..record::Attempt::default()
            }],
            ..record::Delivery::default()
        }
    }

    #[test]
    fn a_receiver_sees_all_of_it_and_a_sender_only_states() {
        let all = detail(&failed(), Sight::Everything, &NOW).unwrap();
        assert_eq!((all.state.as_str(), all.step, all.attempt_count), ("scheduled", 1, 1));
        assert_eq!(all.url.as_deref(), Some("https://hook.example/x"));
        let first = &all.attempts[0];
        assert_eq!(
            (first.end.as_str(), first.status, first.took_ms),
            ("failed", Some(500), Some(12))
        );
        assert_eq!(
            first.response.as_deref(),
            Some("\\u{1b}[2J<b>no</b>\\r\\n\u{fffd}\\u{9b}")
        );
        let states = serde_json::to_string(&detail(&failed(), Sight::States, &NOW).unwrap()).unwrap();
        for hidden in ["hook.example", "500", "\"error\"", "no</b>", "startedAt"] {
            assert!(!states.contains(hidden), "{hidden} in {states}");
        }
        assert!(states.contains(r#""number":1,"step":0,"end":"failed""#), "{states}");
    }

    #[test]
    fn due_is_a_wait_and_a_date() {
        let later = row(&failed(), Sight::States, &NOW).unwrap();
        assert_eq!(
            (later.due_in_ms, later.due.as_deref()),
            (Some(10_000), Some("2026-02-12T14:30:10.000Z"))
        );
        let mut overdue = failed();
        overdue.due_ms = 49_000;
        let overdue = row(&overdue, Sight::States, &NOW).unwrap();
        assert_eq!(
            (overdue.due_in_ms, overdue.due.as_deref()),
            (Some(0), Some("2026-02-12T14:29:59.000Z"))
        );
        let mut dead = failed();
        dead.set_state(DeliveryState::Dead);
        dead.set_end(DeliveryEnd::Exhausted);
        let dead = row(&dead, Sight::States, &NOW).unwrap();
        assert_eq!(
            (dead.due_in_ms, dead.due, dead.end.as_deref()),
            (None, None, Some("exhausted"))
        );
    }

    #[test]
    fn lists_are_asked_for_in_plain_words() {
        let wanted = |query: &str| Wanted::of(&Parameters::of(&format!("/v1/deliveries?{query}").parse().unwrap())?);
        let expected = Wanted {
            state: Some(DeliveryState::Dead),
            order: Order::Descending,
            limit: 7,
            cursor: None,
        };
        assert_eq!(wanted("state=dead&order=desc&limit=7").unwrap(), expected);
        assert_eq!(wanted("").unwrap().limit, PAGE_DEFAULT);
        for bad in [
            "state=",
            "state=DEAD",
            "state=none",
            "state=3",
            "limit=0",
            "limit=201",
            "order=up",
        ] {
            assert_eq!(wanted(bad).unwrap_err().status, 400, "{bad}");
        }
    }
}
