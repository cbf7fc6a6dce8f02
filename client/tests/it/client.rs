//! The library against scripted servers: which node is asked, what is repeated, what comes back.

use std::time::Duration;

use agentpost::api::abbababa::SendRequest;
use agentpost::kite::Notice;
use agentpost::retry::RetryPolicy;
use agentpost::{Agent, Agentpost, Error};
use agentpost_testkit::ports::refusing_url;
use agentpost_testkit::scripted_server::{ScriptedServer, Step};
use serde_json::json;

fn agent(urls: &[&str]) -> Agent {
    let policy = RetryPolicy {
        pause_min: Duration::from_millis(1),
        ..RetryPolicy::default()
    };
    let post = Agentpost::builder(urls.join(" ")).key("k").retry(policy);
    post.build().unwrap().agent("agent-beta")
}

fn mail() -> SendRequest {
    SendRequest {
        to_agent_id: Some("a".to_owned()),
        kind: Some("t".to_owned()),
        ..SendRequest::default()
    }
}

const SENT: &str = "{\"success\":true,\"messageId\":\"msg_1\"}";

#[tokio::test]
async fn a_node_that_answers_is_kept_and_one_that_does_not_is_passed_over() {
    let (first, second) = (ScriptedServer::start().await, ScriptedServer::start().await);
    first.answer(200, SENT).answer(503, "{\"error\":\"no leader\"}");
    second.answer(200, SENT).answer(200, SENT);
    let agent = agent(&[&refusing_url(), &first.base, &second.base]);
    for _ in 0..3 {
        agent.draft(mail()).await.unwrap();
    }
    assert_eq!((first.seen().len(), second.seen().len()), (2, 2));
    assert_eq!(first.seen()[0].header("x-agent-id"), "agent-beta");
}

#[tokio::test]
async fn a_callers_idempotency_key_is_the_header_and_stays_over_attempts() {
    let stub = ScriptedServer::start().await;
    stub.answer(504, "{\"error\":\"outcome unknown\"}")
        .answer(500, "")
        .answer(200, SENT);
    let sent = agent(&[&stub.base]).draft(mail()).idempotency_key("mine").await;
    assert_eq!(sent.unwrap().id, "msg_1");
    let keys: Vec<String> = stub
        .seen()
        .iter()
        .map(|seen| seen.header("idempotency-key").to_owned())
        .collect();
    assert_eq!(keys, ["mine", "mine", "mine"]);
    assert_eq!(stub.seen()[0].json(), json!({"toAgentId": "a", "type": "t"}));
}

#[tokio::test]
async fn every_message_of_a_batch_gets_a_key_of_its_own() {
    let stub = ScriptedServer::start().await;
    let results = json!({"results": [{"status": 200, "success": true, "messageId": "msg_1"},
                                     {"status": 400, "success": false, "error": "e"}]});
    stub.answer(200, results.to_string());
    let agent = agent(&[&stub.base]);
    let results = agent
        .send_all([agent.draft(mail()), agent.draft(mail())])
        .await
        .unwrap();
    assert!(results[0].is_ok());
    assert_eq!(results[1].as_ref().unwrap_err().message, "e");
    let seen = &stub.seen()[0];
    let key = |n: usize| {
        seen.json()["messages"][n]["idempotencyKey"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert_ne!(key(0), key(1));
    assert_eq!(seen.header("idempotency-key"), "");
}

#[tokio::test]
async fn unsafe_requests_are_not_retried() {
    let stub = ScriptedServer::start().await;
    stub.answer(504, "{\"error\":\"outcome unknown\"}");
    let operator = agent(&[&stub.base]).post().operator();
    let created = operator.create_team("t").await;
    assert!(matches!(created, Err(Error::OutcomeUnknown { .. })), "{created:?}");
    assert_eq!(stub.seen().len(), 1);
}

#[tokio::test]
async fn a_node_that_takes_the_request_and_says_nothing_leaves_it_unknown() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let once = Agentpost::builder(url)
        .answer_timeout(Duration::from_millis(100))
        .retry(RetryPolicy::once());
    let end = once.build().unwrap().agent("agent-beta").draft(mail()).await;
    assert!(
        matches!(end, Err(Error::OutcomeUnknown { answer: None, .. })),
        "{end:?}"
    );
}

#[tokio::test]
async fn a_cluster_that_is_not_there_is_unavailable() {
    let end = agent(&[&refusing_url()]).inbox().await;
    assert!(matches!(end, Err(Error::Unavailable { .. })), "{end:?}");
}

fn connected(last_seq: u64) -> Step {
    Step::Say(json!({"type": "connected", "last_seq": last_seq, "client_id": "c"}).to_string())
}

fn event(seq: u64) -> Step {
    let event = json!({"specversion": "1.0", "id": seq.to_string(), "type": "com.kite.agent.message", "source": "s",
                       "data": {"from": "b", "to": "a", "body": "x"}});
    Step::Say(json!({"type": "event", "seq": seq, "event": event}).to_string())
}

#[tokio::test]
async fn a_session_goes_on_at_another_node_where_it_left_off() {
    let (first, second) = (ScriptedServer::start().await, ScriptedServer::start().await);
    first.session(vec![
        connected(0),
        event(1),
        Step::Hear(json!({"type": "ack", "seq": 1})),
        Step::Hang,
    ]);
    second.session(vec![
        connected(1),
        Step::Say("not json".to_owned()),
        Step::Say(json!({"type": "event", "seq": 2, "event": "no event"}).to_string()),
        event(3),
        Step::Hear(json!({"type": "ack", "seq": 3})),
    ]);
    let post = Agentpost::builder(format!("{} {}", first.base, second.base))
        .key("k")
        .team("t");
    let kite = post.build().unwrap().kite();
    let mut session = kite.session(["agent_to:a"], Some("me".to_owned())).unwrap();
    let mut story = Vec::new();
    while story.last().is_none_or(|last| last != "event 3") {
        story.push(match session.next().await.unwrap() {
            Notice::Event(event) => {
                session.ack(event.seq).await;
                format!("event {}", event.seq)
            }
            Notice::Connecting { url } => format!("dial {}", if url == first.ws_url() { 1 } else { 2 }),
            Notice::Connected { last_seq, .. } => format!("connected at {last_seq}"),
            Notice::Disconnected { .. } => "lost".to_owned(),
            Notice::Reconnecting { after } => format!("pause {} s", after.as_secs()),
            other => format!("{other:?}"),
        });
    }
    let expected = [
        "dial 1",
        "connected at 0",
        "event 1",
        "lost",
        "pause 1 s",
        "dial 2",
        "connected at 1",
        "event 3",
    ];
    assert_eq!(story, expected);
    assert_eq!(second.hellos()[0]["client_id"], "me");
}

#[tokio::test(start_paused = true)]
async fn pauses_double_up_to_30_seconds_and_cover_whole_rounds() {
    let post = Agentpost::builder(format!("{} {}", refusing_url(), refusing_url()))
        .key("k")
        .team("t");
    let mut session = post.build().unwrap().kite().session([""; 0], None).unwrap();
    let (mut dialled, mut pauses) = (0, Vec::new());
    while pauses.len() < 7 {
        match session.next().await.unwrap() {
            Notice::Connecting { .. } => dialled += 1,
            Notice::Reconnecting { after } => pauses.push(after.as_secs()),
            Notice::ConnectionFailed { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
    assert_eq!(dialled, 14);
}
