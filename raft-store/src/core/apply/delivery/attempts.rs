//! Attempts. A claim grants an attempt; its outcome or a takeover closes it, once.

use agentpost_proto::command::{AttemptRef, AttemptResult, AttemptsReply, Claim, ErrorCode, Grant, Outcome, Takeover};
use agentpost_proto::id::TeamId;
use agentpost_proto::limits;
use agentpost_proto::record::{Attempt, AttemptEnd, Claimed, Delivery, DeliveryEnd, DeliveryState, Endpoint};
use bytes::Bytes;

use super::ending::{end_closed, finish};
use super::{claims, leave_due, make_due};
use crate::core::apply::check::parsed;
use crate::core::apply::{Context, Stop, check_epoch, endpoint, reject};
use crate::core::effect::Effect;
use crate::core::keys;
use crate::core::kv::Fatal;
use crate::core::mutant::{self, Mutant};
use crate::core::query;
use crate::core::view::View;

/// The delay after an attempt that was not sent.
pub const NOT_SENT_DELAY_MS: u64 = 1_000;
/// A delivery ends after more attempts than this with an unknown outcome, because its calls may be what kills the
/// nodes.
pub const UNKNOWN_CLOSINGS_MAX: u32 = 5;
/// Unknown and unsent attempts in the history of a delivery.
pub const OTHER_ATTEMPTS_KEPT: usize = 8;
/// Upper bound on the characters of the class of a failed attempt.
const ERROR_CHARS_MAX: usize = 64;
/// The HTTP statuses that end a delivery without a retry: 410 Gone, and QStash's 489, which counts only with its
/// header.
const GONE: u32 = 410;
const NON_RETRYABLE: u32 = 489;

/// Grants attempts to nodes, for the dispatcher of the current epoch. The delivery must be scheduled and due, and the
/// attempt must have its next number. If the message has expired, the delivery is cancelled instead.
pub fn claim(
    view: &mut View<'_>,
    context: &Context<'_>,
    op: &Claim,
    effects: &mut Vec<Effect>,
) -> Result<AttemptsReply, Stop> {
    check_epoch(view, op.epoch)?;
    bounded(op.grants.len())?;
    let mut done = Vec::with_capacity(op.grants.len());
    for grant in &op.grants {
        done.push(claim_one(view, context, op.epoch, grant, effects)?);
    }
    Ok(AttemptsReply { done })
}

fn claim_one(
    view: &mut View<'_>,
    context: &Context<'_>,
    epoch: u64,
    grant: &Grant,
    effects: &mut Vec<Effect>,
) -> Result<bool, Stop> {
    let Some(attempt) = &grant.attempt else {
        return reject(ErrorCode::Invalid, "a claim without its attempt");
    };
    let Some((team, mut delivery)) = find(view, attempt)? else {
        return Ok(false);
    };
    let next = delivery.attempt_no + 1;
    if delivery.state() != DeliveryState::Scheduled
        || attempt.attempt_no != next
        || context.cluster_ms < delivery.due_ms
        || !is_open(view, team, &delivery)?
    {
        return Ok(false);
    }
    leave_due(view, team, &delivery)?;
    if query::inbox::has_expired(delivery.expires_at_ms, context.wall_ms) {
        finish(view, context, team, delivery, Some(DeliveryEnd::Expired), effects)?;
        return Ok(false);
    }
    delivery.set_state(DeliveryState::Claimed);
    delivery.attempt_no = next;
    delivery.claim = Some(Claimed {
        epoch,
        ct_ms: context.cluster_ms,
        slot: claims::hold(view, epoch, team, delivery.number)?,
        node: grant.node,
    });
    view.store(keys::delivery(team, delivery.number), &delivery);
    Ok(true)
}

/// Records the outcomes of attempts. An outcome is ignored unless the delivery is claimed with exactly its number and
/// epoch.
pub fn outcome(
    view: &mut View<'_>,
    context: &Context<'_>,
    op: Outcome,
    effects: &mut Vec<Effect>,
) -> Result<AttemptsReply, Stop> {
    bounded(op.outcomes.len())?;
    let mut done = Vec::with_capacity(op.outcomes.len());
    for outcome in op.outcomes {
        let (Some(attempt), Some(result)) = (outcome.attempt, outcome.result) else {
            return reject(ErrorCode::Invalid, "an outcome without its attempt or result");
        };
        let claimed = match find(view, &attempt)? {
            Some((team, delivery)) if is_claim(&delivery, attempt.attempt_no, Some(outcome.epoch)) => (team, delivery),
            Some((team, delivery)) if mutant::on(Mutant::LateOutcome) && delivery.ended_at_ms == 0 => (team, delivery),
            _ => {
                done.push(false);
                continue;
            }
        };
        record(view, context, claimed, result, effects)?;
        done.push(true);
    }
    Ok(AttemptsReply { done })
}

fn record(
    view: &mut View<'_>,
    context: &Context<'_>,
    (team, mut delivery): (TeamId, Delivery),
    result: AttemptResult,
    effects: &mut Vec<Effect>,
) -> Result<(), Stop> {
    let (status, retry_after_ms) = (result.status, result.retry_after_ms);
    let (not_sent, non_retryable) = (result.not_sent, result.non_retryable);
    let end = match status {
        _ if not_sent => AttemptEnd::NotSent,
        200..=299 => AttemptEnd::Delivered,
        _ => AttemptEnd::Failed,
    };
    close_attempt(view, context, team, &mut delivery, end, result)?;
    if end == AttemptEnd::Delivered {
        return Ok(finish(view, context, team, delivery, None, effects)?);
    }
    if end == AttemptEnd::Failed && status == GONE {
        disable_endpoint(view, team, &delivery, effects)?;
        return Ok(finish(view, context, team, delivery, Some(DeliveryEnd::Gone), effects)?);
    }
    if end == AttemptEnd::Failed && status == NON_RETRYABLE && non_retryable {
        return Ok(finish(
            view,
            context,
            team,
            delivery,
            Some(DeliveryEnd::NonRetryable),
            effects,
        )?);
    }
    if !is_open(view, team, &delivery)? {
        return Ok(end_closed(view, context, team, delivery, effects)?);
    }
    if end == AttemptEnd::NotSent {
        let due_ms = context.cluster_ms + NOT_SENT_DELAY_MS;
        return Ok(make_due(view, team, &mut delivery, due_ms, effects)?);
    }
    let Some(delay_ms) = limits::RETRY_DELAYS_MS.get(delivery.step as usize) else {
        return Ok(finish(
            view,
            context,
            team,
            delivery,
            Some(DeliveryEnd::Exhausted),
            effects,
        )?);
    };
    delivery.step += 1;
    let asked_ms = Some(retry_after_ms).filter(|ms| *ms <= limits::RETRY_AFTER_MAX_MS);
    let due_ms = context.cluster_ms + asked_ms.unwrap_or(0).max(*delay_ms);
    Ok(make_due(view, team, &mut delivery, due_ms, effects)?)
}

/// Closes attempts as unknown, once they are so old that their calls cannot be running any more.
pub fn takeover(
    view: &mut View<'_>,
    context: &Context<'_>,
    op: &Takeover,
    effects: &mut Vec<Effect>,
) -> Result<AttemptsReply, Stop> {
    check_epoch(view, op.epoch)?;
    bounded(op.attempts.len())?;
    let mut done = Vec::with_capacity(op.attempts.len());
    for attempt in &op.attempts {
        done.push(take_over_one(view, context, attempt, effects)?);
    }
    Ok(AttemptsReply { done })
}

fn take_over_one(
    view: &mut View<'_>,
    context: &Context<'_>,
    attempt: &AttemptRef,
    effects: &mut Vec<Effect>,
) -> Result<bool, Stop> {
    let Some((team, mut delivery)) = find(view, attempt)? else {
        return Ok(false);
    };
    let claimed_ms = delivery.claim.unwrap_or_default().ct_ms;
    let late = context.cluster_ms >= claimed_ms + limits::TAKEOVER_AFTER_MS;
    if !late || !is_claim(&delivery, attempt.attempt_no, None) {
        return Ok(false);
    }
    close_attempt(
        view,
        context,
        team,
        &mut delivery,
        AttemptEnd::Unknown,
        AttemptResult::default(),
    )?;
    if mutant::on(Mutant::SameAttempt) {
        delivery.attempt_no -= 1;
    }
    if delivery.closed_unknown > UNKNOWN_CLOSINGS_MAX {
        let end = Some(DeliveryEnd::OutcomeUnknown);
        finish(view, context, team, delivery, end, effects)?;
    } else if is_open(view, team, &delivery)? {
        make_due(view, team, &mut delivery, context.cluster_ms, effects)?;
    } else {
        end_closed(view, context, team, delivery, effects)?;
    }
    Ok(true)
}

/// Adds the attempt to the delivery's history and removes the claim.
pub(super) fn close_attempt(
    view: &mut View<'_>,
    context: &Context<'_>,
    team: TeamId,
    delivery: &mut Delivery,
    end: AttemptEnd,
    result: AttemptResult,
) -> Result<(), Fatal> {
    let claim = delivery.claim.take().unwrap_or_default();
    claims::free(view, claim.slot, claim.epoch, team, delivery.number)?;
    match end {
        AttemptEnd::Delivered => delivery.closed_delivered += 1,
        AttemptEnd::Failed => delivery.closed_failed += 1,
        AttemptEnd::NotSent => delivery.closed_not_sent += 1,
        AttemptEnd::Unknown | AttemptEnd::Unspecified => delivery.closed_unknown += 1,
    }
    let mut response = result.response;
    response.truncate(limits::RESPONSE_BYTES_KEPT_MAX);
    delivery.attempts.push(Attempt {
        attempt_no: delivery.attempt_no,
        step: delivery.step,
        end: end as i32,
        status: result.status,
        error: result.error.chars().take(ERROR_CHARS_MAX).collect(),
        // Copied, because a slice would keep the whole log entry in memory.
        response: Bytes::copy_from_slice(&response),
        started_at_ms: result.started_at_ms,
        took_ms: result.took_ms,
        epoch: claim.epoch,
        closed_at_ms: context.wall_ms,
        node: claim.node,
    });
    forget_others(&mut delivery.attempts);
    Ok(())
}

/// Keeps the failed attempt of every step, and only the newest of the unknown and unsent attempts.
fn forget_others(attempts: &mut Vec<Attempt>) {
    let is_other = |a: &Attempt| matches!(a.end(), AttemptEnd::Unknown | AttemptEnd::NotSent);
    if attempts.iter().filter(|a| is_other(a)).count() > OTHER_ATTEMPTS_KEPT
        && let Some(oldest) = attempts.iter().position(is_other)
    {
        attempts.remove(oldest);
    }
}

/// Disables an endpoint after a 410, and begins to close its other open deliveries.
fn disable_endpoint(
    view: &mut View<'_>,
    team: TeamId,
    delivery: &Delivery,
    effects: &mut Vec<Effect>,
) -> Result<(), Fatal> {
    let key = keys::endpoint(team, &delivery.agent, &delivery.url);
    match view.load::<Endpoint>(&key)? {
        Some(mut row) if row.generation == delivery.generation && !row.disabled => {
            row.disabled = true;
            row.gone_generation = row.generation;
            view.store(key, &row);
            endpoint::begin_closing(view, team, delivery.generation, DeliveryEnd::Disabled, effects)
        }
        _ => Ok(()),
    }
}

/// Whether the delivery's endpoint still exists and is not disabled.
fn is_open(view: &View<'_>, team: TeamId, delivery: &Delivery) -> Result<bool, Fatal> {
    let open = endpoint::open_generation(view, team, &delivery.agent, &delivery.url)?;
    Ok(open == Some(delivery.generation))
}

fn is_claim(delivery: &Delivery, attempt_no: u32, epoch: Option<u64>) -> bool {
    delivery.state() == DeliveryState::Claimed
        && delivery.attempt_no == attempt_no
        && epoch.is_none_or(|epoch| delivery.claim.is_some_and(|claim| claim.epoch == epoch))
}

fn find(view: &View<'_>, attempt: &AttemptRef) -> Result<Option<(TeamId, Delivery)>, Stop> {
    let team = parsed(TeamId::from_slice(&attempt.team_id))?;
    let delivery = view.load(&keys::delivery(team, attempt.number))?;
    Ok(delivery.map(|delivery| (team, delivery)))
}

fn bounded(attempts: usize) -> Result<(), Stop> {
    if attempts > limits::CLAIMS_PER_ENTRY_MAX {
        return reject(ErrorCode::Invalid, "too many attempts in one entry");
    }
    Ok(())
}
