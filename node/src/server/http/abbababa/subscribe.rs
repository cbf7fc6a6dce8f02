//! `/messages/subscribe`: an agent's subscriptions to topics, each with an optional URL of its own.

use agentpost_proto::api::abbababa::{Subscription, SubscriptionResponse, SubscriptionsResponse};
use agentpost_proto::command::{Permission, Subscribe, SubscriptionReply, Unsubscribe};
use agentpost_proto::id::{self, AgentId, SubscriptionId, TeamId};
use agentpost_proto::record;
use agentpost_proto::time::rfc3339;
use agentpost_raft_store::core::kv::Kv;
use agentpost_raft_store::core::query;
use axum::extract::{Request, State};
use axum::response::Response;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::webhook::{check_url, done};
use crate::server::error::{ApiError, Result, json_of};
use crate::server::http::app_state::{App, AppState};
use crate::server::http::input::{Consistency, Parameters, parse};
use crate::server::http::ratelimit;
use crate::wire::json;

/// The body of a subscribe. For a URL, `null` differs from an absent member, so this is not read by `parse_members`,
/// for which both are `None`.
#[derive(Default, Deserialize)]
struct Wanted<'a> {
    #[serde(borrow, default, deserialize_with = "present")]
    topic: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present", rename = "webhookUrl")]
    webhook_url: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present", rename = "callbackUrl")]
    callback_url: Option<&'a RawValue>,
}

fn present<'de: 'a, 'a, D: Deserializer<'de>>(input: D) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(input).map(Some)
}

impl Wanted<'_> {
    /// The URL under either name: empty removes it, `None` keeps the current one.
    fn url(&self) -> Result<Option<String>> {
        let webhook = self.webhook_url.map(|raw| url("webhookUrl", raw)).transpose()?;
        let callback = self.callback_url.map(|raw| url("callbackUrl", raw)).transpose()?;
        match (webhook, callback) {
            (Some(a), Some(b)) if a != b => Err(ApiError::field("callbackUrl", "differs from webhookUrl")),
            (webhook, callback) => Ok(webhook.or(callback)),
        }
    }
}

fn url(field: &str, raw: &RawValue) -> Result<String> {
    if raw.get() == "null" {
        return Ok(String::new());
    }
    match json::text(raw.get()) {
        Ok(text) if text.is_empty() => Err(ApiError::field(field, "is empty; null removes the URL")),
        Ok(text) => Ok(text.into_owned()),
        Err(fault) => Err(ApiError::field(field, fault)),
    }
}

fn topic(raw: &RawValue) -> Result<String> {
    let text = json::text(raw.get()).map_err(|fault| ApiError::field("topic", fault))?;
    named(&text)
}

fn named(topic: &str) -> Result<String> {
    id::validate_name("topic", topic).map_err(|e| ApiError::named("topic", e.to_string()))?;
    Ok(topic.to_owned())
}

/// Subscribes the caller's agent, or changes the URL of its subscription.
pub async fn subscribe(State(app): App, request: Request) -> Result<Response> {
    let (parts, body) = request.into_parts();
    let caller = app.writer(&parts.headers).await?;
    caller.require(Permission::Write)?;
    let agent = caller.agent(&parts.headers)?;
    let body = app.read_small(&caller, &parts.headers, body).await?;
    let wanted: Wanted<'_> = parse(&body)?;
    let raw = wanted.topic.ok_or_else(|| ApiError::field("topic", "is required"))?;
    let topic = topic(raw)?;
    let url = wanted.url()?;
    if let Some(url) = url.as_deref().filter(|url| !url.is_empty()) {
        let field = if wanted.webhook_url.is_some() {
            "webhookUrl"
        } else {
            "callbackUrl"
        };
        check_url(&app, field, url)?;
    }
    let op = Subscribe {
        agent: agent.as_str().to_owned(),
        topic: topic.clone(),
        subscription_id: SubscriptionId(app.services.ids.random()).to_bytes(),
        url,
    };
    let reply = app.propose(&caller, &body, op).await?;
    let standing = ratelimit::usage(reply.registrations_used, reply.registrations_limit);
    let subscription = subscribed(&app, caller.team, &agent, topic, reply)?;
    let answered = json_of(&SubscriptionResponse {
        success: true,
        data: Some(subscription.clone()),
        subscription,
    })?;
    Ok(ratelimit::with_usage(standing, answered))
}

/// The subscription of a reply. A kept URL may have been disabled before.
fn subscribed(
    app: &AppState,
    team: TeamId,
    agent: &AgentId,
    topic: String,
    reply: SubscriptionReply,
) -> Result<Subscription> {
    let endpoint = query::topic::endpoint(&app.services.replica.reader.local(), team, agent.as_str(), &reply.url)?;
    let endpoint = record::Endpoint {
        generation: reply.generation,
        disabled: endpoint.is_some_and(|e| e.disabled && e.generation == reply.generation),
        ..record::Endpoint::default()
    };
    let row = record::Subscription {
        id: reply.subscription_id,
        agent: agent.as_str().to_owned(),
        url: reply.url,
        created_at_ms: reply.created_at_ms,
        updated_at_ms: reply.updated_at_ms,
        ..record::Subscription::default()
    };
    shown(app, team, topic, row, &endpoint)
}

fn shown(
    app: &AppState,
    team: TeamId,
    topic: String,
    row: record::Subscription,
    endpoint: &record::Endpoint,
) -> Result<Subscription> {
    let id = SubscriptionId::from_slice(&row.id).map_err(ApiError::internal)?;
    let url = Some(row.url).filter(|url| !url.is_empty());
    Ok(Subscription {
        id: id.to_string(),
        agent_id: row.agent,
        topic,
        callback_url: url.clone(),
        is_active: true,
        disabled: endpoint.disabled,
        created_at: rfc3339(row.created_at_ms),
        updated_at: rfc3339(row.updated_at_ms),
        secret: url
            .is_some()
            .then(|| app.services.secrets.endpoint_secret(team, endpoint.generation).into()),
        webhook_url: url,
    })
}

/// Ends the subscription to the topic in the body or the query string.
pub async fn unsubscribe(State(app): App, request: Request) -> Result<Response> {
    let (parts, body) = request.into_parts();
    let caller = app.writer(&parts.headers).await?;
    caller.require(Permission::Write)?;
    let agent = caller.agent(&parts.headers)?;
    let parameters = Parameters::of(&parts.uri)?;
    let in_query = parameters.get("topic")?.map(named).transpose()?;
    let body = app.read_small(&caller, &parts.headers, body).await?;
    let in_body = match body.trim_ascii() {
        b"" => None,
        body => parse::<Wanted<'_>>(body)?.topic.map(topic).transpose()?,
    };
    let topic = match (in_query, in_body) {
        (Some(a), Some(b)) if a != b => {
            return Err(ApiError::field(
                "topic",
                "differs between the query string and the body",
            ));
        }
        (a, b) => a.or(b).ok_or_else(|| ApiError::field("topic", "is required"))?,
    };
    let op = Unsubscribe {
        agent: agent.as_str().to_owned(),
        topic,
    };
    app.propose(&caller, &body, op).await?;
    done("unsubscribed")
}

/// The subscriptions of the caller's agent.
pub async fn list(State(app): App, request: Request) -> Result<Response> {
    let (parts, _) = request.into_parts();
    let consistency = Consistency::of_uri(&parts.uri)?;
    let reading = app.reader(&parts.headers, consistency).await?;
    reading.caller.require(Permission::Read)?;
    let (team, agent) = (reading.caller.team, reading.caller.agent(&parts.headers)?);
    let subscriptions = reading.read(move |kv| all(&app, kv, team, &agent)).await?;
    json_of(&SubscriptionsResponse {
        success: true,
        data: Some(subscriptions.clone()),
        subscriptions,
    })
}

fn all(app: &AppState, kv: &dyn Kv, team: TeamId, agent: &AgentId) -> Result<Vec<Subscription>> {
    let mut subscriptions = Vec::new();
    for (topic, row) in query::topic::subscriptions(&kv, team, agent.as_str())? {
        let endpoint = query::topic::endpoint(kv, team, agent.as_str(), &row.url)?.unwrap_or_default();
        subscriptions.push(shown(app, team, topic, row, &endpoint)?);
    }
    Ok(subscriptions)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn url_of(body: &str) -> Result<Option<String>> {
        parse::<Wanted<'_>>(body.as_bytes())?.url()
    }

    #[test]
    fn null_removes_a_url_and_an_absent_one_stays() {
        for (body, url) in [
            ("{}", None),
            (r#"{"webhookUrl":null}"#, Some("")),
            (r#"{"callbackUrl": null}"#, Some("")),
            (r#"{"webhookUrl":"https://a/"}"#, Some("https://a/")),
            (r#"{"callbackUrl":"https:\u002f\u002fa/"}"#, Some("https://a/")),
            (
                r#"{"webhookUrl":"https://a/","callbackUrl":"https://a/"}"#,
                Some("https://a/"),
            ),
        ] {
            assert_eq!(url_of(body).unwrap().as_deref(), url, "{body}");
        }
    }

    #[test]
    fn a_url_is_a_string_and_appears_once() {
        for bad in [
            r#"{"webhookUrl":""}"#,
            r#"{"webhookUrl":7}"#,
            r#"{"callbackUrl":{}}"#,
            r#"{"callbackUrl":"\ud800"}"#,
            r#"{"webhookUrl":"https://a/","callbackUrl":"https://b/"}"#,
            r#"{"webhookUrl":null,"callbackUrl":"https://b/"}"#,
            r#"{"webhookUrl":null,"webhookUrl":null}"#,
        ] {
            assert_eq!(url_of(bad).unwrap_err().status, 400, "{bad}");
        }
    }
}
