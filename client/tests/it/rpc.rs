//! The management methods of the library against scripted servers: what is skipped, what is repeated, what comes back.

use std::time::Duration;

use agentpost::kite::Kite;
use agentpost::retry::{Repeat, RetryPolicy};
use agentpost::{Agentpost, Error};
use agentpost_testkit::ports::refusing_url;
use agentpost_testkit::scripted_server::{ScriptedServer, Step, greeting};
use serde_json::json;

fn builder(bases: &[&str]) -> agentpost::Builder {
    let policy = RetryPolicy {
        pause_min: Duration::from_millis(1),
        ..RetryPolicy::default()
    };
    Agentpost::builder(bases.join(","))
        .key("kite_key")
        .team("team_1")
        .retry(policy)
}

fn rpc(bases: &[&str]) -> Kite {
    builder(bases).build().unwrap().kite()
}

fn say(frame: serde_json::Value) -> Step {
    Step::Say(frame.to_string())
}

#[tokio::test]
async fn every_request_has_a_socket_of_its_own_and_hears_only_its_answer() {
    let stub = ScriptedServer::start().await;
    stub.session(vec![
        say(json!({"type": "news"})),
        greeting(),
        say(json!({"type": "quota_snapshot", "provider": "p", "events_used": 1, "events_limit": 2})),
        Step::Ask,
        say(json!({"type": "event", "seq": 7, "event": {"id": "i", "type": "t"}})),
        say(json!({"type": "response", "id": "another", "ok": true, "payload": {"team_id": "wrong"}})),
        say(json!({"type": "response", "ok": true})),
        Step::Say("not json".to_owned()),
        Step::Answer(true, json!({"team_id": "team_1", "current_key_permissions": ["read"]})),
    ]);
    stub.session_that_answers(true, json!({"events": [], "next_before_seq": null}));
    let rpc = rpc(&[&stub.base]);
    assert_eq!(rpc.stats().await.unwrap().team_id.as_deref(), Some("team_1"));
    assert!(rpc.recent().limit(3).await.unwrap().events.is_empty());
    let hello = json!({"type": "connect", "version": 1, "token": "kite_key", "team_id": "team_1", "scopes": ["*"],
                       "client_id": null});
    assert_eq!(stub.hellos(), [hello.clone(), hello]);
    assert_eq!(
        stub.requests(),
        [
            ("dashboard.stats".to_owned(), json!({})),
            ("events.recent".to_owned(), json!({"limit": 3}))
        ]
    );
}

#[tokio::test]
async fn a_read_is_asked_of_the_next_node_and_a_change_that_may_have_happened_is_not() {
    let (first, second) = (ScriptedServer::start().await, ScriptedServer::start().await);
    let lost = || vec![greeting(), Step::Ask, Step::Hang];
    first.session(lost()).session(lost());
    second.session_that_answers(true, json!({"team_id": "team_1"}));
    let bases = [&refusing_url()[..], &first.base, &second.base];
    assert_eq!(rpc(&bases).keys().await.unwrap().team_id.as_deref(), Some("team_1"));
    assert_eq!((first.requests().len(), second.requests().len()), (1, 1));

    // Nothing was done at the dead node; at the first one it may have been.
    let made = rpc(&bases).create_key().await;
    let Err(Error::OutcomeUnknown { reason, .. }) = made else {
        panic!("{made:?}")
    };
    assert!(reason.starts_with(&first.ws_url()), "{reason}");
    assert_eq!((first.requests().len(), second.hellos().len()), (2, 1));
}

#[tokio::test]
async fn a_node_that_is_busy_takes_nothing_so_a_change_goes_on() {
    let (first, second) = (ScriptedServer::start().await, ScriptedServer::start().await);
    first.session(vec![say(json!({"type": "error", "code": 4003, "message": "not now"}))]);
    second.session_that_answers(true, json!({"id": "key_1"}));
    let rpc = rpc(&[&first.base, &second.base]);
    assert_eq!(rpc.revoke_key("key_1").await.unwrap().id, "key_1");
    let request = ("keys.revoke".to_owned(), json!({"id": "key_1"}));
    assert_eq!(second.requests().last(), Some(&request));

    // It stops while the request waits.
    second.session_that_answers(false, json!({"error": "not carried out: service restart"}));
    first.session_that_answers(true, json!({"id": "key_2"}));
    assert_eq!(rpc.revoke_key("key_1").await.unwrap().id, "key_2");
    assert_eq!((second.requests().last(), second.requests().len()), (Some(&request), 2));
}

#[tokio::test]
async fn an_unknown_outcome_is_told_from_a_refusal() {
    let stub = ScriptedServer::start().await;
    let unknown = json!({"error": "outcome unknown: it may or may not have been carried out"});
    stub.session_that_answers(false, unknown.clone())
        .session_that_answers(false, unknown)
        .session_that_answers(true, json!({"keys": []}))
        .session_that_answers(false, json!({"error": "the key lacks admin"}))
        .session_that_answers(false, json!(null));
    let rpc = rpc(&[&stub.base]);
    let error = rpc.revoke_key("k").await.unwrap_err();
    let text = format!(
        "outcome unknown: {}: it may or may not have been carried out",
        stub.ws_url()
    );
    assert_eq!(error.to_string(), text);
    assert!(rpc.keys().await.unwrap().keys.is_empty(), "a read is repeated");
    for text in ["the key lacks admin", "request failed"] {
        let error = rpc.revoke_key("k").await.unwrap_err();
        assert!(matches!(&error, Error::Declined(said) if said == text), "{error:?}");
    }
    assert_eq!(stub.requests().len(), 5);
}

#[tokio::test]
async fn silence_after_a_request_ends_the_wait() {
    let stub = ScriptedServer::start().await;
    stub.session(vec![greeting(), Step::Ask, Step::Ask]);
    let post = builder(&[&stub.base]).answer_timeout(Duration::from_millis(50));
    let error = post.build().unwrap().kite().create_key().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("outcome unknown: {}: no answer in time", stub.ws_url())
    );
}

#[tokio::test]
async fn a_rejected_key_is_final() {
    let (first, second) = (ScriptedServer::start().await, ScriptedServer::start().await);
    let rejected = || say(json!({"type": "error", "code": 4001, "message": "key revoked"}));
    first.session(vec![rejected()]);
    let rpc = rpc(&[&first.base, &second.base]);
    let error = rpc.stats().await.unwrap_err();
    assert_eq!(error.to_string(), "Server error (4001): key revoked");

    // In the middle: a read was not answered, a change may have been made.
    first.session(vec![greeting(), Step::Ask, rejected()]);
    let error = rpc.call("keys.list", json!({}), Repeat::Safely).await.unwrap_err();
    assert!(matches!(error, Error::Session { code: 4001, .. }), "{error:?}");
    first.session(vec![greeting(), Step::Ask, rejected()]);
    let error = rpc.revoke_key("k").await.unwrap_err();
    assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error:?}");
    assert!(second.hellos().is_empty());
}

#[tokio::test]
async fn an_answer_of_another_form_is_called_so() {
    let stub = ScriptedServer::start().await;
    stub.session_that_answers(true, json!({"id": "key_1"}));
    let error = rpc(&[&stub.base]).create_key().await.unwrap_err();
    assert!(matches!(error, Error::Malformed(_)), "{error:?}");
    let nowhere = builder(&[&stub.base]).socket_urls(Vec::<String>::new()).build();
    assert!(matches!(nowhere, Err(Error::Invalid(_))));
}
