//! Deliveries: one message, one receiving agent, one URL each.
//!
//! A call to a webhook and the log are two systems, so no one can promise one call for each event. What can be
//! promised is promised here: an attempt number is granted once, in the log, before its call may begin; what
//! became of it is recorded once; the ladder moves once per recorded failure; a dead letter and the sender's
//! notice are one entry.
//!
//! ```text
//!             Claim(n, e)            2xx
//! Scheduled ──────────────► Claimed ─────► Delivered
//!     ▲   failed, step + 1     │
//!     │   not sent, + 1 s      │ 410, 489, the last step failed, too often unknown
//!     └────────────────────────┤
//!         unknown (Takeover)   └────────► Dead: dead letter and notice
//! ```
//!
//! `attempt_no` is the serial of calls and never reused; `step` is the place on the ladder. A claim names the
//! epoch of its leader. Its outcome counts while the delivery is claimed by exactly that number and epoch,
//! also when a newer epoch has begun; once [`takeover`] closed the number, it does not.
//!
//! A delivery stands in one index at a time: `du` while scheduled (with `eh`, the first `du` of each endpoint,
//! which also saves scanning over the traces of removed rows), `cl` while claimed, `dx` when it has ended.
//! An endpoint that is closed (deleted, or disabled by a 410) grants no claims: its scheduled deliveries end
//! by [`close_endpoint`], claimed ones by their own outcome or takeover.

mod attempts;
mod ending;

use agentpost_proto::id::{DeliveryId, TeamId};
use agentpost_proto::record::{Delivery, DeliveryState, EndpointHead, Message, TeamHead};
use bytes::Bytes;
use sha2::{Digest, Sha256};

pub use self::attempts::{claim, outcome, takeover};
pub(super) use self::ending::sweep_aged;
pub use self::ending::{cancel, close_endpoint, redrive};
use super::{Context, inbox};
use crate::core::effect::Effect;
use crate::core::keys;
use crate::core::kv::{Fatal, Kv, Order};
use crate::core::view::View;

/// Where a delivery leads.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// Who receives.
    pub agent: &'a str,
    /// Exactly as registered.
    pub url: &'a str,
    /// Of its endpoint.
    pub generation: u64,
    /// When a subscription's own URL is called; else empty.
    pub subscription_id: &'a [u8],
}

/// Schedules the first attempt of a delivery at once. The message holds one reference more.
pub fn schedule(
    view: &mut View<'_>,
    context: &Context<'_>,
    team: TeamId,
    head: &mut TeamHead,
    message: &Message,
    target: Target<'_>,
    effects: &mut Vec<Effect>,
) -> Result<(), Fatal> {
    let delivery = Delivery {
        message_id: message.id.clone(),
        message_seq: message.seq,
        from: message.from.clone(),
        agent: target.agent.to_owned(),
        topic: message.topic.clone(),
        url: target.url.to_owned(),
        generation: target.generation,
        subscription_id: Bytes::copy_from_slice(target.subscription_id),
        ..Delivery::default()
    };
    insert(view, context, team, head, delivery, effects).map(|_| ())
}

/// Gives a new delivery its id, number and first due time.
fn insert(
    view: &mut View<'_>,
    context: &Context<'_>,
    team: TeamId,
    head: &mut TeamHead,
    mut delivery: Delivery,
    effects: &mut Vec<Effect>,
) -> Result<DeliveryId, Fatal> {
    head.last_delivery += 1;
    let id = id_of(&delivery);
    delivery.id = id.to_bytes();
    delivery.number = head.last_delivery;
    delivery.created_at_ms = context.wall_ms;
    delivery.created_ct_ms = context.cluster_ms;
    view.put(keys::delivery_id(team, id), keys::number(delivery.number));
    let of_message = keys::delivery_of_message(team, delivery.message_seq, delivery.number);
    view.put(of_message, Bytes::new());
    inbox::retain_message(view, team, delivery.message_seq, 1)?;
    make_due(view, team, &mut delivery, context.cluster_ms, effects)?;
    Ok(id)
}

/// The same on every replica, and for a repeat of the same entry; each field behind its length.
fn id_of(delivery: &Delivery) -> DeliveryId {
    let mut hash = Sha256::new();
    for field in [
        &delivery.message_id[..],
        delivery.agent.as_bytes(),
        delivery.url.as_bytes(),
    ] {
        hash.update((field.len() as u64).to_be_bytes());
        hash.update(field);
    }
    // A message id may come again when retention has taken its first message, whose deliveries stay for longer.
    hash.update(delivery.message_seq.to_be_bytes());
    hash.update(delivery.redrive_no.to_be_bytes());
    let hash = hash.finalize();
    DeliveryId(std::array::from_fn(|n| hash[n]))
}

/// Schedules an attempt for `due_ms`, cluster time.
fn make_due(
    view: &mut View<'_>,
    team: TeamId,
    delivery: &mut Delivery,
    due_ms: u64,
    effects: &mut Vec<Effect>,
) -> Result<(), Fatal> {
    let (generation, number) = (delivery.generation, delivery.number);
    delivery.set_state(DeliveryState::Scheduled);
    delivery.due_ms = due_ms;
    delivery.claim = None;
    view.store(keys::delivery(team, number), delivery);
    view.put(keys::due(team, generation, due_ms, number), Bytes::new());
    let key = keys::endpoint_head(team, generation);
    let head: Option<EndpointHead> = view.load(&key)?;
    if head.is_none_or(|head| (due_ms, number) < (head.due_ms, head.number)) {
        view.store(key, &EndpointHead { due_ms, number });
        effects.push(Effect::DeliveryDue { team, generation });
    }
    Ok(())
}

/// Takes a scheduled delivery out of the indexes of what is due.
fn leave_due(view: &mut View<'_>, team: TeamId, delivery: &Delivery) -> Result<(), Fatal> {
    let (generation, number) = (delivery.generation, delivery.number);
    view.delete(keys::due(team, generation, delivery.due_ms, number));
    let key = keys::endpoint_head(team, generation);
    let head: Option<EndpointHead> = view.load(&key)?;
    if head.is_none_or(|head| head.number != number) {
        return Ok(());
    }
    match first_due(view, team, generation, delivery.due_ms)? {
        Some((due_ms, number)) => view.store(key, &EndpointHead { due_ms, number }),
        None => view.delete(key),
    }
    Ok(())
}

/// The first scheduled delivery of an endpoint that is due at `from_ms` or later.
fn first_due(view: &View<'_>, team: TeamId, generation: u64, from_ms: u64) -> Result<Option<(u64, u64)>, Fatal> {
    let first = view
        .range(keys::due_from(team, generation, from_ms), Order::Ascending)
        .next()
        .transpose()?;
    Ok(first.and_then(|(key, _)| keys::parse_due(&key)))
}
