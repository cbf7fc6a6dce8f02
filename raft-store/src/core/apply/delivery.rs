//! Deliveries. A delivery is one message to one URL of one receiving agent.
//!
//! The call to a webhook and the log are two systems, so nobody can guarantee exactly one call per event. This module
//! guarantees what is possible: an attempt number is granted once, in the log, before its call may begin; its outcome
//! is recorded once; the retry schedule advances once per recorded failure; the dead letter and the notice to the
//! sender are written by the same entry.
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
//! A delivery whose message has expired gets no further attempt: the claim of the next one cancels it.
//!
//! `attempt_no` numbers the attempts and is never reused; `step` is the position in the retry schedule. A claim carries
//! the epoch of the leader that proposed it, and the one node that may make the call. It may be any node, because
//! [`takeover`] waits for the longest time that a granted call can take. An outcome is accepted while the delivery is
//! claimed with exactly that number and epoch, even if a newer epoch has begun, and no longer after [`takeover`] has
//! closed the attempt.
//!
//! A delivery is in one index at a time: in `du` while it is scheduled, in the table `cl` while it is claimed, in `dx`
//! after it has ended. `eh` holds the first `du` row of each endpoint, so that a scan begins there and does not step over
//! the tombstones of removed rows. A closed endpoint (deleted, or disabled by a 410) grants no claims: [`close_endpoint`]
//! ends its scheduled deliveries, and a claimed one ends with its outcome or takeover.

mod attempts;
mod claims;
mod ending;

use agentpost_proto::id::{DeliveryId, TeamId};
use agentpost_proto::record::{Delivery, DeliveryState, EndpointHead, Message, TeamHead};
use bytes::Bytes;
use sha2::{Digest, Sha256};

pub use self::attempts::{NOT_SENT_DELAY_MS, OTHER_ATTEMPTS_KEPT, UNKNOWN_CLOSINGS_MAX, claim, outcome, takeover};
pub(super) use self::ending::sweep_aged;
pub use self::ending::{DELIVERY_RETENTION_MS, cancel, close_endpoint, redrive};
use super::{Context, inbox};
use crate::core::effect::Effect;
use crate::core::keys;
use crate::core::kv::{Fatal, Kv, Order};
use crate::core::view::View;

/// The destination of a delivery.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// The receiving agent.
    pub agent: &'a str,
    /// The URL, exactly as it was registered.
    pub url: &'a str,
    /// The generation of the endpoint.
    pub generation: u64,
    /// The subscription whose own URL this is, or empty for the agent's webhook.
    pub subscription_id: &'a [u8],
}

/// Creates a delivery that is due immediately. It adds one reference to the message.
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
        expires_at_ms: message.expires_at_ms,
        ..Delivery::default()
    };
    insert(view, context, team, head, delivery, effects).map(|_| ())
}

/// Stores a new delivery under a new id and number, due immediately.
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

/// The id of a delivery: a hash of its fields, each prefixed with its length, and so the same on every replica.
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
    // A message id may be used again after retention removed its first message, whose deliveries are kept for longer.
    hash.update(delivery.message_seq.to_be_bytes());
    hash.update(delivery.redrive_no.to_be_bytes());
    let hash = hash.finalize();
    DeliveryId(std::array::from_fn(|n| hash[n]))
}

/// Schedules the next attempt for the cluster time `due_ms`.
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

/// Removes a scheduled delivery from the `du` and `eh` indexes.
fn leave_due(view: &mut View<'_>, team: TeamId, delivery: &Delivery) -> Result<(), Fatal> {
    let (generation, number) = (delivery.generation, delivery.number);
    view.delete(keys::due(team, generation, delivery.due_ms, number));
    let key = keys::endpoint_head(team, generation);
    let head: Option<EndpointHead> = view.load(&key)?;
    if head.is_none_or(|head| head.number != number) {
        return Ok(());
    }
    match next_due(view, team, delivery)? {
        Some((due_ms, number)) => view.store(key, &EndpointHead { due_ms, number }),
        None => view.delete(key),
    }
    Ok(())
}

/// The scheduled delivery of the same endpoint that is due next after `delivery`.
fn next_due(view: &View<'_>, team: TeamId, delivery: &Delivery) -> Result<Option<(u64, u64)>, Fatal> {
    let range = keys::due_from(team, delivery.generation, delivery.due_ms, delivery.number + 1);
    let next = view.range(range, Order::Ascending).next().transpose()?;
    Ok(next.and_then(|(key, _)| keys::parse_due(&key)))
}
