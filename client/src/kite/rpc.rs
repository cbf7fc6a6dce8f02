//! The management methods of the Kite API. Each is one request over a WebSocket of its own, which is how the vendor's
//! command line asks. Such a session reads no mail and moves no cursor.
//!
//! A node that does not answer is passed over. A request that may have been carried out is repeated only if it is a
//! read; a change of unknown outcome is reported as [`Error::OutcomeUnknown`].
//!
//! Payloads are read loosely: whatever other servers may leave out is optional here.

use std::sync::Arc;
use std::time::Duration;

use agentpost_proto::frame::ClientFrame;
use serde::de::{DeserializeOwned, Deserializer};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::Error;
use crate::api::kite::rpc::{
    CreateKeyParams, CreatedKey, KeyId, NOT_CARRIED_OUT, OUTCOME_UNKNOWN, Recent, RecentParams,
};
use crate::endpoints::Endpoints;
use crate::retry::{Attempts, Failure, Repeat, RetryPolicy};
use crate::socket::{Frame, Lost, Socket, ended_by};

/// A node answers within 2 s if nobody leads, and within 8 s more if the outcome is unknown. The vendor's command line
/// waits without end.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// Asks one request after another.
pub(super) struct Rpc {
    hello: ClientFrame,
    nodes: Endpoints,
    tls: Arc<rustls::ClientConfig>,
    policy: RetryPolicy,
    answer_timeout: Duration,
}

impl Rpc {
    /// With the settings of a connection.
    pub(super) fn of(connection: &crate::connection::Socket, team: &str) -> Self {
        Rpc {
            hello: ClientFrame::Connect {
                version: 1,
                token: connection.key.clone(),
                team_id: team.to_owned(),
                scopes: vec!["*".to_owned()],
                client_id: None,
            },
            nodes: Endpoints::new(connection.urls.clone()),
            tls: connection.tls.clone(),
            policy: connection.policy.clone(),
            answer_timeout: connection.answer_timeout.unwrap_or(ANSWER_TIMEOUT),
        }
    }

    /// `events.recent`: the newest events that the key may see, the newest first.
    pub async fn recent(&self, params: &RecentParams) -> Result<Recent<RecentEvent>, Error> {
        self.typed("events.recent", params, Repeat::Safely).await
    }

    /// `dashboard.stats`: the team's numbers, and what the key may do.
    pub async fn stats(&self) -> Result<Stats, Error> {
        self.typed("dashboard.stats", &json!({}), Repeat::Safely).await
    }

    /// `keys.list`: the keys of the team, without their secrets.
    pub async fn keys(&self) -> Result<KeyList, Error> {
        self.typed("keys.list", &json!({}), Repeat::Safely).await
    }

    /// `keys.create`: the answer is the only place that ever shows the secret.
    pub async fn create_key(&self, params: &CreateKeyParams) -> Result<CreatedKey, Error> {
        self.typed("keys.create", params, Repeat::OnlyIfNotDone).await
    }

    /// `keys.revoke`.
    pub async fn revoke_key(&self, id: &str) -> Result<KeyId, Error> {
        let params = KeyId { id: id.to_owned() };
        self.typed("keys.revoke", &params, Repeat::OnlyIfNotDone).await
    }

    /// Any method; returns the payload as it came.
    pub async fn call(&self, method: &str, params: Value, repeat: Repeat) -> Result<Value, Error> {
        let mut attempts = Attempts::new(&self.policy, self.nodes.len());
        loop {
            let (index, url) = self.nodes.current();
            let failure = match self.attempt(url, method, &params, repeat).await {
                Ok(decided) => return decided,
                Err(failure) => failure,
            };
            self.nodes.move_on(index);
            let pause = attempts.after(failure, repeat, rand::random())?;
            tokio::time::sleep(pause).await;
        }
    }

    async fn typed<T: DeserializeOwned>(
        &self,
        method: &str,
        params: &impl Serialize,
        repeat: Repeat,
    ) -> Result<T, Error> {
        let params = serde_json::to_value(params).map_err(|e| Error::Invalid(e.to_string()))?;
        let payload = self.call(method, params, repeat).await?;
        T::deserialize(payload).map_err(|e| Error::Malformed(format!("{method}: {e}")))
    }

    /// Asks one node. The inner result is what the server decided; the error tells why this node decided nothing.
    async fn attempt(
        &self,
        url: &str,
        method: &str,
        params: &Value,
        repeat: Repeat,
    ) -> Result<Result<Value, Error>, Failure> {
        let not_done = |reason: String| Failure::NotDone {
            reason: format!("{url}: {reason}"),
            answer: None,
        };
        let unknown = |reason: String| Failure::Unknown {
            reason: format!("{url}: {reason}"),
            answer: None,
        };
        let mut socket = match Socket::open(url, self.tls.clone(), &self.hello).await {
            Ok((socket, ..)) => socket,
            Err(Lost::Rejected { code, message }) => return Ok(Err(Error::Session { code, message })),
            Err(Lost::Broken(reason)) => return Err(not_done(reason)),
        };
        let late = || Lost::Broken("no answer in time".to_owned());
        let asked = timeout(self.answer_timeout, ask(&mut socket, method, params));
        let (ok, payload) = match asked.await.map_err(|_| late()).flatten() {
            Ok(answer) => answer,
            // The key was revoked while the request was under way: a change may have been made before that.
            Err(Lost::Rejected { code, message }) if repeat == Repeat::Safely => {
                return Ok(Err(Error::Session { code, message }));
            }
            Err(Lost::Rejected { code, message }) => return Err(unknown(Error::Session { code, message }.to_string())),
            Err(Lost::Broken(reason)) => return Err(unknown(reason)),
        };
        if ok {
            return Ok(Ok(payload));
        }
        let text = payload.get("error").and_then(Value::as_str);
        let text = text.unwrap_or("request failed");
        match (text.strip_prefix(OUTCOME_UNKNOWN), text.strip_prefix(NOT_CARRIED_OUT)) {
            (Some(reason), _) => Err(unknown(reason.to_owned())),
            (_, Some(reason)) => Err(not_done(reason.to_owned())),
            (None, None) => Ok(Err(Error::Declined(text.to_owned()))),
        }
    }
}

/// Writes a request and skips every frame that is not its response.
async fn ask(socket: &mut Socket, method: &str, params: &Value) -> Result<(bool, Value), Lost> {
    let asked = uuid::Uuid::now_v7().to_string();
    let request = ClientFrame::Request {
        id: asked.clone(),
        method: method.to_owned(),
        params: params.clone(),
    };
    socket.send(&request).await?;
    loop {
        match socket.frame().await? {
            Frame::Response { id, ok, payload } if id == asked => return Ok((ok, payload)),
            Frame::Error { code, message } => return Err(ended_by(code, message)),
            _ => {}
        }
    }
}

/// One of the events of [`super::Kite::recent`].
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct RecentEvent {
    /// Its position in the team.
    #[serde(deserialize_with = "loose")]
    pub seq: Option<u64>,
    /// When it was accepted, in RFC 3339.
    #[serde(deserialize_with = "loose")]
    pub created_at: Option<String>,
    /// The CloudEvent; [`super::Event::new`] reads it.
    pub event: Value,
}

impl RecentEvent {
    /// The CloudEvents type.
    pub fn kind(&self) -> Option<&str> {
        self.event.get("type")?.as_str()
    }

    /// The server's summary of it in one line.
    pub fn summary(&self) -> Option<&str> {
        self.event.get("kitesummary")?.as_str()
    }
}

/// The team's numbers: `dashboard.stats`. `None` where a server leaves one out.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Stats {
    /// The team of the key.
    #[serde(deserialize_with = "loose")]
    pub team_id: Option<String>,
    /// Events that were accepted today (UTC), of every kind; the name is the vendor's.
    #[serde(deserialize_with = "loose")]
    pub webhooks_today: Option<u64>,
    /// URLs that webhooks go to.
    #[serde(deserialize_with = "loose")]
    pub active_endpoints: Option<u64>,
    /// Keys that are neither revoked nor expired.
    #[serde(deserialize_with = "loose")]
    pub active_api_keys: Option<u64>,
    /// The permissions of the key that asks.
    #[serde(deserialize_with = "loose")]
    pub current_key_permissions: Option<Vec<String>>,
    /// `self-hosted` for an Agentpost.
    #[serde(deserialize_with = "loose")]
    pub plan_name: Option<String>,
    /// How many topics a team can have.
    #[serde(deserialize_with = "loose")]
    pub active_sources_limit: Option<u64>,
}

/// The keys of a team: `keys.list`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct KeyList {
    /// The team of the key.
    #[serde(deserialize_with = "loose")]
    pub team_id: Option<String>,
    /// The keys, oldest first.
    pub keys: Vec<ListedKey>,
}

/// A key without its secret. `None` where a server leaves something out.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ListedKey {
    /// `key_<32 hex digits>`.
    #[serde(deserialize_with = "loose")]
    pub id: Option<String>,
    /// A name for people.
    #[serde(deserialize_with = "loose")]
    pub name: Option<String>,
    /// How the key begins.
    #[serde(deserialize_with = "loose")]
    pub key_prefix: Option<String>,
    /// Whether it was revoked.
    #[serde(deserialize_with = "loose")]
    pub revoked: Option<bool>,
    /// When it was made, in RFC 3339.
    #[serde(deserialize_with = "loose")]
    pub created_at: Option<String>,
    /// Its permissions.
    #[serde(deserialize_with = "loose")]
    pub permissions: Option<Vec<String>>,
    /// The scopes that its sessions may use. A long list ends with `… and N more`.
    #[serde(deserialize_with = "loose")]
    pub scopes: Option<Vec<String>>,
    /// The agent that it is bound to.
    #[serde(deserialize_with = "loose")]
    pub agent_id: Option<String>,
    /// When it ends, in RFC 3339.
    #[serde(deserialize_with = "loose")]
    pub expires_at: Option<String>,
}

/// A value that is null, or of another type, counts as absent.
fn loose<'de, T: DeserializeOwned, D: Deserializer<'de>>(input: D) -> Result<Option<T>, D::Error> {
    Ok(T::deserialize(Value::deserialize(input)?).ok())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn payloads_of_other_servers_are_read_as_far_as_they_go() {
        let stats: Stats = serde_json::from_value(json!({"team_id": "t", "plan_name": null, "webhooks_today": "3",
            "news": [1]}))
        .unwrap();
        assert_eq!((stats.team_id.as_deref(), stats.plan_name), (Some("t"), None));
        assert_eq!((stats.webhooks_today, stats.current_key_permissions), (None, None));
        let keys: KeyList = serde_json::from_value(json!({"keys": [{"id": "k", "name": null}, {}]})).unwrap();
        assert_eq!(
            (keys.keys[0].id.as_deref(), &keys.keys[0].name, keys.keys.len()),
            (Some("k"), &None, 2)
        );
        let page: Recent<RecentEvent> =
            serde_json::from_value(json!({"events": [{"seq": 7, "event": {"type": "t"}}, {}]})).unwrap();
        assert_eq!(
            (page.events[0].seq, page.events[0].kind(), page.events[0].summary()),
            (Some(7), Some("t"), None)
        );
        assert_eq!((page.events[1].kind(), page.next_before_seq), (None, None));
    }
}
