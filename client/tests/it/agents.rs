//! The directory of agents.

use agentpost::Client;
use agentpost::api::kite::RegisterAgent;
use serde_json::json;

use crate::common::Stub;

#[tokio::test]
async fn a_registration_of_unknown_outcome_is_repeated() {
    let server = Stub::start().await;
    let done = json!({ "id": "a:1", "name": null, "registered": true,
                       "registered_at": "2026-04-30T10:00:00.000Z", "sessions": 2 });
    server
        .answer(504, "{\"error\":\"outcome unknown\"}")
        .answer(200, done.to_string());
    let client = Client::builder(&server.base).api_key("k").build().unwrap();
    let wanted = RegisterAgent {
        id: "a:1".to_owned(),
        name: None,
    };
    let made = client.register_agent(&wanted).await.unwrap();
    assert_eq!(serde_json::to_value(made).unwrap(), done);
    let seen = server.seen();
    assert_eq!(seen.len(), 2);
    assert_eq!(
        (seen[1].method.as_str(), seen[1].path.as_str()),
        ("POST", "/api/v1/agents")
    );
    assert_eq!(seen[1].json(), json!({ "id": "a:1" }));
}
