//! Sockets whose key ends: revoked or expired, on every node that has one, also one that nobody reads.
#![allow(clippy::unwrap_used)]

mod world;

use std::time::{Duration, Instant};

use agentpost_node::base::clock::Clock;
use agentpost_node::server::ws;
use agentpost_proto::time::rfc3339;
use futures::future::join_all;
use serde_json::json;

use world::common::eventually;
use world::web::{Call, Team};
use world::ws_client::{Socket, connect_frame, refused, serve_with};
use world::{World, connect};

const REVOCATIONS: usize = 100;
const HOUR_MS: u64 = 3_600_000;

impl World {
    /// A key that may read, and its id.
    async fn doomed(&self, team: &Team, expires_at: Option<String>) -> (String, Team) {
        let wanted = json!({ "name": "doomed", "permissions": ["read"], "expires_at": expires_at });
        self.key(team, wanted).await
    }

    async fn revoke(&self, node: usize, id: &str) {
        let call = Call::delete(format!("/admin/v1/keys/{id}")).bearer(&self.admin);
        call.to(&self.urls[node]).await.ok();
    }

    /// Nobody opens anything with this key, on any node.
    async fn is_refused(&self, key: &Team) {
        for url in &self.urls {
            let mut socket = Socket::open(url).await;
            socket.say(&connect_frame(&connect(key, &["*"], None))).await;
            assert_eq!(socket.ending().await, refused(4001));
        }
    }

    async fn sessions(&self, node: usize, count: usize) {
        let line = format!("agentpost_ws_sessions {count}\n");
        eventually("so many sessions", async || {
            let metrics = self.cluster.services(node).metrics_text();
            metrics.contains(&line).then_some(())
        })
        .await;
    }
}

/// Prints how long it took until the last socket of each key, on three nodes, had its close frame.
#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_key_closes_its_sockets_on_every_node() {
    let world = World::start().await;
    let team = world.team("keys").await;
    let keys = join_all((0..REVOCATIONS).map(|_| world.doomed(&team, None))).await;
    let (mut other, _) = world.listen(0, &team, &["*"], None).await;
    let mut took = Vec::new();
    for (turn, (id, key)) in keys.iter().enumerate() {
        let scopes = [["*"], ["agent_to:a"]][turn % 2];
        let mut sockets = join_all((0..3).map(|node| world.listen(node, key, &scopes, None))).await;
        let started = Instant::now();
        world.revoke(turn % 3, id).await;
        let endings = join_all(sockets.iter_mut().map(|(socket, _)| socket.ending())).await;
        took.push(started.elapsed());
        assert!(endings.iter().all(|ending| *ending == refused(4001)), "{endings:?}");
    }
    other.silent().await;
    for (_, key) in &keys[..3] {
        world.is_refused(key).await;
    }
    took.sort_unstable();
    let (median, longest) = (took[REVOCATIONS / 2], took[REVOCATIONS - 1]);
    eprintln!("from the request to the last of three sockets: median {median:?}, longest {longest:?}");
    world.cluster.stop().await;
}

/// A reader that takes nothing would otherwise keep its socket until its write is given up.
#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_key_closes_the_socket_of_a_stalled_reader() {
    let world = World::start().await;
    let team = world.team("keys").await;
    let options = ws::ws_state::SessionOptions {
        stalled_max: Duration::from_secs(3_600),
        ..ws::ws_state::SessionOptions::default()
    };
    let url = serve_with(world.cluster.services(1), options).await;
    let large = "x".repeat(200 * 1024);
    for at in 0..40 {
        world.send(at % 3, &team, "a", &large).await;
    }
    let (id, key) = world.doomed(&team, None).await;
    let (_, spared) = world.doomed(&team, None).await;
    let mut sockets = Vec::new();
    for key in [&key, &spared] {
        let mut socket = Socket::open_narrow(&url).await;
        socket.greet(connect(key, &["agent_to:a"], None)).await;
        assert_eq!(socket.event().await.0, 1);
        sockets.push(socket);
    }
    world.sessions(1, 2).await;
    world.revoke(0, &id).await;
    world.sessions(1, 1).await;
    // The other one was woken, too, and goes on.
    let mut spared = sockets.pop().unwrap();
    for seq in 2..=40 {
        assert_eq!(spared.event().await.0, seq);
    }
    world.cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_key_closes_its_sockets_on_every_node() {
    let world = World::start().await;
    let team = world.team("keys").await;
    let in_an_hour = rfc3339(Clock::system().wall_ms() + HOUR_MS);
    let (_, key) = world.doomed(&team, Some(in_an_hour)).await;
    let mut sockets = Vec::new();
    for node in 0..3 {
        let options = ws::ws_state::SessionOptions {
            look_every: Duration::from_millis(200),
            ..ws::ws_state::SessionOptions::default()
        };
        let url = serve_with(world.cluster.services(node), options).await;
        for scopes in [["*"], ["agent_to:a"]] {
            sockets.push(Socket::connect(&url, connect(&key, &scopes, None)).await.0);
        }
    }
    let (mut other, _) = world.listen(1, &team, &["*"], None).await;
    for socket in &mut sockets {
        socket.silent().await;
    }
    // Two hours pass on all clocks; nodes learn of it when they ask each other again.
    for node in 0..3 {
        world.cluster.services(node).clock.shift(2 * HOUR_MS as i64);
    }
    for socket in &mut sockets {
        assert_eq!(socket.ending().await, refused(4001));
    }
    world.is_refused(&key).await;
    other.silent().await;
    world.send(2, &team, "a", "still here").await;
    assert_eq!(other.event().await.1, "still here");
    world.cluster.stop().await;
}
