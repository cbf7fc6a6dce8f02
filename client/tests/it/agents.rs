//! The directory of agents.

use agentpost::Agentpost;
use agentpost_testkit::scripted_server::ScriptedServer;
use serde_json::json;

#[tokio::test]
async fn a_registration_of_unknown_outcome_is_repeated() {
    let server = ScriptedServer::start().await;
    let done = json!({ "id": "a:1", "name": null, "registered": true,
                       "registered_at": "2026-04-30T10:00:00.000Z", "sessions": 2 });
    server
        .answer(504, "{\"error\":\"outcome unknown\"}")
        .answer(200, done.to_string());
    let post = Agentpost::builder(&server.base).key("k").build().unwrap();
    let made = post.register_agent("a:1").await.unwrap();
    assert_eq!(serde_json::to_value(made).unwrap(), done);
    let seen = server.seen();
    assert_eq!(seen.len(), 2);
    assert_eq!(
        (seen[1].method.as_str(), seen[1].path.as_str()),
        ("POST", "/api/v1/agents")
    );
    assert_eq!(seen[1].json(), json!({ "id": "a:1" }));
}
