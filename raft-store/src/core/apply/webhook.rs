//! The webhook of an agent.

use agentpost_proto::command::{
    DeleteWebhook, ErrorCode, Permission, RegisterWebhook, TeamLimits, WebhookEvent, WebhookReply,
};
use agentpost_proto::id::{TeamId, WebhookId};
use agentpost_proto::record::{TeamHead, Webhook};

use super::check::parsed;
use super::principal::Caller;
use super::team;
use super::{Context, Stop, endpoint, quota, reject};
use crate::core::effect::Effect;
use crate::core::keys;
use crate::core::kv::Fatal;
use crate::core::view::View;

/// Registers the agent's webhook, replacing the previous one.
pub fn register(
    view: &mut View<'_>,
    context: &Context<'_>,
    op: RegisterWebhook,
    effects: &mut Vec<Effect>,
) -> Result<WebhookReply, Stop> {
    let caller = Caller::with(view, context, Permission::Write)?;
    caller.acts_as(&op.agent)?;
    endpoint::check_owner(&op.agent)?;
    endpoint::check_url(&op.url)?;
    let id = parsed(WebhookId::from_slice(&op.webhook_id))?;
    let events = known_events(&op.events)?;
    let team = caller.team;
    let limits: TeamLimits = team::limits_of(view, team)?;
    let registrations_used = quota::count_registration(view, context, team, &op.agent, &limits)?;

    let mut head: TeamHead = view.load(&keys::team_head(team))?.unwrap_or_default();
    let key = keys::webhook(team, &op.agent);
    let old: Webhook = view.load(&key)?.unwrap_or_default();
    let owner = endpoint::Owner { team, agent: &op.agent };
    let generation = endpoint::replace(view, context, &mut head, owner, &old.url, &op.url, effects)?;
    let webhook = Webhook {
        id: id.to_bytes(),
        url: op.url,
        events,
        created_at_ms: context.wall_ms,
    };
    view.store(key, &webhook);
    view.store(keys::team_head(team), &head);
    Ok(WebhookReply {
        webhook_id: webhook.id,
        generation,
        created_at_ms: webhook.created_at_ms,
        registrations_used,
        registrations_limit: limits.daily_webhook_registrations,
    })
}

/// Deletes the agent's webhook, if there is one.
pub fn delete(
    view: &mut View<'_>,
    context: &Context<'_>,
    op: &DeleteWebhook,
    effects: &mut Vec<Effect>,
) -> Result<(), Stop> {
    let caller = Caller::with(view, context, Permission::Write)?;
    caller.acts_as(&op.agent)?;
    endpoint::check_owner(&op.agent)?;
    let team = caller.team;
    let key = keys::webhook(team, &op.agent);
    let Some(webhook) = view.load::<Webhook>(&key)? else {
        return Ok(());
    };
    let mut head: TeamHead = view.load(&keys::team_head(team))?.unwrap_or_default();
    let owner = endpoint::Owner { team, agent: &op.agent };
    endpoint::replace(view, context, &mut head, owner, &webhook.url, "", effects)?;
    view.delete(key);
    view.store(keys::team_head(team), &head);
    Ok(())
}

/// The URL and generation of the agent's webhook, if it is registered for this event and not disabled.
pub(super) fn open(
    view: &View<'_>,
    team: TeamId,
    agent: &str,
    event: WebhookEvent,
) -> Result<Option<(String, u64)>, Fatal> {
    match view.load::<Webhook>(&keys::webhook(team, agent))? {
        Some(webhook) if webhook.events.contains(&(event as i32)) => {
            let generation = endpoint::open_generation(view, team, agent, &webhook.url)?;
            Ok(generation.map(|generation| (webhook.url, generation)))
        }
        _ => Ok(None),
    }
}

/// Sorts a list of events and removes duplicates. Rejects an empty list and unknown events.
fn known_events(named: &[i32]) -> Result<Vec<i32>, Stop> {
    let known = |event: &i32| WebhookEvent::try_from(*event).is_ok_and(|e| e != WebhookEvent::Unspecified);
    if named.is_empty() || !named.iter().all(known) {
        return reject(
            ErrorCode::Invalid,
            "a webhook names at least one event, and only known ones",
        );
    }
    let mut events = named.to_vec();
    events.sort_unstable();
    events.dedup();
    Ok(events)
}
