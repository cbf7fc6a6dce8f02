//! The global webhook of an agent.

use agentpost_proto::command::{DeleteWebhook, ErrorCode, RegisterWebhook, WebhookReply};

use super::{Context, Stop, reject};
use crate::effect::Effect;
use crate::view::View;

/// Registers a webhook in the place of the agent's last one.
pub fn register(
    _view: &mut View<'_>,
    _context: &Context<'_>,
    _op: RegisterWebhook,
    _effects: &mut Vec<Effect>,
) -> Result<WebhookReply, Stop> {
    reject(ErrorCode::Invalid, "not built yet")
}

/// Deletes the agent's webhook, if there is one.
pub fn delete(
    _view: &mut View<'_>,
    _context: &Context<'_>,
    _op: &DeleteWebhook,
    _effects: &mut Vec<Effect>,
) -> Result<(), Stop> {
    reject(ErrorCode::Invalid, "not built yet")
}
