//! Queries about topics, subscriptions and webhooks.

use agentpost_proto::id::TeamId;
use agentpost_proto::record::{Endpoint, Receivers, Subscription, Webhook};

use crate::core::keys;
use crate::core::kv::{Fatal, Kv, Lookup, Order};
use crate::core::view::{decode, load};

/// The webhook of an agent.
pub fn webhook(kv: &(impl Lookup + ?Sized), team: TeamId, agent: &str) -> Result<Option<Webhook>, Fatal> {
    load(kv, &keys::webhook(team, agent))
}

/// The endpoint of an agent's URL.
pub fn endpoint(kv: &(impl Lookup + ?Sized), team: TeamId, agent: &str, url: &str) -> Result<Option<Endpoint>, Fatal> {
    load(kv, &keys::endpoint(team, agent, url))
}

/// The subscriptions of an agent with their topics, in the order of the topics.
pub fn subscriptions(kv: &impl Kv, team: TeamId, agent: &str) -> Result<Vec<(String, Subscription)>, Fatal> {
    let frozen = kv.frozen();
    let kv = frozen.as_ref();
    let range = keys::subscribed_of(team, agent);
    let topic_at = range.start.len();
    let mut subscriptions = Vec::new();
    for row in kv.range(range, Order::Ascending) {
        let (key, serial) = row?;
        let topic = key
            .get(topic_at..key.len() - 1)
            .and_then(|topic| std::str::from_utf8(topic).ok())
            .ok_or_else(|| Fatal::Invariant("an unreadable sa key".to_owned()))?;
        subscriptions.push((topic.to_owned(), subscription(kv, team, topic, &serial)?));
    }
    Ok(subscriptions)
}

/// The open subscription of an agent to a topic, with its serial.
pub fn open(
    kv: &(impl Kv + ?Sized),
    team: TeamId,
    agent: &str,
    topic: &str,
) -> Result<Option<(u64, Subscription)>, Fatal> {
    let Some(serial) = kv.get(&keys::subscribed(team, agent, topic))? else {
        return Ok(None);
    };
    let row = subscription(kv, team, topic, &serial)?;
    Ok(keys::trailing_number(&serial).map(|serial| (serial, row)))
}

fn subscription(kv: &(impl Kv + ?Sized), team: TeamId, topic: &str, serial: &[u8]) -> Result<Subscription, Fatal> {
    let serial = keys::trailing_number(serial).unwrap_or_default();
    load(kv, &keys::subscription(team, topic, serial))?
        .ok_or_else(|| Fatal::Invariant(format!("the topic {topic:?} of {team} lacks the subscription {serial}")))
}

/// The agents that received the topic message at `seq`, in the order of receipt, at most `limit`. Retention removes
/// them.
pub fn receivers(kv: &(impl Kv + ?Sized), team: TeamId, seq: u64, limit: usize) -> Result<Vec<String>, Fatal> {
    let mut agents = Vec::new();
    for row in kv.range(keys::receivers_of(team, seq), Order::Ascending) {
        let chunk: Receivers = decode(row?.1)?;
        agents.extend(chunk.agents);
        if agents.len() >= limit {
            agents.truncate(limit);
            break;
        }
    }
    Ok(agents)
}

/// Whether the publish at `seq` has an unfinished fan-out job.
pub fn fanout_pending(kv: &(impl Lookup + ?Sized), team: TeamId, topic: &str, seq: u64) -> Result<bool, Fatal> {
    Ok(!topic.is_empty() && kv.get(&keys::fanout_job(team, topic, seq))?.is_some())
}
