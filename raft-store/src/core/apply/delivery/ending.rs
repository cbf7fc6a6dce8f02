//! The end of deliveries: dead letters, notices, cancellation, redrive, and removal by age.

use agentpost_proto::api::abbababa::DeliveryFailed;
use agentpost_proto::command::{
    BodyKind, CancelDelivery, CloseEndpoint, CloseReply, ErrorCode, Permission, Redrive, RedriveReply,
};
use agentpost_proto::id::{AgentId, DeliveryId, MessageId, TeamId};
use agentpost_proto::record::{
    AttemptEnd, Closing, DeadLetter, Delivery, DeliveryEnd, DeliveryState, Endpoint, Message, TeamHead,
};
use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::attempts::close_attempt;
use super::{insert, leave_due};
use crate::core::apply::check::parsed;
use crate::core::apply::principal::{self, Caller};
use crate::core::apply::{Context, Stop, check_epoch, endpoint, inbox, queue, reject, retention};
use crate::core::effect::Effect;
use crate::core::keys::{self, Queue};
use crate::core::kv::{Fatal, Lookup};
use crate::core::mutant::{self, Mutant};
use crate::core::query;
use crate::core::query::queue::Now;
use crate::core::view::View;

/// Upper bound on the deliveries that one CloseEndpoint entry ends.
const CLOSINGS_PER_ENTRY_MAX: usize = 256;
/// Age at which a delivery that has ended is removed, in cluster time. A dead delivery keeps its message for this time,
/// and its row for as long again, so that a late redrive is answered with the reason.
pub const DELIVERY_RETENTION_MS: u64 = 30 * 24 * 3600 * 1000;

/// Ends a delivery that is in none of the indexes `du` and `cl` any more. `None` means delivered. For a dead delivery
/// the same entry writes the dead letter and the notice to the sender, and the message is kept for a redrive.
pub(super) fn finish(
    view: &mut View<'_>,
    context: &Context<'_>,
    team: TeamId,
    mut delivery: Delivery,
    end: Option<DeliveryEnd>,
    effects: &mut Vec<Effect>,
) -> Result<(), Fatal> {
    let state = match end {
        None => DeliveryState::Delivered,
        Some(DeliveryEnd::Deleted | DeliveryEnd::Cancelled | DeliveryEnd::Expired) => DeliveryState::Cancelled,
        Some(_) => DeliveryState::Dead,
    };
    delivery.set_state(state);
    delivery.set_end(end.unwrap_or_default());
    delivery.claim = None;
    delivery.due_ms = 0;
    delivery.ended_at_ms = context.wall_ms;
    delivery.ended_ct_ms = context.cluster_ms;
    let ages_at = context.cluster_ms + DELIVERY_RETENTION_MS;
    view.put(keys::delivery_ageing(ages_at, team, delivery.number), Bytes::new());
    let mut head: TeamHead = view.load(&keys::team_head(team))?.unwrap_or_default();
    if state == DeliveryState::Dead {
        bury(view, context, team, &mut head, &delivery, effects)?;
    } else {
        inbox::release_message(view, team, &mut head, delivery.message_seq)?;
    }
    view.store(keys::team_head(team), &head);
    view.store(keys::delivery(team, delivery.number), &delivery);
    Ok(())
}

/// Ends a delivery whose endpoint was deleted or disabled while it was claimed.
pub(super) fn end_closed(
    view: &mut View<'_>,
    context: &Context<'_>,
    team: TeamId,
    delivery: Delivery,
    effects: &mut Vec<Effect>,
) -> Result<(), Fatal> {
    let key = keys::endpoint(team, &delivery.agent, &delivery.url);
    let row: Option<Endpoint> = view.load(&key)?;
    let end = match row {
        Some(row) if row.gone_generation == delivery.generation => DeliveryEnd::Disabled,
        _ => DeliveryEnd::Deleted,
    };
    finish(view, context, team, delivery, Some(end), effects)
}

/// Writes the dead-letter row and appends the notice to the sender's inbox. The id of the notice is derived from the
/// delivery's id, so there is at most one.
fn bury(
    view: &mut View<'_>,
    context: &Context<'_>,
    team: TeamId,
    head: &mut TeamHead,
    delivery: &Delivery,
    effects: &mut Vec<Effect>,
) -> Result<(), Fatal> {
    let id = notice_id(delivery);
    // Recorded before the row is written, so that a later send with this id finds the row.
    view.may_hold(team, id)?;
    head.last_seq += 1;
    let seq = head.last_seq;
    let notice = Message {
        id: id.to_bytes(),
        seq,
        from: AgentId::SYSTEM.to_owned(),
        to: delivery.from.clone(),
        r#type: DeliveryFailed::TYPE.to_owned(),
        body_kind: BodyKind::Object as i32,
        body: notice_body(delivery)?,
        created_at_ms: context.wall_ms,
        created_ct_ms: context.cluster_ms,
        ..Message::default()
    };
    view.put(keys::message_id(team, id), keys::number(seq));
    view.store(keys::message(team, seq), &notice);
    retention::watch(view, context, team, head, &notice);
    if !(mutant::on(Mutant::NoticeLost) && delivery.number.is_multiple_of(4)) {
        inbox::append(view, team, head, &notice.to, seq, &notice)?;
    }
    let dead = DeadLetter {
        delivery_id: delivery.id.clone(),
        end: delivery.end,
        dead_at_ms: context.wall_ms,
        notice_id: notice.id,
        notice_seq: seq,
    };
    view.store(keys::dead_letter(team, delivery.number), &dead);
    effects.push(Effect::InboxAppended {
        team,
        agent: notice.to,
        seq,
    });
    Ok(())
}

/// The timestamp bits are zero, so a notice id sorts below every UUIDv7. `RecentIds` relies on the greatest id of a
/// team to prove that an id is new.
fn notice_id(delivery: &Delivery) -> MessageId {
    let hash = Sha256::digest([b"notice/v1", &delivery.id[..]].concat());
    let bytes = std::array::from_fn(|n| if n < 6 { 0 } else { hash[n] });
    MessageId(uuid::Builder::from_custom_bytes(bytes).into_uuid())
}

fn notice_body(delivery: &Delivery) -> Result<Bytes, Fatal> {
    let invariant = |why: String| Fatal::Invariant(why);
    let message = MessageId::from_slice(&delivery.message_id).map_err(|e| invariant(e.to_string()))?;
    let id = DeliveryId::from_slice(&delivery.id).map_err(|e| invariant(e.to_string()))?;
    let last = delivery.attempts.iter().rfind(|a| a.end() == AttemptEnd::Failed);
    let body = DeliveryFailed {
        message_id: message.abbababa(),
        to_agent_id: delivery.agent.clone(),
        topic: Some(delivery.topic.clone()).filter(|topic| !topic.is_empty()),
        url: delivery.url.clone(),
        attempts: delivery.attempt_no,
        last_status: last.map(|a| a.status).filter(|status| *status != 0),
        last_error: last_error(delivery, last.map_or("", |a| &a.error)),
        delivery_id: id.to_string(),
    };
    serde_json::to_vec(&body)
        .map(Bytes::from)
        .map_err(|e| invariant(e.to_string()))
}

/// The error text in the notice: why the delivery ended, or the last failure if that was the reason.
fn last_error(delivery: &Delivery, failure: &str) -> String {
    match delivery.end() {
        DeliveryEnd::Disabled => "the webhook answered 410 to another delivery and is disabled".to_owned(),
        DeliveryEnd::OutcomeUnknown => "too many attempts ended without a known outcome".to_owned(),
        _ => failure.to_owned(),
    }
}

/// Ends scheduled deliveries of an endpoint that is being closed, a bounded number per command.
pub fn close_endpoint(
    view: &mut View<'_>,
    context: &Context<'_>,
    op: &CloseEndpoint,
    effects: &mut Vec<Effect>,
) -> Result<CloseReply, Stop> {
    check_epoch(view, op.epoch)?;
    let team = parsed(TeamId::from_slice(&op.team_id))?;
    let key = keys::closing(team, op.generation);
    let Some(closing) = view.load::<Closing>(&key)? else {
        return Ok(CloseReply {
            closed: 0,
            finished: true,
        });
    };
    let due = query::delivery::scheduled(view, team, op.generation, CLOSINGS_PER_ENTRY_MAX)?;
    for &(_, number) in &due {
        let delivery: Delivery = view
            .load(&keys::delivery(team, number))?
            .ok_or_else(|| Fatal::Invariant(format!("a due row of {team} without its delivery {number}")))?;
        leave_due(view, team, &delivery)?;
        finish(view, context, team, delivery, Some(closing.end()), effects)?;
    }
    let finished = view.get(&keys::endpoint_head(team, op.generation))?.is_none();
    if finished {
        view.delete(key);
    }
    Ok(CloseReply {
        closed: due.len() as u32,
        finished,
    })
}

/// Cancels an open delivery. The sender gets no notice.
pub fn cancel(view: &mut View<'_>, context: &Context<'_>, op: &CancelDelivery) -> Result<(), Stop> {
    let (team, mut delivery) = authorized(view, context, &op.delivery_id, &op.agent, &op.team_id)?;
    match delivery.state() {
        DeliveryState::Scheduled => leave_due(view, team, &delivery)?,
        // The call may still be running, so the outcome of the attempt is unknown.
        DeliveryState::Claimed => {
            let nothing = agentpost_proto::command::AttemptResult::default();
            close_attempt(view, context, team, &mut delivery, AttemptEnd::Unknown, nothing)?;
        }
        _ => return reject(ErrorCode::Conflict, "the delivery is over"),
    }
    finish(
        view,
        context,
        team,
        delivery,
        Some(DeliveryEnd::Cancelled),
        &mut Vec::new(),
    )?;
    Ok(())
}

/// Starts a dead delivery again, as a new delivery. Repeating the command returns the id of the first redrive.
pub fn redrive(
    view: &mut View<'_>,
    context: &Context<'_>,
    op: &Redrive,
    effects: &mut Vec<Effect>,
) -> Result<RedriveReply, Stop> {
    let (team, mut dead) = authorized(view, context, &op.delivery_id, &op.agent, &op.team_id)?;
    if dead.state() != DeliveryState::Dead {
        return reject(ErrorCode::Conflict, "only a dead delivery can be redriven");
    }
    if !dead.redriven_as.is_empty() {
        return Ok(RedriveReply {
            delivery_id: dead.redriven_as,
        });
    }
    // An aged or expired message counts as gone even before the sweep removes it.
    if context.cluster_ms >= dead.ended_ct_ms + DELIVERY_RETENTION_MS
        || query::inbox::has_expired(dead.expires_at_ms, context.wall_ms)
    {
        return reject(ErrorCode::Gone, "the message of this delivery is not kept any more");
    }
    let Some(generation) = endpoint::open_generation(view, team, &dead.agent, &dead.url)? else {
        return reject(
            ErrorCode::Conflict,
            "the URL is not registered, or is disabled; register it again first",
        );
    };
    let mut head: TeamHead = view.load(&keys::team_head(team))?.unwrap_or_default();
    let again = Delivery {
        message_id: dead.message_id.clone(),
        message_seq: dead.message_seq,
        from: dead.from.clone(),
        agent: dead.agent.clone(),
        topic: dead.topic.clone(),
        url: dead.url.clone(),
        generation,
        subscription_id: dead.subscription_id.clone(),
        redrive_no: dead.redrive_no + 1,
        redrive_of: dead.id.clone(),
        expires_at_ms: dead.expires_at_ms,
        ..Delivery::default()
    };
    let id = insert(view, context, team, &mut head, again, effects)?;
    view.store(keys::team_head(team), &head);
    dead.redriven_as = id.to_bytes();
    view.store(keys::delivery(team, dead.number), &dead);
    Ok(RedriveReply {
        delivery_id: dead.redriven_as,
    })
}

/// The delivery, if the caller may cancel or redrive it: its receiving agent, an admin of its team, or an operator of
/// the cluster. The sender gets a `Forbidden`, and everybody else the same answer as for a delivery that does not
/// exist.
fn authorized(
    view: &View<'_>,
    context: &Context<'_>,
    id: &[u8],
    agent: &str,
    team: &[u8],
) -> Result<(TeamId, Delivery), Stop> {
    let caller = Caller::with(view, context, Permission::Write)?;
    let id = parsed(DeliveryId::from_slice(id))?;
    let team = match team {
        [] => caller.team,
        bytes => parsed(TeamId::from_slice(bytes))?,
    };
    let administers = caller.key.agent_id.is_empty() && principal::permits(&caller.key, Permission::Admin);
    let unknown = || reject(ErrorCode::NotFound, "no such delivery");
    if team != caller.team && !(administers && caller.team == TeamId::SYSTEM) {
        return unknown();
    }
    let Some(delivery) = query::delivery::by_id(view, team, id)? else {
        return unknown();
    };
    if administers {
        return Ok((team, delivery));
    }
    caller.acts_as(agent)?;
    if delivery.agent == agent {
        Ok((team, delivery))
    } else if delivery.from == agent {
        reject(
            ErrorCode::Forbidden,
            "only the receiving agent or an admin of the team may do this",
        )
    } else {
        unknown()
    }
}

/// Removes aged deliveries. A dead delivery first releases its message and is removed itself one retention period
/// later. Returns how many rows of the index it processed, at most `rows`.
pub(in crate::core::apply) fn sweep_aged(view: &mut View<'_>, now: Now, rows: usize) -> Result<usize, Fatal> {
    let due = queue::take(view, Queue::Deliveries, now, rows)?;
    for (ageing, _) in &due {
        let (team, number) =
            keys::parse_message_expiry(ageing).ok_or_else(|| Fatal::Invariant("a short dx key".to_owned()))?;
        let key = keys::delivery(team, number);
        let mut delivery: Delivery = view
            .load(&key)?
            .ok_or_else(|| Fatal::Invariant(format!("an ageing row of {team} without its delivery {number}")))?;
        if delivery.state() == DeliveryState::Dead && !delivery.message_released {
            let mut head: TeamHead = view.load(&keys::team_head(team))?.unwrap_or_default();
            inbox::release_message(view, team, &mut head, delivery.message_seq)?;
            view.store(keys::team_head(team), &head);
            delivery.message_released = true;
            view.store(key, &delivery);
            let again = keys::delivery_ageing(now.cluster_ms + DELIVERY_RETENTION_MS, team, number);
            view.put(again, Bytes::new());
            continue;
        }
        view.delete(key);
        let id = DeliveryId::from_slice(&delivery.id).map_err(|e| Fatal::Invariant(e.to_string()))?;
        view.delete(keys::delivery_id(team, id));
        view.delete(keys::delivery_of_message(team, delivery.message_seq, number));
        view.delete(keys::dead_letter(team, number));
    }
    let removed = due.len();
    queue::remove(view, Queue::Deliveries, due.into_iter().map(|(key, _)| key));
    Ok(removed)
}
