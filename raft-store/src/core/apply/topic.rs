//! Subscriptions to topics.
//!
//! A publish at log index p reaches the subscription rows with `since < p < until`. A row that ends while the topic has
//! an unfinished fan-out job is kept, because the job may still have to reach it; a later publish removes it. A topic
//! exists while it has subscription rows or unfinished jobs.
//!
//! The rows of a topic have the serials from 1 to their number, without gaps: when one is removed, the last one takes its
//! place. So a publish reads exactly the rows that exist, however many agents came and went. A row that moves during a
//! job moves to the place where the job stands, so the job still meets it, once; and so does each later job, because none
//! of them has begun.
//!
//! The receivers of a publish are the subscribers at its log index, but their URLs are those of the moment of delivery.
//! So an agent that unsubscribes while a job is unfinished still gets the message in its inbox, but not at its URL.

use agentpost_proto::command::{ErrorCode, Permission, Subscribe, SubscriptionReply, Unsubscribe};
use agentpost_proto::id::{self, SubscriptionId, TeamId};
use agentpost_proto::limits;
use agentpost_proto::record::{Subscription, TeamHead, Topic};

use super::check::parsed;
use super::principal::Caller;
use super::team;
use super::{Context, Stop, endpoint, quota, reject};
use crate::core::effect::Effect;
use crate::core::keys;
use crate::core::kv::Fatal;
use crate::core::query;
use crate::core::view::View;

/// Upper bound on the open subscriptions of a team.
pub const SUBSCRIPTIONS_MAX: u32 = 50_000;
/// Upper bound on the subscription rows of a topic, including closed ones. It bounds the receivers of one publish.
pub const TOPIC_ROWS_MAX: u64 = 20_000;

/// Subscribes an agent, or changes the URL of its subscription.
pub fn subscribe(
    view: &mut View<'_>,
    context: &Context<'_>,
    op: &Subscribe,
    effects: &mut Vec<Effect>,
) -> Result<SubscriptionReply, Stop> {
    let team = authorized(view, context, &op.agent, &op.topic)?;
    let id = parsed(SubscriptionId::from_slice(&op.subscription_id))?;
    let (mut registrations_used, mut registrations_limit) = (0, 0);
    if let Some(url) = op.url.as_deref().filter(|url| !url.is_empty()) {
        endpoint::check_url(url)?;
        let limits = team::limits_of(view, team)?;
        registrations_used = quota::count_registration(view, context, team, &op.agent, &limits)?;
        registrations_limit = limits.daily_webhook_registrations;
    }
    let mut head: TeamHead = view.load(&keys::team_head(team))?.unwrap_or_default();
    let (serial, mut row) = match query::topic::open(view, team, &op.agent, &op.topic)? {
        Some(open) => open,
        None => add(view, context, team, &mut head, op, id)?,
    };
    let generation = match &op.url {
        Some(url) => {
            let owner = endpoint::Owner { team, agent: &op.agent };
            let generation = endpoint::replace(view, context, &mut head, owner, &row.url, url, effects)?;
            row.url.clone_from(url);
            row.updated_at_ms = context.wall_ms;
            generation
        }
        None => query::topic::endpoint(view, team, &op.agent, &row.url)?.map_or(0, |e| e.generation),
    };
    view.store(keys::subscription(team, &op.topic, serial), &row);
    view.store(keys::team_head(team), &head);
    Ok(SubscriptionReply {
        subscription_id: row.id,
        url: row.url,
        generation,
        created_at_ms: row.created_at_ms,
        updated_at_ms: row.updated_at_ms,
        registrations_used,
        registrations_limit,
    })
}

/// Adds a subscription row after the others of the topic.
fn add(
    view: &mut View<'_>,
    context: &Context<'_>,
    team: TeamId,
    head: &mut TeamHead,
    op: &Subscribe,
    id: SubscriptionId,
) -> Result<(u64, Subscription), Stop> {
    let key = keys::topic(team, &op.topic);
    let known: Option<Topic> = view.load(&key)?;
    let full = |what: String| reject(ErrorCode::Forbidden, what);
    if known.is_none() {
        if head.topics >= limits::TOPICS_MAX {
            return full(format!("the team has {} topics already", limits::TOPICS_MAX));
        }
        head.topics += 1;
    }
    let mut topic = known.unwrap_or_default();
    if topic.rows >= TOPIC_ROWS_MAX {
        return full(format!("the topic has {TOPIC_ROWS_MAX} subscriptions already"));
    }
    if head.subscriptions >= SUBSCRIPTIONS_MAX {
        return full(format!("the team has {SUBSCRIPTIONS_MAX} subscriptions already"));
    }
    head.subscriptions += 1;
    topic.rows += 1;
    view.store(key, &topic);
    let subscribed = keys::subscribed(team, &op.agent, &op.topic);
    view.put(subscribed, keys::number(topic.rows));
    let row = Subscription {
        id: id.to_bytes(),
        agent: op.agent.clone(),
        since_index: context.index,
        created_at_ms: context.wall_ms,
        updated_at_ms: context.wall_ms,
        ..Subscription::default()
    };
    Ok((topic.rows, row))
}

/// Ends a subscription, if there is one.
pub fn unsubscribe(
    view: &mut View<'_>,
    context: &Context<'_>,
    op: &Unsubscribe,
    effects: &mut Vec<Effect>,
) -> Result<(), Stop> {
    let team = authorized(view, context, &op.agent, &op.topic)?;
    let Some((serial, mut row)) = query::topic::open(view, team, &op.agent, &op.topic)? else {
        return Ok(());
    };
    let mut head: TeamHead = view.load(&keys::team_head(team))?.unwrap_or_default();
    let mut topic: Topic = load(view, team, &op.topic)?;
    let owner = endpoint::Owner { team, agent: &op.agent };
    endpoint::replace(view, context, &mut head, owner, &row.url, "", effects)?;
    view.delete(keys::subscribed(team, &op.agent, &op.topic));
    head.subscriptions = head.subscriptions.saturating_sub(1);
    if topic.jobs == 0 {
        remove_row(view, team, &op.topic, &mut topic, serial)?;
    } else {
        // An unfinished, older publish still reaches this inbox, but no longer its URL.
        row.until_index = context.index;
        row.url.clear();
        view.store(keys::subscription(team, &op.topic, serial), &row);
    }
    keep(view, team, &mut head, &op.topic, &topic);
    view.store(keys::team_head(team), &head);
    Ok(())
}

/// Removes a subscription row. The last row of the topic takes its serial, and is returned. The caller stores the topic.
pub(super) fn remove_row(
    view: &mut View<'_>,
    team: TeamId,
    name: &str,
    topic: &mut Topic,
    serial: u64,
) -> Result<Option<Subscription>, Fatal> {
    let last = keys::subscription(team, name, topic.rows);
    let moved = if serial == topic.rows {
        None
    } else {
        let row: Option<Subscription> = view.load(&last)?;
        let row = row.ok_or_else(|| Fatal::Invariant(format!("the topic {name:?} of {team} lacks its last row")))?;
        if row.until_index == 0 {
            view.put(keys::subscribed(team, &row.agent, name), keys::number(serial));
        }
        view.store(keys::subscription(team, name, serial), &row);
        Some(row)
    };
    view.delete(last);
    topic.rows = topic.rows.saturating_sub(1);
    Ok(moved)
}

/// The row of a topic that has subscriptions or an unfinished fan-out job.
pub(super) fn load(view: &View<'_>, team: TeamId, name: &str) -> Result<Topic, Fatal> {
    view.load(&keys::topic(team, name))?
        .ok_or_else(|| Fatal::Invariant(format!("rows of the topic {name:?} of {team} without the topic")))
}

/// Stores a topic, or removes it if it has neither subscriptions nor unfinished jobs.
pub(super) fn keep(view: &mut View<'_>, team: TeamId, head: &mut TeamHead, name: &str, topic: &Topic) {
    if topic.rows == 0 && topic.jobs == 0 {
        view.delete(keys::topic(team, name));
        head.topics = head.topics.saturating_sub(1);
    } else {
        view.store(keys::topic(team, name), topic);
    }
}

fn authorized(view: &View<'_>, context: &Context<'_>, agent: &str, topic: &str) -> Result<TeamId, Stop> {
    let caller = Caller::with(view, context, Permission::Write)?;
    caller.acts_as(agent)?;
    endpoint::check_owner(agent)?;
    parsed(id::validate_name("topic", topic))?;
    Ok(caller.team)
}
