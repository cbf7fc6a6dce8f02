//! Receivers that answer with invalid HTTP, slowly, without end, or not at all.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use agentpost_node::base::clock::Clock;
use agentpost_node::shard::wall_time::WallTime;
use agentpost_node::webhooks::attempt;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::stage::{LOOPBACK, OK, OK_CLOSE, Receiver, Stage, call, header};
use crate::common::{eventually, in_child};

#[tokio::test]
async fn a_request_holds_what_is_published_and_nothing_else() {
    let receiver = Receiver::answering(OK).await;
    let stage = Stage::new(LOOPBACK);
    let url = format!("http://{}/Hook/%7E?a=b%20c", receiver.addr);
    let result = stage.call(&url).await;
    assert_eq!((result.status, &*result.error, result.not_sent), (200, "", false));
    let (head, body) = receiver.requests().remove(0);
    let body: Value = serde_json::from_slice(&body).unwrap();
    let message = body["message"].clone();
    assert_eq!(message["toAgentId"], "beta");
    assert_eq!(message["body"], json!({"price": 5.0}));
    let delivery = format!("dlv_{}", "09".repeat(16));
    assert_eq!(
        body,
        json!({
            "event": "message.received", "deliveryId": delivery, "messageId": format!("msg_{}", "07".repeat(16)),
            "fromAgentId": "alpha", "toAgentId": "beta", "topic": null, "type": "price.quote",
            "body": {"price": 5.0}, "createdAt": "2026-02-12T14:30:00.000Z", "message": message,
        })
    );
    assert!(head.starts_with("POST /Hook/%7E?a=b%20c HTTP/1.1\r\n"), "{head}");
    for (name, value) in [
        ("host", &*receiver.addr.to_string()),
        ("content-type", "application/json"),
        ("user-agent", "Upstash-QStash"),
        ("upstash-message-id", &delivery),
        ("webhook-id", &delivery),
        ("idempotency-key", &delivery),
        ("upstash-retried", "2"),
        ("x-retry-step", "2"),
        ("x-attempt", "5"),
        ("x-dispatch-epoch", "77"),
    ] {
        assert_eq!(header(&head, name).as_deref(), Some(value), "{name}");
    }
    let mut names: Vec<String> = head
        .lines()
        .skip(1)
        .map(|line| line.split(':').next().unwrap().to_ascii_lowercase())
        .collect();
    names.sort();
    assert_eq!(
        names.join(" "),
        "accept content-length content-type host idempotency-key upstash-message-id upstash-retried \
         upstash-signature user-agent webhook-id webhook-signature webhook-timestamp x-abbababa-signature \
         x-attempt x-dispatch-epoch x-retry-step"
    );
}

#[tokio::test]
async fn a_topic_message_names_its_topic_subscription_and_receiver() {
    let receiver = Receiver::answering(OK).await;
    let stage = Stage::new(LOOPBACK);
    let mut call = call(&receiver.url());
    call.message.to = String::new();
    call.message.topic = "market".into();
    call.delivery.topic = "market".into();
    call.delivery.subscription_id = vec![3; 16].into();
    call.redelivery_possible = true;
    attempt::make(&stage.egress, &WallTime::new(Clock::system()), call).await;
    let (head, body) = receiver.requests().remove(0);
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(body["event"], "message.topic");
    assert_eq!(body["topic"], "market");
    assert_eq!(body["toAgentId"], "beta");
    assert_eq!(body["message"]["toAgentId"], "beta");
    assert_eq!(body["subscriptionId"], format!("sub_{}", "03".repeat(16)));
    assert_eq!(header(&head, "x-redelivery").as_deref(), Some("possible"));
}

#[tokio::test]
async fn redirects_are_failures_and_never_followed() {
    let target = Receiver::answering(OK).await;
    let stage = Stage::new(LOOPBACK);
    for status in [300, 301, 302, 303, 304, 307, 308] {
        for location in [
            target.url(),
            "http://169.254.169.254/".to_owned(),
            "//localhost/".to_owned(),
        ] {
            let answer = format!("HTTP/1.1 {status} X\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n");
            let receiver = Receiver::answering(answer).await;
            let result = stage.call(&receiver.url()).await;
            assert_eq!((result.status, &*result.error), (status, "status"));
            assert_eq!(receiver.requests().len(), 1);
        }
    }
    assert_eq!(target.connections(), 0);
}

#[tokio::test]
async fn status_and_retry_after_decide_what_follows() {
    let stage = Stage::new(LOOPBACK);
    for (answer, status, error, wait_ms, for_good) in [
        ("204 No Content\r\n\r\n", 204, "", 0, false),
        (
            "299 X\r\ncontent-length: 0\r\nretry-after: 9\r\n\r\n",
            299,
            "",
            0,
            false,
        ),
        ("400 X\r\ncontent-length: 0\r\n\r\n", 400, "status", 0, false),
        ("410 Gone\r\ncontent-length: 0\r\n\r\n", 410, "status", 0, false),
        (
            "489 X\r\ncontent-length: 0\r\nUpstash-NonRetryable-Error: true\r\n\r\n",
            489,
            "status",
            0,
            true,
        ),
        ("489 X\r\ncontent-length: 0\r\n\r\n", 489, "status", 0, false),
        (
            "503 X\r\ncontent-length: 0\r\nretry-after: 6m5s\r\n\r\n",
            503,
            "status",
            365_000,
            false,
        ),
        ("999 X\r\ncontent-length: 0\r\n\r\n", 999, "status", 0, false),
        (
            "101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
            101,
            "status",
            0,
            false,
        ),
    ] {
        let receiver = Receiver::answering(format!("HTTP/1.1 {answer}")).await;
        let result = stage.call(&receiver.url()).await;
        let got = (
            result.status,
            &*result.error,
            result.retry_after_ms,
            result.non_retryable,
        );
        assert_eq!(got, (status, error, wait_ms, for_good), "{answer}");
    }
}

#[tokio::test]
async fn an_answer_that_is_not_http_is_a_protocol_error() {
    let stage = Stage::new(LOOPBACK);
    let large = format!(
        "HTTP/1.1 200 OK\r\nx: {}\r\ncontent-length: 0\r\n\r\n",
        "y".repeat(1 << 20)
    );
    let wide = format!(
        "HTTP/1.1 200 OK\r\nx: {}\r\ncontent-length: 0\r\n\r\n",
        "y".repeat(20_000)
    );
    let many = format!("HTTP/1.1 200 OK\r\n{}content-length: 0\r\n\r\n", "x: y\r\n".repeat(64));
    for answer in [
        "SSH-2.0-OpenSSH_9.6\r\n",
        "HTTP/2 200\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1 099 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
        &large,
        &wide,
        &many,
    ] {
        let receiver = Receiver::answering(answer).await;
        let result = stage.call(&receiver.url()).await;
        let start = &answer[..answer.len().min(60)];
        assert_eq!((result.status, &*result.error), (0, "protocol"), "{start}");
        assert_eq!(receiver.requests().len(), 1, "{start}");
    }
}

#[tokio::test]
async fn a_connection_that_breaks_is_one_failed_attempt() {
    let stage = Stage::new(LOOPBACK);
    for answer in [
        "",
        "HTTP/1.1 200 OK\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf",
    ] {
        let receiver = Receiver::serving("127.0.0.1:0", move |mut stream: TcpStream| async move {
            let _ = stream.write_all(answer.as_bytes()).await;
            None
        })
        .await;
        let result = stage.call(&receiver.url()).await;
        assert_eq!((result.status, &*result.error), (0, "protocol"), "{answer}");
        assert_eq!((receiver.connections(), receiver.requests().len()), (1, 1), "{answer}");
    }
    // This receiver has been dropped.
    let gone = Receiver::answering(OK).await.url();
    let result = loop {
        let result = stage.call(&gone).await;
        // The listener closes a moment after it is dropped.
        if result.error != "protocol" && result.status == 0 {
            break result;
        }
    };
    assert_eq!(result.error, "connect");
}

/// Starts a receiver that writes `drop` every 5 ms without end, and counts the connections that the caller has closed.
async fn dripping(head: &'static str, drop: &'static str) -> (Receiver, Arc<AtomicUsize>) {
    let hung_up = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&hung_up);
    let receiver = Receiver::serving("127.0.0.1:0", move |mut stream: TcpStream| {
        let count = Arc::clone(&count);
        async move {
            let mut result = stream.write_all(head.as_bytes()).await;
            while result.is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
                result = stream.write_all(drop.as_bytes()).await;
            }
            count.fetch_add(1, Ordering::SeqCst);
            None
        }
    })
    .await;
    (receiver, hung_up)
}

#[tokio::test]
async fn slow_answers_end_with_the_attempt() {
    let stage = &Stage::hasty(LOOPBACK);
    let cases = [
        ("", "", 0),
        ("HTTP/1.1 200 OK\r\nx-slow: ", "z", 0),
        ("HTTP/1.1 200 OK\r\n", "HTTP", 0),
        (
            "HTTP/1.1 100 Continue\r\n\r\n",
            "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n",
            0,
        ),
        ("HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n", "z", 0),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", "1\r\nz\r\n", 0),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n",
            "x: y\r\n",
            0,
        ),
        // The status of a failure is known before its body ends.
        ("HTTP/1.1 410 Gone\r\ncontent-length: 100000\r\n\r\n", "z", 410),
    ];
    // The attempts run at the same time, because each one takes its whole time.
    let calls = cases.map(|(head, drop, status)| async move {
        let (receiver, hung_up) = dripping(head, drop).await;
        let result = stage.call(&receiver.url()).await;
        // Many headers may exceed a limit of the parser before the time is over.
        let floods = drop.contains("\r\n") || drop == "HTTP";
        let ended = result.error == "timeout" || (floods && result.error == "protocol");
        assert!(ended && result.status == status, "{head:?}: {result:?}");
        assert_eq!(receiver.requests().len(), 1, "{head:?}");
        eventually(format!("a dropped connection of {head:?}"), async || {
            (drop.is_empty() || hung_up.load(Ordering::SeqCst) > 0).then_some(())
        })
        .await;
    });
    futures::future::join_all(calls).await;
}

#[tokio::test]
async fn an_endless_answer_is_read_to_a_bound_and_the_connection_dropped() {
    let stage = Stage::new(LOOPBACK);
    for head in [
        "connection: close",
        "content-length: 99999999999",
        "transfer-encoding: chunked",
    ] {
        let written = Arc::new(AtomicUsize::new(0));
        let hung_up = Arc::new(tokio::sync::Notify::new());
        let (count, noticed) = (Arc::clone(&written), Arc::clone(&hung_up));
        let receiver = Receiver::serving("127.0.0.1:0", move |mut stream: TcpStream| {
            let (count, noticed) = (Arc::clone(&count), Arc::clone(&noticed));
            async move {
                let head = format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n");
                let mut result = stream.write_all(head.as_bytes()).await;
                let chunk = format!("1000\r\n{}\r\n", "z".repeat(4096));
                while result.is_ok() {
                    result = stream.write_all(chunk.as_bytes()).await;
                    count.fetch_add(chunk.len(), Ordering::SeqCst);
                }
                noticed.notify_one();
                None
            }
        })
        .await;
        let result = stage.call(&receiver.url()).await;
        assert_eq!((result.status, &*result.error), (200, ""), "{head}");
        hung_up.notified().await;
        // The buffers of both sides hold more than was read.
        let written = written.load(Ordering::SeqCst);
        assert!(written < 32 << 20, "{head}: {written} bytes");
    }
}

#[tokio::test]
async fn compressed_answers_stay_as_they_are() {
    // The body is not compressed, although the header says so: decoding it would fail.
    let receiver =
        Receiver::answering("HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 4\r\n\r\nbomb").await;
    let result = Stage::new(LOOPBACK).call(&receiver.url()).await;
    assert_eq!((result.status, &*result.error), (200, ""));
    let (head, _) = receiver.requests().remove(0);
    assert_eq!(header(&head, "accept-encoding"), None);
}

#[tokio::test]
async fn cookies_and_answers_of_private_receivers_are_forgotten() {
    let receiver = Receiver::answering(
        "HTTP/1.1 200 OK\r\nset-cookie: a=b\r\nalt-svc: h3=\":1\"\r\ncontent-length: 6\r\n\r\nsecret",
    )
    .await;
    let stage = Stage::new(LOOPBACK);
    for _ in 0..2 {
        assert!(stage.call(&receiver.url()).await.response.is_empty());
    }
    for (head, _) in receiver.requests() {
        assert_eq!(header(&head, "cookie"), None);
    }
}

#[tokio::test]
async fn connections_are_kept_for_a_team_and_not_for_two() {
    let receiver = Receiver::answering(OK).await;
    let stage = Stage::new(LOOPBACK);
    for _ in 0..3 {
        assert_eq!(stage.call(&receiver.url()).await.status, 200);
    }
    assert_eq!(receiver.connections(), 1);
    let mut other = call(&receiver.url());
    other.team = agentpost_proto::id::TeamId([2; 16]);
    attempt::make(&stage.egress, &WallTime::new(Clock::system()), other).await;
    assert_eq!((receiver.connections(), receiver.requests().len()), (2, 4));
}

/// The child has proxies in its environment.
#[tokio::test]
async fn proxies_of_the_environment_are_ignored() {
    if in_child::is_child() {
        let receiver = Receiver::answering(OK_CLOSE).await;
        let stage = Stage::new(LOOPBACK);
        stage.names.set("receiver.example.com", &[&["127.0.0.1"]]);
        assert_eq!(stage.call(&receiver.url()).await.status, 200);
        let named = format!("http://receiver.example.com:{}/", receiver.addr.port());
        assert_eq!(stage.call(&named).await.status, 200);
        return;
    }
    let proxy = Receiver::answering(OK_CLOSE).await;
    let test = "egress::receivers::proxies_of_the_environment_are_ignored";
    in_child::run(test, |child| {
        for name in [
            "http_proxy",
            "HTTP_PROXY",
            "https_proxy",
            "HTTPS_PROXY",
            "all_proxy",
            "ALL_PROXY",
        ] {
            child.env(name, format!("http://{}", proxy.addr));
        }
        child.env_remove("no_proxy").env_remove("NO_PROXY");
    })
    .await;
    assert_eq!(proxy.connections(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_public_host_is_not_called_too_often_whoever_asks() {
    // No name resolves, so no socket is opened, and tokio's paused clock skips all waits.
    let stage = Stage::new("");
    let calls = (0..200u8).map(|i| {
        let mut call = call(&format!("https://victim.example.com:{}/", 2000 + u16::from(i % 20)));
        call.team = agentpost_proto::id::TeamId([i; 16]);
        let egress = stage.egress.clone();
        async move {
            call.wait = egress.turn_at(&call.delivery.url)?;
            Some(
                attempt::make(&egress, &WallTime::new(Clock::system()), call)
                    .await
                    .result,
            )
        }
    });
    let results = futures::future::join_all(calls).await;
    let (put_back, made): (Vec<_>, Vec<_>) = results.into_iter().partition(Option::is_none);
    let made: Vec<_> = made.into_iter().flatten().collect();
    assert!(made.iter().all(|result| result.error == "dns"));
    // The burst, and then 42 per second for 1.5 s.
    assert_eq!((made.len(), stage.names.asked()), (71, 71));
    assert_eq!(put_back.len(), 200 - 71);
}
