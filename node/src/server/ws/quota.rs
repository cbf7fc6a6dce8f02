//! The team's monthly quota on the socket: its usage, and whether the team is blocked. A team is blocked when the quota
//! is used up and its plan has no price for further messages.
//!
//! A blocked team cannot send, but can still read what it has received. So a session that begins while the team is
//! blocked gets a notice and continues. A session that was open before ends once with 4005, because that is how the
//! vendor's clients learn of it. They reconnect and get the notice.

use agentpost_proto::api::kite::EVENTS_LIMIT_UNLIMITED;
use agentpost_proto::command::TeamLimits;
use agentpost_proto::frame::ServerFrame;
use agentpost_proto::id::TeamId;
use agentpost_proto::record::TeamHead;
use agentpost_proto::time;
use agentpost_raft_store::core::apply::quota as rule;
use agentpost_raft_store::core::apply::team::default_limits;
use agentpost_raft_store::core::kv::{Fatal, Lookup};
use agentpost_raft_store::core::query;
use serde_json::json;

const PROVIDER: &str = "agentpost";

/// The time until which a team cannot send, in Unix milliseconds; `None` if it can send.
pub fn blocked_until(head: &TeamHead, limits: &TeamLimits, now_ms: u64) -> Option<u64> {
    let blocked = rule::is_blocked(limits, rule::events_of_month(head, now_ms));
    blocked.then(|| time::next_month_ms(now_ms))
}

/// Why the team is blocked, or `None`. Costs one read of a row that is always in memory, unless the team has a limit.
pub fn why_blocked(kv: &impl Lookup, team: TeamId, wall_ms: u64) -> Result<Option<String>, Fatal> {
    let limits = limits_of(kv, team)?;
    if limits.monthly_events == 0 || limits.overage_price_atomic.is_some() {
        return Ok(None);
    }
    let head = query::team::head(kv, team)?;
    let blocked = blocked_until(&head, &limits, now_ms(kv, wall_ms)?).is_some();
    Ok(blocked.then(|| rule::month_used_up(&limits)))
}

/// The frames of a greeting about the month.
pub struct Greeting {
    /// The usage; always sent.
    pub snapshot: ServerFrame,
    /// The notice, if the team is blocked.
    pub block: Option<ServerFrame>,
}

impl Greeting {
    /// The frames for a team at `wall_ms`.
    pub fn of(kv: &impl Lookup, team: TeamId, wall_ms: u64) -> Result<Self, Fatal> {
        let (head, limits) = (query::team::head(kv, team)?, limits_of(kv, team)?);
        let now_ms = now_ms(kv, wall_ms)?;
        let limit = match limits.monthly_events {
            0 => EVENTS_LIMIT_UNLIMITED,
            limit => limit,
        };
        let snapshot = ServerFrame::QuotaSnapshot {
            provider: PROVIDER.to_owned(),
            events_used: shown(rule::events_of_month(&head, now_ms)),
            events_limit: shown(limit),
            current_period_end: time::rfc3339(time::next_month_ms(now_ms)),
        };
        let block = blocked_until(&head, &limits, now_ms).map(|until_ms| ServerFrame::BillingBlock {
            provider: PROVIDER.to_owned(),
            reason: rule::month_used_up(&limits),
            retryable: true,
            action: json!({
                "type": "wait_or_raise_limit",
                "retry_after_secs": until_ms.saturating_sub(now_ms).div_ceil(1000).max(1),
            }),
        });
        Ok(Greeting { snapshot, block })
    }
}

fn limits_of(kv: &impl Lookup, team: TeamId) -> Result<TeamLimits, Fatal> {
    let team = query::team::by_id(kv, team)?;
    Ok(team.and_then(|team| team.limits).unwrap_or_else(default_limits))
}

/// The current Unix time in milliseconds. The log's time can be ahead of this node's clock; the later one counts, so
/// that both agree on the month.
fn now_ms(kv: &impl Lookup, wall_ms: u64) -> Result<u64, Fatal> {
    Ok(wall_ms.max(query::applied(kv)?.wall_ms))
}

/// Converts to the signed numbers of the frame.
fn shown(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAY: u64 = 1_777_593_600_000; // 2026-05-01
    const JUNE: u64 = 1_780_272_000_000;

    fn limits(monthly_events: u64, overage_price_atomic: Option<u64>) -> TeamLimits {
        TeamLimits {
            monthly_events,
            overage_price_atomic,
            ..TeamLimits::default()
        }
    }

    fn head(month: u32, events_used: u64) -> TeamHead {
        TeamHead {
            month,
            events_used,
            ..TeamHead::default()
        }
    }

    #[test]
    fn a_team_without_a_price_is_blocked_until_the_month_ends() {
        for (month, used, limits, now_ms, until_ms) in [
            (202_605, 9, limits(10, None), MAY, None),
            (202_605, 10, limits(10, None), MAY, Some(JUNE)),
            (202_605, 11, limits(10, None), JUNE - 1, Some(JUNE)),
            // A new month has begun, although nothing was sent in it.
            (202_605, 10, limits(10, None), JUNE, None),
            // The clock is behind the state.
            (202_606, 10, limits(10, None), JUNE - 1, Some(JUNE)),
            (202_605, 10, limits(0, None), MAY, None),
            (202_605, 10, limits(10, Some(0)), MAY, None),
            (202_605, 10, limits(10, Some(5)), MAY, None),
            (0, 0, limits(1, None), MAY, None),
        ] {
            let context = format!("{month} {used} {limits:?} {now_ms}");
            assert_eq!(
                blocked_until(&head(month, used), &limits, now_ms),
                until_ms,
                "{context}"
            );
        }
    }
}
