//! Listening against real nodes: what comes, what comes again, and what happens when a node or a key is gone.

use std::collections::BTreeSet;

use agentpost::{Connection, Error, Listener, Mail, TryStreamExt};

use crate::office::{By, Office, soon};

async fn next(listener: &mut Listener) -> Mail {
    soon(listener.try_next()).await.unwrap().expect("the listener ended")
}

/// Texts up to `last`.
async fn texts_up_to(listener: &mut Listener, last: &str) -> Vec<String> {
    let mut texts = Vec::new();
    while texts.last().is_none_or(|text| text != last) {
        texts.push(next(listener).await.text().to_owned());
    }
    texts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_mail_comes_once_and_in_order_while_the_leader_is_killed() {
    for by in [By::WebSocket, By::LongPoll] {
        let mut office = Office::open(3).await;
        let leader = office.cluster.leader().await.unwrap();
        let other = leader % 3 + 1;
        let mut mail = soon(office.agent(by, leader, "alpha").listen().into_future())
            .await
            .unwrap();
        let beta = office.agent(by, other, "beta");
        let sending = tokio::spawn(async move {
            for n in 0..60 {
                beta.send("alpha", n.to_string()).await.unwrap();
            }
        });
        let mut received = Vec::new();
        while received.len() < 60 {
            let m = next(&mut mail).await;
            received.push(m.text().to_owned());
            if received.len() == 20 {
                office.cluster.kill(leader).unwrap();
            }
            soon(m.ack()).await.unwrap();
        }
        let expected: Vec<String> = (0..60).map(|n: u32| n.to_string()).collect();
        assert_eq!(received, expected, "{by:?}");
        sending.await.unwrap();
        assert_eq!(mail.status().connection, Connection::Open, "{by:?}");
        mail.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_listener_begins_behind_the_last_acknowledgement_which_covers_all_before() {
    let office = Office::open(1).await;
    for by in [By::WebSocket, By::LongPoll] {
        let name = format!("{by:?}");
        let beta = office.agent(by, 1, "beta");
        for text in ["1", "2", "3", "4"] {
            beta.send(&name, text).await.unwrap();
        }
        let alpha = office.agent(by, 1, &name);
        let mut mail = alpha.listen().await.unwrap();
        assert_eq!((next(&mut mail).await.text(), next(&mut mail).await.text()), ("1", "2"));
        let (third, fourth) = (next(&mut mail).await, next(&mut mail).await);
        third.ack().await.unwrap();
        mail.close().await;
        assert_eq!(fourth.text(), "4");

        beta.send(&name, "5").await.unwrap();
        let mut mail = alpha.listen().await.unwrap();
        assert_eq!(texts_up_to(&mut mail, "5").await, ["4", "5"], "{by:?}");
        mail.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_has_to_name_the_team_and_an_acknowledgement_is_seen_by_the_sender() {
    let office = Office::open(1).await;
    let post = agentpost::connect(office.urls_from(1), &*office.team.key)
        .await
        .unwrap();
    assert_eq!(post.team(), None);
    let mut mail = post.agent("alpha").listen().await.unwrap();
    let beta = post.agent("beta");
    let sent = beta.send("alpha", "hello").subject("s").await.unwrap();
    let m = next(&mut mail).await;
    assert_eq!(
        (m.id.as_str(), m.from.as_str(), m.text()),
        (sent.id.as_str(), "beta", "hello")
    );
    assert_eq!(m.details.as_ref().unwrap().subject.as_deref(), Some("s"));
    assert_eq!(beta.receipt(&sent.id).await.unwrap().counts.read, 0);
    m.ack().await.unwrap();
    assert_eq!(beta.receipt(&sent.id).await.unwrap().counts.read, 1);

    let kite = post.kite().stats().await.unwrap_err();
    assert!(matches!(kite, Error::Invalid(_)), "{kite}");
    let named = post.agent("alpha").listen().client_id("archive").await.unwrap_err();
    assert!(matches!(named, Error::Invalid(_)), "{named}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn named_listeners_each_work_through_all_mail() {
    let office = Office::open(1).await;
    let alpha = office.agent(By::WebSocket, 1, "alpha");
    let beta = office.agent(By::WebSocket, 1, "beta");
    let mut first = alpha.listen().client_id("first").await.unwrap();
    let mut second = alpha.listen().client_id("second").await.unwrap();
    for text in ["1", "2"] {
        beta.send("alpha", text).await.unwrap();
    }
    assert_eq!(texts_up_to(&mut first, "2").await, ["1", "2"]);
    next(&mut second).await.ack().await.unwrap();
    second.close().await;
    let mut second = alpha.listen().client_id("second").await.unwrap();
    assert_eq!(next(&mut second).await.text(), "2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mail_of_topics_and_threads_looks_the_same_in_both_ways() {
    let office = Office::open(1).await;
    let mut seen = BTreeSet::new();
    let post = office.post(By::LongPoll, 1);
    let (alpha, beta) = (post.agent("alpha"), post.agent("beta"));
    alpha.subscribe("news").await.unwrap();
    beta.publish("news", serde_json::json!({ "n": 1 }))
        .kind("note")
        .thread("t")
        .await
        .unwrap();
    for by in [By::WebSocket, By::LongPoll] {
        let mut mail = office.agent(by, 1, "alpha").listen().await.unwrap();
        let m = next(&mut mail).await;
        seen.insert(format!(
            "{} {} {} {:?} {} {:?} {}",
            m.id,
            m.from,
            m.to,
            m.topic,
            m.kind,
            m.thread,
            m.text()
        ));
    }
    assert_eq!(seen.len(), 1, "{seen:?}");
    let line = seen.first().unwrap();
    assert!(
        line.ends_with(" beta alpha Some(\"news\") note Some(\"t\") {\"n\":1}"),
        "{line}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_keeps_the_thread_or_begins_one() {
    let office = Office::open(1).await;
    let post = office.post(By::WebSocket, 1);
    let (alpha, beta) = (post.agent("alpha"), post.agent("beta"));
    let mut to_alpha = alpha.listen().await.unwrap();
    let mut to_beta = beta.listen().await.unwrap();
    for thread in [Some("t-1"), None] {
        let draft = beta.send("alpha", "question");
        let question = match thread {
            Some(thread) => draft.thread(thread).await.unwrap(),
            None => draft.await.unwrap(),
        };
        next(&mut to_alpha).await.reply("answer").await.unwrap();
        let answer = next(&mut to_beta).await;
        assert_eq!((answer.from.as_str(), answer.text()), ("alpha", "answer"));
        assert_eq!(answer.reply_to.as_deref(), Some(question.id.as_str()));
        assert_eq!(answer.thread.as_deref(), Some(thread.unwrap_or(&question.id)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_not_accepted_ends_it() {
    let office = Office::open(1).await;
    let operator = office.operator().await;
    for by in [By::WebSocket, By::LongPoll] {
        let key = operator
            .operator()
            .create_key(&office.team.id, "short-lived")
            .await
            .unwrap();
        let mut builder = agentpost::Agentpost::builder(office.urls_from(1)).key(&*key.api_key);
        if by == By::WebSocket {
            builder = builder.team(&office.team.id);
        }
        let post = builder.connect().await.unwrap();
        let alpha = post.agent("alpha");
        let mut mail = alpha.listen().await.unwrap();
        alpha.send("alpha", format!("{by:?}")).await.unwrap();
        let held = loop {
            let m = next(&mut mail).await;
            if m.text() == format!("{by:?}") {
                break m;
            }
        };
        operator.operator().revoke_key(&key.id).await.unwrap();
        // A long poll asks about its key again when mail comes, or when it is over.
        office.agent(by, 1, "beta").send("alpha", "too late").await.unwrap();
        let end = soon(mail.try_next()).await.unwrap_err();
        assert!(is_not_accepted(&end), "{by:?} {end:?}");
        assert!(soon(mail.try_next()).await.unwrap().is_none());
        assert_eq!(mail.status().connection, Connection::Ended);
        let ack = held.ack().await.unwrap_err();
        assert!(
            matches!(ack, Error::Unavailable { .. } | Error::Refused(_)),
            "{by:?} {ack:?}"
        );
        let begun = soon(alpha.listen().into_future()).await.unwrap_err();
        assert!(is_not_accepted(&begun), "{by:?} {begun:?}");
    }
    let refused = agentpost::connect(office.urls_from(1), "kite_wrong")
        .await
        .err()
        .unwrap();
    assert!(matches!(refused, Error::Refused(_)), "{refused:?}");
}

fn is_not_accepted(error: &Error) -> bool {
    match error {
        Error::Session { code, .. } => *code == 4001,
        Error::Refused(answer) => answer.status == 401,
        _ => false,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_acknowledgement_after_the_listener_ended_says_so() {
    let office = Office::open(1).await;
    let alpha = office.agent(By::WebSocket, 1, "alpha");
    alpha.send("alpha", "x").await.unwrap();
    let mut mail = alpha.listen().await.unwrap();
    let m = next(&mut mail).await;
    mail.close().await;
    let late = m.ack().await.unwrap_err();
    assert!(matches!(late, Error::Unavailable { .. }), "{late:?}");
    let mut mail = alpha.listen().await.unwrap();
    assert_eq!(next(&mut mail).await.text(), "x", "it comes again");
}
