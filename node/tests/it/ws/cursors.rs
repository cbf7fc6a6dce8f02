//! Cursors: their owners, their number per team, how they stay in use, and how losses are told.

use std::time::Duration;

use agentpost_node::server::ws;
use agentpost_proto::command::operation::Op;
use agentpost_proto::command::{AckCursors, Command, CursorAck, Operation, Sweep};
use agentpost_proto::id::TeamId;
use agentpost_proto::{limits, time};
use agentpost_raft_store::core::query;
use agentpost_raft_store::core::view::decode;
use agentpost_raft_store::disk::open;
use agentpost_raft_store::disk::options::Options;
use agentpost_testkit::socket::{Socket, refused};
use futures::future::join_all;
use openraft::EntryPayload;
use openraft::storage::{RaftLogReader as _, RaftLogStorage as _};
use serde_json::{Value, json};

use crate::common::office::{Office, connect, office};
use crate::common::web::{Call, Team};
use crate::common::{eventually, read_state};

const MINUTE_MS: u64 = 60_000;

impl Office {
    /// Proposes an operation of the cluster itself.
    async fn propose(&self, op: Op) {
        let services = self.cluster.services(self.cluster.leader().await);
        let operation = Operation {
            principal: None,
            op: Some(op),
        };
        services.proposer.propose(operation).await.unwrap();
    }
}

fn id(team: &Team) -> TeamId {
    team.id.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn cursors_belong_to_one_client_and_are_limited_per_team() {
    let office = office().await;
    tokio::join!(
        one_name_is_a_cursor_of_each_team_and_each_bound_agent(&office),
        the_refusal_of_another_client_name_says_what_to_do(&office),
        a_session_that_received_no_mail_leaves_no_cursor(&office),
    );
}

async fn one_name_is_a_cursor_of_each_team_and_each_bound_agent(office: &Office) {
    let (team, other) = (office.new_team("names").await, office.new_team("other names").await);
    let (a, b) = (office.bound(&team, "a").await, office.bound(&team, "b").await);
    let clients = [&team, &a, &b, &other];
    for client in clients {
        office.listen(0, client, &["*"], Some("same")).await;
    }
    for (team, to) in [(&team, "a"), (&team, "b"), (&team, "a"), (&other, "a")] {
        office.send(0, team, to, to).await;
    }
    for (client, bodies) in clients
        .into_iter()
        .zip([&["a", "b", "a"][..], &["a", "a"], &["b"], &["a"]])
    {
        let (mut socket, last_seq) = office.listen(1, client, &["*"], Some("same")).await;
        assert_eq!(last_seq, 0);
        assert_eq!(socket.bodies(bodies.len()).await, bodies);
    }
    // An acknowledgement moves the cursor of its client only.
    let (mut socket, _) = office.listen(2, &a, &["*"], Some("same")).await;
    socket.bodies(2).await;
    socket.ack(3).await;
    eventually("the ack", async || {
        (office.cursor(&team, "a", "same").await == Some((3, true))).then_some(())
    })
    .await;
    for (client, agent) in [(&team, ""), (&b, "b")] {
        assert_eq!(office.cursor(client, agent, "same").await, Some((0, false)));
    }
    assert_eq!(office.cursor(&team, "a", "").await, None, "nor the mailbox");
}

async fn the_refusal_of_another_client_name_says_what_to_do(office: &Office) {
    let team = office.new_team("many").await;
    let ack = |n: u32| CursorAck {
        team_id: id(&team).to_bytes(),
        client_id: format!("client-{n}"),
        implied: true,
        ..CursorAck::default()
    };
    // All cursors but one are created.
    let names: Vec<u32> = (1..limits::CURSORS_MAX).collect();
    for names in names.chunks(limits::ACKS_PER_ENTRY_MAX) {
        let acks = names.iter().map(|n| ack(*n)).collect();
        office.propose(Op::AckCursors(AckCursors { acks })).await;
    }
    // Of many clients that ask all nodes for the last cursor at once, one gets it.
    let tries = (0..6).map(|n| {
        let url = &office.urls[n % 3];
        let team = &team;
        async move {
            let name = format!("late-{n}");
            let mut socket = Socket::open(url).await;
            socket.say(&connect(team, &["*"], Some(&name)).frame()).await;
            let first: Value = socket.frame().await;
            match first["type"].as_str().unwrap() {
                "connected" => true,
                _ => {
                    assert_eq!(first["code"], 4002, "{first}");
                    let message = first["message"].as_str().unwrap();
                    assert!(
                        message.contains("client_id") && message.contains("60 days"),
                        "{message}"
                    );
                    assert_eq!(socket.ending().await.close, Some(4002));
                    false
                }
            }
        }
    });
    let admitted = join_all(tries).await.into_iter().filter(|admitted| *admitted).count();
    assert_eq!(admitted, 1);
    for scopes in [["*"], ["agent_to:a"]] {
        // A new name is refused before anything is proposed. Clients with an old name or without one are admitted.
        let mut socket = Socket::open(&office.urls[1]).await;
        socket.say(&connect(&team, &scopes, Some("later")).frame()).await;
        assert_eq!(socket.ending().await, refused(4002));
        office.listen(2, &team, &scopes, Some("client-7")).await;
        office.listen(2, &team, &scopes, None).await;
    }
    let other = office.new_team("few").await;
    office.listen(0, &other, &["*"], Some("late-1")).await;
}

/// A session of a management command, and one that acknowledges events that it never got from an empty inbox.
async fn a_session_that_received_no_mail_leaves_no_cursor(office: &Office) {
    let team = office.new_team("askers").await;
    for scopes in [&["*"][..], &["agent_to:nobody"]] {
        let (mut socket, _) = office.listen(0, &team, scopes, None).await;
        socket.ack(99).await;
        socket.roundtrip().await;
    }
    // A node stores its acknowledgements together and in order, so the later one proves that the earlier ones are done.
    office.send(0, &team, "somebody", "x").await;
    let (mut socket, _) = office.listen(0, &team, &["agent_to:somebody"], None).await;
    let (seq, _) = socket.event().await;
    socket.ack(seq).await;
    eventually("the ack", async || office.cursor(&team, "somebody", "").await).await;
    for agent in ["nobody", ""] {
        assert_eq!(office.cursor(&team, agent, "").await, None);
    }
}

/// The acknowledgements of a cursor in the log of a node: the seq of each, and whether it was implied.
async fn logged(office: &Office, node: usize, client_id: &str) -> Vec<(u64, bool)> {
    office.cluster.stop_node(node).await;
    let dir = office.cluster.data_dir(node);
    // A task of the stopped node may hold its log a moment longer.
    let mut stores = eventually("a log that is free", async || {
        open::shard(&dir, Options::default()).ok()
    })
    .await;
    let mut reader = stores.log.get_log_reader().await;
    let mut acks = Vec::new();
    for entry in reader.try_get_log_entries(..).await.unwrap() {
        let EntryPayload::Normal(proposal) = entry.payload else {
            continue;
        };
        let command: Command = decode(proposal.0).unwrap();
        let operation: Operation = decode(command.operation).unwrap();
        if let Some(Op::AckCursors(op)) = operation.op {
            let of_client = op.acks.into_iter().filter(|ack| ack.client_id == client_id);
            acks.extend(of_client.map(|ack| (ack.seq, ack.implied)));
        }
    }
    acks
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_open_keeps_its_cursor_in_use() {
    let office = office().await;
    let team = office.new_team("use").await;
    let options = ws::ws_state::SessionOptions {
        touch_every: Duration::from_millis(200),
        look_every: Duration::from_millis(50),
        ..ws::ws_state::SessionOptions::default()
    };
    let url = office.cluster.serve_ws(0, options).await;
    let client = connect(&team, &["agent_to:alpha"], Some("c"));
    office.send(0, &team, "alpha", "1").await;
    office.send(0, &team, "alpha", "2").await;
    let (mut socket, _) = Socket::connect(&url, client).await;
    let (seq, _) = socket.event().await;
    socket.ack(seq).await;
    let applied = async || {
        let state = read_state(&office.cluster.services(0)).await;
        query::applied(&*state).unwrap().last.unwrap().index
    };
    let before = applied().await;
    eventually("entries of a cluster in which only a session is open", async || {
        (applied().await > before + 10).then_some(())
    })
    .await;
    assert_eq!(
        office.cursor(&team, "", "c").await,
        Some((seq, true)),
        "it moves nothing"
    );
    let acks = logged(&office, 0, "c").await;
    assert_eq!(acks[0], (0, true), "where it began");
    let uses = acks.iter().filter(|ack| **ack == (seq, true)).count();
    assert!(uses >= 2, "{acks:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn losses_are_reported_once_and_the_remaining_mail_arrives() {
    let office = office().await;
    tokio::join!(
        a_slow_reader_is_told_what_expired_before_it(&office),
        a_returning_client_is_told_of_losses_until_it_acks_later_mail(&office),
        a_client_that_was_dropped_for_silence_loses_nothing(&office),
    );
}

/// Sends mail that expires, lets the clocks of all nodes pass that time, and has the mail removed.
async fn lose(office: &Office, team: &Team, to: &str) {
    let expires_at_ms = office.cluster.services(0).clock.wall_ms() + MINUTE_MS;
    let mail = json!({ "toAgentId": to, "type": "note", "body": "lost", "expiresAt": time::rfc3339(expires_at_ms) });
    let call = Call::post("/v1/messages", &mail).key(&team.key).agent("sender");
    let sent = call.to(&office.urls[1]).await.ok();
    let message = sent["messageId"].as_str().unwrap().parse().unwrap();
    for node in 0..3 {
        office.cluster.services(node).clock.shift(2 * MINUTE_MS as i64);
    }
    eventually("the removal of what expired", async || {
        office.propose(Op::Sweep(Sweep::default())).await;
        let state = read_state(&office.cluster.services(0)).await;
        query::inbox::message(&*state, id(team), message)
            .unwrap()
            .is_none()
            .then_some(())
    })
    .await;
}

/// The reader stays connected, but its buffers are full.
async fn a_slow_reader_is_told_what_expired_before_it(office: &Office) {
    let team = office.new_team("slow").await;
    let large = "x".repeat(200 * 1024);
    for _ in 0..40 {
        office.send(0, &team, "alpha", &large).await;
    }
    let mut socket = Socket::open_narrow(&office.urls[0]).await;
    socket.greet(connect(&team, &["agent_to:alpha"], None)).await;
    lose(office, &team, "alpha").await;
    office.send(0, &team, "alpha", "left").await;
    // It is told as soon as it reads on.
    let (mut seqs, mut told) = (Vec::new(), 0);
    while seqs.last() != Some(&42) {
        let frame = socket.frame().await;
        if frame["type"] == "event" {
            seqs.push(frame["seq"].as_u64().unwrap());
        } else {
            assert_eq!(frame["type"], "cursor_expired", "{frame}");
            let next = seqs.last().unwrap_or(&0) + 1;
            assert_eq!(frame["oldest_available_seq"], if next == 41 { 42 } else { next });
            told += 1;
        }
    }
    assert_eq!(seqs, (1..=40).chain([42]).collect::<Vec<_>>());
    assert_eq!(told, 1);
    socket.silent().await;
}

async fn a_returning_client_is_told_of_losses_until_it_acks_later_mail(office: &Office) {
    let team = office.new_team("told").await;
    for (scopes, client_id) in [(["agent_to:a"], None), (["agent_to:a"], Some("c")), (["*"], Some("w"))] {
        let (socket, start) = office.listen(0, &team, &scopes, client_id).await;
        socket.cut();
        lose(office, &team, "a").await;
        lose(office, &team, "a").await;
        for node in 0..2 {
            let (mut socket, last_seq) = office.listen(node, &team, &scopes, client_id).await;
            assert_eq!(last_seq, start);
            let expired = socket.frame().await;
            assert_eq!(expired["type"], "cursor_expired", "{expired}");
            assert_eq!(expired["oldest_available_seq"], start + 3, "nothing is left");
            socket.silent().await;
        }
        office.send(0, &team, "a", "next").await;
        let (mut socket, _) = office.listen(2, &team, &scopes, client_id).await;
        assert_eq!(socket.frame().await["type"], "cursor_expired");
        assert_eq!(socket.event().await, (start + 3, "next".to_owned()));
        socket.ack(start + 3).await;
        let agent = if client_id.is_none() { "a" } else { "" };
        eventually("the ack", async || {
            let cursor = office.cursor(&team, agent, client_id.unwrap_or_default()).await;
            (cursor == Some((start + 3, true))).then_some(())
        })
        .await;
        let (mut socket, _) = office.listen(0, &team, &scopes, client_id).await;
        socket.silent().await;
    }
}

async fn a_client_that_was_dropped_for_silence_loses_nothing(office: &Office) {
    let team = office.new_team("silence").await;
    let options = ws::ws_state::SessionOptions {
        ping_every: Duration::from_millis(100),
        implied_after: Duration::from_millis(100),
        look_every: Duration::from_millis(50),
        silent_max: Duration::from_millis(1_000),
        ..ws::ws_state::SessionOptions::default()
    };
    let url = office.cluster.serve_ws(2, options).await;
    for body in ["1", "2", "3"] {
        office.send(0, &team, "alpha", body).await;
    }
    let (mut socket, _) = Socket::connect(&url, connect(&team, &["agent_to:alpha"], None)).await;
    // It runs its handler with the first event until it is given up.
    socket.arrived("4004").await;
    assert_eq!(socket.ending().await, refused(4004));
    let (mut next, last_seq) = office.listen(1, &team, &["agent_to:alpha"], None).await;
    assert_eq!(last_seq, 0);
    assert_eq!(next.bodies(3).await, ["1", "2", "3"]);
}
