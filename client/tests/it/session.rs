//! A listener's WebSocket sessions against servers that play a script.

use agentpost::{Agentpost, Connection, Error, TryStreamExt};
use agentpost_testkit::ports::refusing_url;
use agentpost_testkit::scripted_server::{ScriptedServer, Step};
use serde_json::json;

use crate::office::soon;

fn connected(last_seq: u64) -> Step {
    Step::Say(json!({"type": "connected", "last_seq": last_seq, "client_id": "c"}).to_string())
}

fn event(seq: u64) -> Step {
    let event = json!({"specversion": "1.0", "id": format!("id-{seq}"), "type": "com.kite.agent.message", "source": "s",
                       "time": "2026-04-30T10:00:00Z", "data": {"from": "b", "to": "a", "body": seq.to_string()}});
    Step::Say(json!({"type": "event", "seq": seq, "event": event}).to_string())
}

fn ack(seq: u64) -> Step {
    Step::Hear(json!({"type": "ack", "seq": seq}))
}

fn agent(servers: &[&ScriptedServer]) -> agentpost::Agent {
    let urls: Vec<&str> = servers.iter().map(|server| server.base.as_str()).collect();
    Agentpost::builder(urls.join(" "))
        .key("k")
        .team("team_1")
        .build()
        .unwrap()
        .agent("a")
}

#[tokio::test]
async fn redelivered_events_are_skipped_and_acknowledged_again() {
    let (first, second) = (ScriptedServer::start().await, ScriptedServer::start().await);
    first.session(vec![connected(0), event(1), event(2), ack(1), Step::Hang]);
    second.session(vec![
        connected(0),
        event(1),
        event(2),
        ack(1),
        ack(2),
        Step::Say(json!({"type": "event", "seq": 3, "event": {"id": "i", "type": "com.github.push"}}).to_string()),
        event(4),
        ack(4),
    ]);
    let mut mail = agent(&[&first, &second]).listen().await.unwrap();
    let mut status = mail.watch();
    let one = soon(mail.try_next()).await.unwrap().unwrap();
    let two = soon(mail.try_next()).await.unwrap().unwrap();
    one.ack().await.unwrap();
    soon(status.wait_for(|status| status.connection != Connection::Open))
        .await
        .unwrap();
    // Nobody is connected: the acknowledgement waits for the next session.
    soon(two.ack()).await.unwrap();
    let four = soon(mail.try_next()).await.unwrap().unwrap();
    assert_eq!(
        (two.text(), four.text(), four.created_at.as_str()),
        ("2", "4", "2026-04-30T10:00:00Z")
    );
    assert!(mail.status().failure.is_some());
    four.ack().await.unwrap();
    mail.close().await;
    let hello = json!({"type": "connect", "version": 1, "token": "k", "team_id": "team_1", "scopes": ["agent_to:a"],
                       "client_id": null});
    assert_eq!([first.hellos(), second.hellos()].concat(), [hello.clone(), hello]);
}

#[tokio::test]
async fn notices_are_in_the_status() {
    let server = ScriptedServer::start().await;
    server.session(vec![
        connected(9),
        Step::Say(json!({"type": "billing_block", "provider": "p", "reason": "quota used up"}).to_string()),
        Step::Say(json!({"type": "cursor_expired", "oldest_available_seq": 12, "message": "m"}).to_string()),
        event(12),
        ack(12),
    ]);
    let mut mail = agent(&[&server]).listen().client_id("me").await.unwrap();
    let m = soon(mail.try_next()).await.unwrap().unwrap();
    let status = mail.status();
    assert_eq!((status.connection, status.cursor_expired), (Connection::Open, Some(12)));
    assert_eq!(status.billing_block.as_deref(), Some("quota used up"));
    assert_eq!(status.url, server.ws_url());
    m.ack().await.unwrap();
    mail.close().await;
    assert_eq!(server.hellos()[0]["client_id"], "me");
}

#[tokio::test]
async fn dropping_a_listener_ends_its_session() {
    let server = ScriptedServer::start().await;
    server.session(vec![connected(0), event(1), ack(1), Step::Gone]);
    let mut mail = agent(&[&server]).listen().await.unwrap();
    let m = soon(mail.try_next()).await.unwrap().unwrap();
    m.ack().await.unwrap();
    drop(mail);
    let ended = soon(async {
        loop {
            if let Err(error) = m.ack().await {
                return error;
            }
        }
    })
    .await;
    assert!(matches!(ended, Error::Unavailable { .. }), "{ended:?}");
    assert_eq!(server.hellos().len(), 1, "it does not come back");
}

#[tokio::test]
async fn a_first_session_that_no_node_takes_is_an_error() {
    let policy = agentpost::retry::RetryPolicy::once();
    let urls = [refusing_url(), refusing_url()].join(",");
    let post = Agentpost::builder(urls)
        .key("k")
        .retry(policy.clone())
        .team("team_1")
        .build()
        .unwrap();
    let none = soon(post.agent("a").listen().into_future()).await.unwrap_err();
    assert!(matches!(none, Error::Unavailable { .. }), "{none:?}");
    let post = Agentpost::builder(refusing_url())
        .key("k")
        .retry(policy)
        .build()
        .unwrap();
    let none = soon(post.agent("a").listen().into_future()).await.unwrap_err();
    assert!(matches!(none, Error::Unavailable { .. }), "{none:?}");
}
