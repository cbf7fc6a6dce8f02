//! Quotas. A send, a webhook registration or an event is counted by the same entry that stores it, so a limit is never
//! exceeded and only stored things are counted. Reads are counted in blocks, see [`super::lease`].

use agentpost_proto::command::{ErrorCode, Rejection, TeamLimits};
use agentpost_proto::id::TeamId;
use agentpost_proto::record::{DayCount, TeamHead};
use agentpost_proto::time;

use super::{Context, Stop};
use crate::core::keys;
use crate::core::mutant::{self, Mutant};
use crate::core::view::View;

/// The events that a team has used in the month of `wall_ms`. If the state is already in a later month, because the
/// clock of `wall_ms` is behind, it is the events of that later month.
pub fn events_of_month(head: &TeamHead, wall_ms: u64) -> u64 {
    let over = head.month < time::month(wall_ms);
    if over { 0 } else { head.events_used }
}

/// Whether the next event is rejected for a team that has `used` this many events of the month.
pub fn is_blocked(limits: &TeamLimits, used: u64) -> bool {
    is_used_up(limits, used) && limits.overage_price_atomic.is_none()
}

fn is_used_up(limits: &TeamLimits, used: u64) -> bool {
    limits.monthly_events != 0 && used >= limits.monthly_events
}

/// The error text for a team whose events of the month are used up.
pub fn month_used_up(limits: &TeamLimits) -> String {
    format!("the team's {} events of this month are used up", limits.monthly_events)
}

/// Counts one event in the team's month and in its UTC day. Returns its price, which is 0 within the limit.
pub fn count_event(head: &mut TeamHead, limits: &TeamLimits, context: &Context<'_>) -> Result<u64, Stop> {
    head.events_used = events_of_month(head, context.wall_ms);
    head.month = head.month.max(time::month(context.wall_ms));
    let today = time::day(context.wall_ms);
    if today > head.day {
        head.day = today;
        head.events_today = 0;
    }
    if is_blocked(limits, head.events_used) {
        let wait_ms = time::next_month_ms(context.wall_ms).saturating_sub(context.wall_ms);
        return Err(exceeded(month_used_up(limits), wait_ms.div_ceil(1000)));
    }
    let price = match is_used_up(limits, head.events_used) {
        true => limits.overage_price_atomic.unwrap_or(0),
        false => 0,
    };
    head.events_used += 1;
    head.events_today += 1;
    Ok(price)
}

/// The daily send counters that one command changes. They are written once, at its end.
#[derive(Default)]
pub struct SendCounts(Vec<(String, DayCount)>);

impl SendCounts {
    /// Counts one send in the agent's UTC day. Returns the count, including this send.
    pub fn count(
        &mut self,
        view: &View<'_>,
        context: &Context<'_>,
        team: TeamId,
        agent: &str,
        limits: &TeamLimits,
    ) -> Result<u64, Stop> {
        let count = self.of(view, team, agent)?;
        count_of_day(count, context.wall_ms, limits.daily_sends)
            .ok_or_else(|| used_up(context, agent, limits.daily_sends, "sends"))
    }

    fn of(&mut self, view: &View<'_>, team: TeamId, agent: &str) -> Result<&mut DayCount, Stop> {
        let place = match self.0.iter().position(|(known, _)| known == agent) {
            Some(place) => place,
            None => {
                let count = view.load(&keys::send_count(team, agent))?.unwrap_or_default();
                self.0.push((agent.to_owned(), count));
                self.0.len() - 1
            }
        };
        Ok(&mut self.0[place].1)
    }

    /// Writes the counters.
    pub fn close(self, view: &mut View<'_>, team: TeamId) {
        for (agent, count) in self.0 {
            view.store(keys::send_count(team, &agent), &count);
        }
    }
}

/// Counts one registration of a URL in the agent's UTC day. Returns the count, including this registration.
pub fn count_registration(
    view: &mut View<'_>,
    context: &Context<'_>,
    team: TeamId,
    agent: &str,
    limits: &TeamLimits,
) -> Result<u64, Stop> {
    let (row, limit) = (
        keys::registration_count(team, agent),
        limits.daily_webhook_registrations,
    );
    let mut count: DayCount = view.load(&row)?.unwrap_or_default();
    let used = count_of_day(&mut count, context.wall_ms, limit)
        .ok_or_else(|| used_up(context, agent, limit, "webhook registrations"))?;
    view.store(row, &count);
    Ok(used)
}

/// Resets a counter when `wall_ms` is in a later day than the counter's.
pub(super) fn turn(count: &mut DayCount, wall_ms: u64) {
    let today = time::day(wall_ms);
    if today > count.day {
        *count = DayCount { day: today, used: 0 };
    }
}

/// Adds one to the day's counter and returns it, or `None` if `limit` is reached. A limit of 0 means unlimited.
fn count_of_day(count: &mut DayCount, wall_ms: u64, limit: u64) -> Option<u64> {
    turn(count, wall_ms);
    let limit = limit + u64::from(limit != 0 && mutant::on(Mutant::OneMore));
    if limit != 0 && count.used >= limit {
        return None;
    }
    count.used += 1;
    Some(count.used)
}

/// The rejection for a daily limit that is reached. `Retry-After` is the next UTC midnight.
pub(super) fn used_up(context: &Context<'_>, agent: &str, limit: u64, what: &str) -> Stop {
    let message = format!("agent {agent:?} has used its {limit} {what} of this UTC day");
    exceeded(message, time::until_midnight_s(context.wall_ms))
}

fn exceeded(message: String, retry_after_s: u64) -> Stop {
    Stop::Reject(Rejection {
        retry_after_s: retry_after_s.max(1),
        ..Rejection::new(ErrorCode::QuotaExceeded, message)
    })
}
