//! Counting. Sends, registrations and events are counted in the same entry as what they count, so a limit is
//! never exceeded and nothing is counted that was not stored. Reads are counted in blocks: [`super::lease`].

use agentpost_proto::command::{ErrorCode, Rejection, TeamLimits};
use agentpost_proto::id::TeamId;
use agentpost_proto::record::{DayCount, TeamHead};
use agentpost_proto::time;

use super::{Context, Stop};
use crate::keys;
use crate::view::View;

/// Counts an event of the team's month and of its UTC day. Returns its price: 0 within the limit.
pub fn count_event(head: &mut TeamHead, limits: &TeamLimits, context: &Context<'_>) -> Result<u64, Stop> {
    let month = time::month(context.wall_ms);
    if month > head.month {
        head.month = month;
        head.events_used = 0;
    }
    let today = time::day(context.wall_ms);
    if today > head.day {
        head.day = today;
        head.events_today = 0;
    }
    let within = limits.monthly_events == 0 || head.events_used < limits.monthly_events;
    let price = match (within, limits.overage_price_atomic) {
        (true, _) => 0,
        (false, Some(price)) => price,
        (false, None) => {
            let message = format!("the team's {} events of this month are used up", limits.monthly_events);
            let wait_ms = time::next_month_ms(context.wall_ms).saturating_sub(context.wall_ms);
            return Err(exceeded(message, wait_ms.div_ceil(1000)));
        }
    };
    head.events_used += 1;
    head.events_today += 1;
    Ok(price)
}

/// The day counters that one command touches, written once at its end.
#[derive(Default)]
pub struct SendCounts(Vec<(String, DayCount)>);

impl SendCounts {
    /// Counts a send of the agent's UTC day. Returns how many it has made, this one included.
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

    /// Writes what was counted.
    pub fn close(self, view: &mut View<'_>, team: TeamId) {
        for (agent, count) in self.0 {
            view.store(keys::send_count(team, &agent), &count);
        }
    }
}

/// Counts a registration of a URL in the agent's UTC day. Returns how many it has made, this one included.
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

/// Turns a counter to the day of `wall_ms`. It never turns back: replicated wall time does not.
pub(super) fn turn(count: &mut DayCount, wall_ms: u64) {
    let today = time::day(wall_ms);
    if today > count.day {
        *count = DayCount { day: today, used: 0 };
    }
}

/// Counts one more of the day, if `limit` (0 = unlimited) leaves one. Returns how many there are.
fn count_of_day(count: &mut DayCount, wall_ms: u64, limit: u64) -> Option<u64> {
    turn(count, wall_ms);
    if limit != 0 && count.used >= limit {
        return None;
    }
    count.used += 1;
    Some(count.used)
}

/// The refusal of what has no unit left before the next UTC midnight.
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
