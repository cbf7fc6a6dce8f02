//! Subscriptions to topics.

use agentpost_proto::command::{ErrorCode, Subscribe, SubscriptionReply, Unsubscribe};

use super::{Context, Stop, reject};
use crate::effect::Effect;
use crate::view::View;

/// Subscribes an agent, or changes the URL of its subscription.
pub fn subscribe(
    _view: &mut View<'_>,
    _context: &Context<'_>,
    _op: &Subscribe,
    _effects: &mut Vec<Effect>,
) -> Result<SubscriptionReply, Stop> {
    reject(ErrorCode::Invalid, "not built yet")
}

/// Ends a subscription, if there is one.
pub fn unsubscribe(
    _view: &mut View<'_>,
    _context: &Context<'_>,
    _op: &Unsubscribe,
    _effects: &mut Vec<Effect>,
) -> Result<(), Stop> {
    reject(ErrorCode::Invalid, "not built yet")
}
