//! The addresses of a name are checked when they are dialled.

use std::time::Duration;

use agentpost_node::base::clock::Clock;
use agentpost_node::shard::wall_time::WallTime;
use agentpost_node::webhooks::attempt;
use agentpost_node::webhooks::egress::{TEAM_LOOKUPS_MAX, Timeouts};
use agentpost_proto::id::TeamId;
use rustls::RootCertStore;

use super::stage::{HANGING, LOOPBACK, OK, OK_CLOSE, Receiver, Stage, call, config};
use super::urls::{Where, table};

const NAME: &str = "receiver.example.com";
const PUBLIC: &str = "93.184.216.34";

#[tokio::test]
async fn no_hostile_address_of_the_table_is_dialled_alone_or_among_public_ones() {
    let stage = Stage::new("");
    let url = format!("https://{NAME}/hook");
    stage.egress.check_url(&url).unwrap();
    for row in table().iter().filter(|row| row.at == Where::Dialling) {
        let address = row.text.as_str();
        for answer in [
            &[address][..],
            &[PUBLIC, address],
            &[address, PUBLIC],
            &[PUBLIC, "1.1.1.1", address],
        ] {
            stage.names.set(NAME, &[answer]);
            let result = stage.call(&url).await;
            assert_eq!((result.status, &*result.error), (0, "refused"), "{answer:?}");
        }
    }
}

#[tokio::test]
async fn a_name_that_is_rebound_after_its_check_reaches_nothing() {
    // 127.0.0.2 is allowed and stands for a public address; 127.0.0.1 must not be reached.
    let open = Receiver::at("127.0.0.2:0", OK_CLOSE).await;
    let closed = Receiver::at(&format!("127.0.0.1:{}", open.addr.port()), OK_CLOSE).await;
    let stage = Stage::new("allow_http = true\nallow_networks = [\"127.0.0.2/32\"]");
    let url = format!("http://{NAME}:{}/", open.addr.port());
    stage.names.set(
        NAME,
        &[
            &["127.0.0.2"],
            &["127.0.0.1"],
            &["127.0.0.2", "127.0.0.1"],
            &["127.0.0.1", "127.0.0.2"],
            &["::ffff:127.0.0.1"],
            &["::1"],
            &["0.0.0.0"],
            &["127.0.0.2"],
        ],
    );
    stage.egress.check_url(&url).unwrap();
    assert_eq!(
        stage.names.asked(),
        0,
        "a name is looked up when it is dialled, not before"
    );
    assert_eq!(stage.call(&url).await.status, 200);
    for _ in 0..6 {
        assert_eq!(stage.call(&url).await.error, "refused");
    }
    assert_eq!(stage.call(&url).await.status, 200);
    assert_eq!(
        stage.names.asked(),
        8,
        "one look-up for each connection, whose answer is dialled"
    );
    assert_eq!((open.connections(), closed.connections()), (2, 0));
}

#[tokio::test]
async fn a_kept_connection_leads_where_it_was_checked_to_lead() {
    let open = Receiver::at("127.0.0.2:0", OK).await;
    let closed = Receiver::at(&format!("127.0.0.1:{}", open.addr.port()), OK).await;
    let stage = Stage::new("allow_http = true\nallow_networks = [\"127.0.0.2/32\"]");
    let url = format!("http://{NAME}:{}/", open.addr.port());
    stage.names.set(NAME, &[&["127.0.0.2"], &["127.0.0.1"]]);
    for _ in 0..3 {
        assert_eq!(stage.call(&url).await.status, 200);
    }
    assert_eq!((open.connections(), closed.connections()), (1, 0));
}

#[tokio::test]
async fn addresses_in_urls_are_judged_at_each_call() {
    // These URLs may have been registered under other settings.
    let receiver = Receiver::answering(OK).await;
    for settings in ["", "allow_http = true", "allow_networks = [\"127.0.0.0/8\"]"] {
        let result = Stage::new(settings).call(&receiver.url()).await;
        assert_eq!(result.error, "refused", "{settings}");
    }
    assert_eq!(receiver.connections(), 0);
    assert_eq!(Stage::new(LOOPBACK).call(&receiver.url()).await.status, 200);
}

#[tokio::test]
async fn names_without_addresses_are_a_class_of_their_own() {
    let stage = Stage::new(LOOPBACK);
    assert_eq!(stage.call("https://unknown.example.com/").await.error, "dns");
    stage.names.set(NAME, &[&[]]);
    assert_eq!(stage.call(&format!("https://{NAME}/")).await.error, "dns");
}

#[tokio::test]
async fn no_connection_in_time_is_not_a_slow_answer() {
    let timeouts = Timeouts {
        connect: Duration::from_millis(100),
        ..Timeouts::default()
    };
    let stage = Stage::with(&config(LOOPBACK), &[], RootCertStore::empty(), timeouts);
    assert_eq!(stage.call(&format!("http://{HANGING}/")).await.error, "connect");
    // This listener accepts the connection and never starts the TLS handshake.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/", listener.local_addr().unwrap());
    assert_eq!(stage.call(&url).await.error, "connect");
}

#[tokio::test]
async fn lookups_that_hang_affect_only_their_team() {
    let receiver = Receiver::answering(OK).await;
    let stage = Stage::hasty(LOOPBACK);
    stage.names.set(NAME, &[&["127.0.0.1"]]);
    let (hanging, good) = (
        format!("http://{HANGING}/"),
        format!("http://{NAME}:{}/", receiver.addr.port()),
    );
    let calls = (0..TEAM_LOOKUPS_MAX).map(|_| stage.call(&hanging));
    for result in futures::future::join_all(calls).await {
        assert_eq!(result.error, "timeout");
    }
    // The attempts are over, but threads may still be waiting for these look-ups.
    assert_eq!(stage.call(&good).await.error, "timeout");
    let mut other = call(&good);
    other.team = TeamId([2; 16]);
    assert_eq!(
        attempt::make(&stage.egress, &WallTime::new(Clock::system()), other)
            .await
            .result
            .status,
        200
    );
}
