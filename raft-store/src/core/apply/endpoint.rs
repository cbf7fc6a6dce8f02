//! Endpoints: the URLs of an agent. A URL has one row, no matter whether the agent's webhook, its subscriptions or both
//! use it.
//!
//! The generation of an endpoint is the log index of the registration that created it. It is unique in the shard and
//! stands for the endpoint in every index. A URL that was deleted, or disabled by a 410, and is registered again gets a
//! new generation: the deliveries of the old one end, and the signing secret changes.

use agentpost_proto::command::ErrorCode;
use agentpost_proto::id::{AgentId, TeamId};
use agentpost_proto::limits;
use agentpost_proto::record::{Closing, DeliveryEnd, Endpoint, TeamHead};

use super::check::parsed;
use super::{Context, Stop, reject};
use crate::core::effect::Effect;
use crate::core::keys;
use crate::core::kv::{Fatal, Kv, Lookup};
use crate::core::view::View;

/// Upper bound on the endpoints of a team.
pub const ENDPOINTS_MAX: u32 = 1_000;

/// Rejects the reserved agent, which can have neither URLs nor subscriptions.
pub(super) fn check_owner(agent: &str) -> Result<(), Stop> {
    parsed(agent.parse::<AgentId>())?;
    if agent == AgentId::SYSTEM {
        return reject(
            ErrorCode::Forbidden,
            "the reserved agent \"system\" has no webhook and no subscriptions",
        );
    }
    Ok(())
}

/// Checks that a URL can be part of a key. The server has checked that it is a URL.
pub(super) fn check_url(url: &str) -> Result<(), Stop> {
    if url.is_empty() || url.len() > limits::URL_BYTES_MAX || url.chars().any(char::is_control) {
        let message = format!("a URL has 1 to {} printable characters", limits::URL_BYTES_MAX);
        return reject(ErrorCode::Invalid, message);
    }
    Ok(())
}

/// The agent that owns an endpoint.
#[derive(Clone, Copy)]
pub struct Owner<'a> {
    pub team: TeamId,
    pub agent: &'a str,
}

/// Replaces the URL `old` of one webhook or subscription by `new`; an empty text means no URL. Returns the generation
/// of `new`, or 0 without a URL. Registering a disabled endpoint enables it again.
pub fn replace(
    view: &mut View<'_>,
    context: &Context<'_>,
    head: &mut TeamHead,
    owner: Owner<'_>,
    old: &str,
    new: &str,
    effects: &mut Vec<Effect>,
) -> Result<u64, Stop> {
    let Owner { team, agent } = owner;
    let mut generation = 0;
    if !new.is_empty() {
        let key = keys::endpoint(team, agent, new);
        let mut endpoint: Endpoint = view.load(&key)?.unwrap_or_default();
        if endpoint.generation == 0 {
            if head.endpoints >= ENDPOINTS_MAX {
                let message = format!("the team has {ENDPOINTS_MAX} webhook URLs already");
                return reject(ErrorCode::Forbidden, message);
            }
            head.endpoints += 1;
        }
        if endpoint.generation == 0 || endpoint.disabled {
            endpoint.generation = context.index;
            endpoint.disabled = false;
        }
        endpoint.users += u32::from(old != new);
        generation = endpoint.generation;
        view.store(key, &endpoint);
    }
    if !old.is_empty() && old != new {
        release(view, head, owner, old, effects)?;
    }
    Ok(generation)
}

/// Removes one user of an endpoint. With the last one the endpoint is deleted, and its open deliveries are closed.
fn release(
    view: &mut View<'_>,
    head: &mut TeamHead,
    Owner { team, agent }: Owner<'_>,
    url: &str,
    effects: &mut Vec<Effect>,
) -> Result<(), Fatal> {
    let key = keys::endpoint(team, agent, url);
    let Some(mut endpoint) = view.load::<Endpoint>(&key)? else {
        return Err(Fatal::Invariant(format!("a URL of {team} without its endpoint")));
    };
    endpoint.users = endpoint.users.saturating_sub(1);
    if endpoint.users > 0 {
        view.store(key, &endpoint);
        return Ok(());
    }
    view.delete(key);
    head.endpoints = head.endpoints.saturating_sub(1);
    begin_closing(view, team, endpoint.generation, DeliveryEnd::Deleted, effects)
}

/// Begins to close the scheduled deliveries of an endpoint, if it has any. The first reason is kept: after a 410 the
/// senders get notices even if the URL is deleted meanwhile.
pub(super) fn begin_closing(
    view: &mut View<'_>,
    team: TeamId,
    generation: u64,
    end: DeliveryEnd,
    effects: &mut Vec<Effect>,
) -> Result<(), Fatal> {
    let key = keys::closing(team, generation);
    if view.get(&keys::endpoint_head(team, generation))?.is_some() && view.get(&key)?.is_none() {
        view.store(key, &Closing { end: end as i32 });
        effects.push(Effect::EndpointClosing { team, generation });
    }
    Ok(())
}

/// The generation of an endpoint, if it exists and is not disabled.
pub fn open_generation(kv: &(impl Kv + ?Sized), team: TeamId, agent: &str, url: &str) -> Result<Option<u64>, Fatal> {
    let endpoint: Option<Endpoint> = crate::core::view::load(kv, &keys::endpoint(team, agent, url))?;
    Ok(endpoint.filter(|e| !e.disabled).map(|e| e.generation))
}
