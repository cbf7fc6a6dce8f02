//! Messages with a key in their body, by which checkers recognise them.

use std::collections::BTreeMap;

use agentpost::api::abbababa::SendRequest;
use anyhow::Result;
use serde_json::value::to_raw_value;

/// A message whose body contains its key.
pub fn message(inbox: &str, key: &str) -> Result<SendRequest> {
    Ok(SendRequest {
        to_agent_id: Some(inbox.to_owned()),
        kind: Some("test.note".to_owned()),
        body: Some(to_raw_value(&BTreeMap::from([("key", key)]))?),
        idempotency_key: Some(key.to_owned()),
        ..SendRequest::default()
    })
}

/// The key in the body of a message.
pub fn key_of(body: &str) -> String {
    let body: Option<serde_json::Value> = serde_json::from_str(body).ok();
    let key = body.as_ref().and_then(|body| body.get("key")?.as_str());
    key.unwrap_or_default().to_owned()
}
