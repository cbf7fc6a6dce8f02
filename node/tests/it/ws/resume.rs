//! Where sessions begin and what their acknowledgements change, on three nodes.

use std::time::Duration;

use agentpost_node::server::ws;
use agentpost_proto::command::operation::Op;
use agentpost_proto::command::{BodyKind, Operation, Principal, Send, Sweep, reply};
use agentpost_raft_store::core::query;
use agentpost_testkit::socket::{Ending, Socket, refused};
use serde_json::{Value, json};

use crate::common::office::{Office, connect, office};
use crate::common::web::Team;
use crate::common::{eventually, read_state};

impl Office {
    /// Sends messages through the nodes in turn.
    async fn send_all(&self, team: &Team, to: &str, bodies: impl IntoIterator<Item = &str>) {
        for (at, body) in bodies.into_iter().enumerate() {
            self.send(at % self.urls.len(), team, to, body).await;
        }
    }

    /// Waits until an acknowledgement, not an answered ping, has moved a cursor to `seq`.
    async fn acked(&self, team: &Team, agent: &str, client_id: &str, seq: u64) {
        let (id, services) = (
            team.id.parse().unwrap(),
            self.cluster.services(self.cluster.running()[0]),
        );
        eventually("the ack in the state", async || {
            let state = services.fresh_state().await?;
            let cursor = query::inbox::cursor(&*state, id, agent, client_id).unwrap()?;
            (cursor.acked && cursor.seq == seq).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_resume_where_their_acks_ended() {
    let office = office().await;
    tokio::join!(
        a_mailbox_continues_on_another_node(&office),
        a_reconnect_waits_for_acks_that_its_node_has_not_stored(&office),
        two_sessions_on_one_mailbox_both_get_everything(&office),
        a_wide_session_without_a_name_is_live_only(&office),
        a_named_client_has_its_own_cursor(&office),
        a_named_client_that_never_acked_begins_where_it_first_connected(&office),
        acks_are_clamped_to_what_was_delivered(&office),
        a_bound_key_narrows(&office),
        a_restless_reader_loses_nothing(&office),
    );
}

async fn a_mailbox_continues_on_another_node(office: &Office) {
    let team = office.new_team("resume").await;
    office.send_all(&team, "alpha", ["1", "2", "3", "4", "5"]).await;
    office.send_all(&team, "beta", ["not for alpha"]).await;
    let (mut first, last_seq) = office.listen(0, &team, &["agent_to:alpha"], None).await;
    assert_eq!(last_seq, 0, "the first connect begins at the oldest mail");
    let mut seqs = Vec::new();
    for body in ["1", "2", "3"] {
        let (seq, got) = first.event().await;
        assert_eq!(got, body);
        seqs.push(seq);
    }
    first.ack(seqs[1]).await;
    office.acked(&team, "alpha", "", seqs[1]).await;
    first.cut();
    let (mut next, last_seq) = office.listen(1, &team, &["agent_to:alpha"], None).await;
    assert_eq!(last_seq, seqs[1]);
    assert_eq!(next.bodies(3).await, ["3", "4", "5"], "exactly the rest, in order");
    next.silent().await;
    office.send_all(&team, "alpha", ["live"]).await;
    assert_eq!(next.event().await.1, "live");
    next.cut(); // nothing acked: the next node repeats it
    let (mut next, _) = office.listen(2, &team, &["agent_to:alpha"], None).await;
    assert_eq!(next.bodies(3).await, ["3", "4", "5"]);
    let (seq, body) = next.event().await;
    assert_eq!(body, "live");
    next.ack(seq).await;
    office.acked(&team, "alpha", "", seq).await;
    let (mut last, _) = office.listen(0, &team, &["agent_to:alpha"], None).await;
    last.silent().await;
}

/// The node stores acknowledgements late, so a reconnect on it must wait for them.
async fn a_reconnect_waits_for_acks_that_its_node_has_not_stored(office: &Office) {
    let options = ws::ws_state::SessionOptions {
        ack_every: Duration::from_secs(2),
        ..ws::ws_state::SessionOptions::default()
    };
    let url = office.cluster.serve_ws(1, options).await;
    let team = office.new_team("flush").await;
    let mailbox = connect(&team, &["agent_to:alpha"], None);
    office.send_all(&team, "alpha", ["1", "2", "3"]).await;
    let (mut socket, _) = Socket::connect(&url, mailbox.clone()).await;
    assert_eq!(socket.bodies(3).await, ["1", "2", "3"]);
    for seq in 1..=2 {
        socket.ack(seq).await;
        socket.roundtrip().await;
    }
    // The first acknowledgement is stored now or soon, the second waits.
    let (mut next, last_seq) = Socket::connect(&url, mailbox).await;
    assert_eq!(last_seq, 2);
    assert_eq!(next.event().await.1, "3");
    next.ack(3).await;
    next.roundtrip().await;
    // A new cursor is stored before its session is greeted.
    let named = connect(&team, &["*"], Some("new"));
    Socket::connect(&url, named).await;
    let state = read_state(&office.cluster.services(0)).await;
    let cursor = query::inbox::cursor(&*state, team.id.parse().unwrap(), "", "new").unwrap();
    assert_eq!(cursor.map(|cursor| (cursor.seq, cursor.acked)), Some((3, false)));
}

async fn two_sessions_on_one_mailbox_both_get_everything(office: &Office) {
    let team = office.new_team("two").await;
    let (mut one, _) = office.listen(0, &team, &["agent_to:alpha"], None).await;
    let (mut two, _) = office.listen(1, &team, &["agent_to:alpha"], None).await;
    office.send_all(&team, "alpha", ["1", "2", "3"]).await;
    assert_eq!(one.bodies(3).await, ["1", "2", "3"]);
    let mut last = 0;
    for body in ["1", "2", "3"] {
        let (seq, got) = two.event().await;
        assert_eq!(got, body);
        last = seq;
    }
    one.ack(last - 1).await;
    office.acked(&team, "alpha", "", last - 1).await;
    two.ack(last).await;
    office.acked(&team, "alpha", "", last).await;
    one.ack(last - 2).await;
    one.roundtrip().await;
    let (mut third, last_seq) = office.listen(2, &team, &["agent_to:alpha"], None).await;
    assert_eq!(last_seq, last, "the furthest ack counts and never goes back");
    third.silent().await;
}

async fn a_wide_session_without_a_name_is_live_only(office: &Office) {
    let team = office.new_team("wide").await;
    office.send_all(&team, "alpha", ["old"]).await;
    let (mut socket, last_seq) = office.listen(0, &team, &["*"], None).await;
    assert_eq!(last_seq, 1);
    socket.silent().await;
    office.send_all(&team, "alpha", ["new"]).await;
    office.send_all(&team, "beta", ["newer"]).await;
    let (_, body) = socket.event().await;
    assert_eq!(body, "new");
    let (seq, body) = socket.event().await;
    assert_eq!(body, "newer");
    socket.ack(seq).await;
    socket.roundtrip().await;
    socket.cut();
    let (mut again, last_seq) = office.listen(1, &team, &["*"], None).await;
    assert_eq!(last_seq, seq);
    again.silent().await;
    let (mut mailbox, last_seq) = office.listen(1, &team, &["agent_to:alpha"], None).await;
    assert_eq!(last_seq, 0, "the live session moved nobody's cursor");
    assert_eq!(mailbox.bodies(2).await, ["old", "new"]);
}

async fn a_named_client_has_its_own_cursor(office: &Office) {
    let team = office.new_team("named").await;
    office.send_all(&team, "alpha", ["1", "2"]).await;
    let (mut mailbox, _) = office.listen(0, &team, &["agent_to:alpha"], None).await;
    let (seq, _) = mailbox.event().await;
    mailbox.ack(seq).await;
    office.acked(&team, "alpha", "", seq).await;
    // A new client begins at the mailbox's cursor with one inbox, and at the present with wide scopes.
    let (mut laptop, last_seq) = office.listen(1, &team, &["agent_to:alpha"], Some("laptop")).await;
    assert_eq!(last_seq, seq);
    let (second, body) = laptop.event().await;
    assert_eq!(body, "2");
    let (mut stream, last_seq) = office.listen(2, &team, &["source:sender"], Some("stream")).await;
    assert_eq!(last_seq, second);
    office.send_all(&team, "beta", ["3"]).await;
    let (third, body) = stream.event().await;
    assert_eq!(body, "3");
    stream.ack(third).await;
    laptop.ack(second).await;
    office.acked(&team, "", "stream", third).await;
    office.acked(&team, "", "laptop", second).await;
    office.send_all(&team, "alpha", ["4"]).await;
    stream.cut();
    laptop.cut();
    let (mut stream, last_seq) = office.listen(0, &team, &["source:sender"], Some("stream")).await;
    assert_eq!(last_seq, third);
    assert_eq!(stream.event().await.1, "4");
    let (mut laptop, last_seq) = office.listen(0, &team, &["agent_to:alpha"], Some("laptop")).await;
    assert_eq!(last_seq, second);
    assert_eq!(laptop.event().await.1, "4");
    let (_, last_seq) = office.listen(2, &team, &["agent_to:alpha"], None).await;
    assert_eq!(last_seq, seq, "and the mailbox cursor stayed");
}

async fn a_named_client_that_never_acked_begins_where_it_first_connected(office: &Office) {
    let team = office.new_team("cutoff").await;
    for scopes in [&["*"][..], &["agent_to:alpha"]] {
        let name = scopes[0];
        let (socket, first) = office.listen(0, &team, scopes, Some(name)).await;
        socket.cut();
        office.send_all(&team, "alpha", ["while away"]).await;
        let (mut socket, again) = office.listen(1, &team, scopes, Some(name)).await;
        assert_eq!(first, again);
        assert_eq!(socket.event().await.1, "while away");
    }
}

async fn acks_are_clamped_to_what_was_delivered(office: &Office) {
    let team = office.new_team("clamp").await;
    let (mut socket, _) = office.listen(0, &team, &["agent_to:alpha"], None).await;
    socket.ack(1_000_000).await; // before anything was delivered
    socket.ack(u64::MAX).await;
    socket.say(&json!({"type": "ack", "seq": -1})).await;
    socket.say(&json!({"type": "ack"})).await;
    office.send_all(&team, "alpha", ["1", "2"]).await;
    office.send_all(&team, "beta", ["x", "y", "z"]).await;
    assert_eq!(socket.event().await.1, "1");
    let (seq, _) = socket.event().await;
    socket.ack(seq + 3).await;
    office.acked(&team, "alpha", "", seq).await;
    office.send_all(&team, "alpha", ["3"]).await;
    let (mut next, last_seq) = office.listen(1, &team, &["agent_to:alpha"], None).await;
    assert_eq!(last_seq, seq);
    assert_eq!(next.event().await.1, "3");
}

async fn a_bound_key_narrows(office: &Office) {
    let team = office.new_team("bound").await;
    let bound = office.bound(&team, "alpha").await;
    office.send_all(&team, "alpha", ["old"]).await;
    let (mut live, last_seq) = office.listen(0, &bound, &["*"], None).await;
    assert_eq!(last_seq, 1, "* stays live only, although it narrows to one mailbox");
    live.silent().await;
    let (mut mailbox, last_seq) = office.listen(1, &bound, &["agent_to:alpha"], None).await;
    assert_eq!(last_seq, 0);
    assert_eq!(mailbox.event().await.1, "old");
    office.send_all(&team, "beta", ["not for alpha"]).await;
    office.send_all(&team, "alpha", ["new"]).await;
    for socket in [&mut live, &mut mailbox] {
        let (seq, body) = socket.event().await;
        assert_eq!(body, "new");
        socket.ack(seq).await;
    }
    for scopes in [
        &["agent_to:beta"][..],
        &["type:push"],
        &["agent_to:beta", "source:sender"],
    ] {
        let mut socket = Socket::open(&office.urls[2]).await;
        socket.say(&connect(&bound, scopes, None).frame()).await;
        assert_eq!(socket.ending().await, refused(4001), "{scopes:?}");
    }
    // A client name of a bound key belongs to its agent.
    let (_, _) = office.listen(0, &bound, &["*"], Some("stream")).await;
    office.send_all(&team, "beta", ["still not for alpha"]).await;
    office.send_all(&team, "alpha", ["newer"]).await;
    let (mut named, _) = office.listen(1, &bound, &["*"], Some("stream")).await;
    assert_eq!(named.event().await.1, "newer");
}

/// A reader that breaks its connection every few events, reconnects to another node, and acknowledges now and then.
async fn a_restless_reader_loses_nothing(office: &Office) {
    let team = office.new_team("restless").await;
    const COUNT: usize = 120;
    let sending = async {
        for at in 0..COUNT {
            office.send_all(&team, "alpha", [format!("{at}").as_str()]).await;
            office.send_all(&team, "beta", ["noise"]).await;
        }
    };
    let reading = async {
        let (mut next, mut acked, mut node) = (0, 0, 0);
        while next < COUNT {
            let (mut socket, _) = office.listen(node % 3, &team, &["agent_to:alpha"], None).await;
            node += 1;
            let mut at: usize = acked;
            for turn in 0..11 {
                let (seq, body) = socket.event().await;
                assert_eq!(body, format!("{at}"), "from the last ack on, one after the other");
                at += 1;
                next = next.max(at);
                if turn % 4 == 0 {
                    socket.ack(seq).await;
                    office.acked(&team, "alpha", "", seq).await;
                    acked = at;
                }
                if next == COUNT {
                    break;
                }
            }
            socket.cut();
        }
    };
    tokio::join!(sending, reading);
}

/// Options with short times instead of minutes.
fn hasty() -> ws::ws_state::SessionOptions {
    ws::ws_state::SessionOptions {
        ping_every: Duration::from_millis(200),
        implied_after: Duration::from_millis(1_500),
        look_every: Duration::from_millis(100),
        stalled_max: Duration::from_secs(2),
        ..ws::ws_state::SessionOptions::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_never_ack_and_clients_that_never_read() {
    let office = office().await;
    let mut urls = Vec::new();
    for node in 0..3 {
        urls.push(office.cluster.serve_ws(node, hasty()).await);
    }
    tokio::join!(
        answered_pings_stand_in_for_acks(&office, &urls),
        a_stalled_reader_resumes_without_loss(&office, &urls)
    );
    retention_is_told_once(&office).await;
}

async fn answered_pings_stand_in_for_acks(office: &Office, urls: &[String]) {
    let team = office.new_team("old-client").await;
    let old = connect(&team, &["agent_to:alpha"], None);
    office.send_all(&team, "alpha", ["1", "2"]).await;
    let (mut socket, _) = Socket::connect(&urls[0], old.clone()).await;
    assert_eq!(socket.bodies(2).await, ["1", "2"]);
    socket.cut();
    let (mut socket, last_seq) = Socket::connect(&urls[1], old.clone()).await;
    assert_eq!(last_seq, 0, "read, but not for long enough");
    assert_eq!(socket.bodies(2).await, ["1", "2"]);
    moved_by_pings(office, (&team, "alpha"), 2, &mut [&mut socket]).await;
    let (mut socket, last_seq) = Socket::connect(&urls[2], old.clone()).await;
    assert_eq!(last_seq, 2, "pings were answered");
    // After the first acknowledgement only acknowledgements move the cursor.
    office.send_all(&team, "alpha", ["3", "4"]).await;
    let (seq, _) = socket.event().await;
    socket.event().await;
    socket.ack(seq).await;
    // Pings move the cursor of a session that began later on the same node, so they have had the time to move this one.
    office.send_all(&team, "beta", ["5"]).await;
    let (mut later, _) = Socket::connect(&urls[2], connect(&team, &["agent_to:beta"], None)).await;
    let (last, _) = later.event().await;
    moved_by_pings(office, (&team, "beta"), last, &mut [&mut socket, &mut later]).await;
    let (mut socket, last_seq) = Socket::connect(&urls[0], old).await;
    assert_eq!(last_seq, seq);
    assert_eq!(socket.event().await.1, "4");
}

/// Reads sockets, which answers pings and must bring nothing else, until pings have moved an agent's cursor to `seq`.
async fn moved_by_pings(office: &Office, (team, agent): (&Team, &str), seq: u64, sockets: &mut [&mut Socket]) {
    eventually("a cursor that pings move", async || {
        for socket in &mut *sockets {
            assert_eq!(socket.frame_within(Duration::from_millis(50)).await, None);
        }
        (office.cursor(team, agent, "").await == Some((seq, false))).then_some(())
    })
    .await;
}

async fn a_stalled_reader_resumes_without_loss(office: &Office, urls: &[String]) {
    let team = office.new_team("stalled").await;
    let large = "x".repeat(200 * 1024);
    let count = 60;
    for at in 0..count {
        let body = format!("{at} {large}");
        office.send_all(&team, "alpha", [body.as_str()]).await;
    }
    let mut socket = Socket::open_narrow(&urls[0]).await;
    socket.greet(connect(&team, &["agent_to:alpha"], None)).await;
    // More than all buffers on the way, and nobody reads. The node gives up after 2 s and then waits 8 s for the reader: this
    // is far from both, and nothing shows from outside when the first has passed.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let mut seen = 0;
    let ending = loop {
        let Some(frame) = socket.frame_or_ending().await else {
            break socket.ended();
        };
        if frame["type"] == "event" {
            assert!(body_of(&frame).starts_with(&format!("{seen} ")));
            seen += 1;
            if seen == 3 {
                socket.ack(frame["seq"].as_u64().unwrap()).await;
            }
        }
    };
    assert_eq!(ending, refused(4004));
    assert!(seen < count, "{seen}");
    office.acked(&team, "alpha", "", 3).await;
    let (mut next, _) = Socket::connect(&urls[1], connect(&team, &["agent_to:alpha"], None)).await;
    for at in 3..count {
        assert!(next.event().await.1.starts_with(&format!("{at} ")));
    }
    next.silent().await;
}

fn body_of(frame: &Value) -> &str {
    frame["event"]["data"]["body"].as_str().unwrap()
}

/// Messages are removed by an expiry that the sender set, instead of after thirty days.
async fn retention_is_told_once(office: &Office) {
    let team = office.new_team("retention").await;
    let wanted = json!({"name": "w", "permissions": ["write"]});
    let (key_id, _) = office.key(&team, wanted).await;
    let leader = office.cluster.services(office.cluster.leader().await);
    let mail = |body: &'static str, expires_at_ms: u64| Operation {
        principal: Some(Principal {
            team_id: team.id.parse::<agentpost_proto::id::TeamId>().unwrap().to_bytes(),
            key_id: key_id.parse::<agentpost_proto::id::KeyId>().unwrap().to_bytes(),
        }),
        op: Some(Op::Send(Send {
            message_id: leader.ids.message_id().to_bytes(),
            from: "sender".to_owned(),
            to: "alpha".to_owned(),
            r#type: "note".to_owned(),
            body_kind: BodyKind::Text as i32,
            body: body.into(),
            expires_at_ms,
            ..Default::default()
        })),
    };
    let soon = leader.clock.wall_ms() + 60_000;
    for operation in [mail("1", soon), mail("2", soon), mail("3", 0)] {
        let reply = leader.proposer.propose(operation).await.unwrap();
        assert!(matches!(reply.reply, Some(reply::Reply::Send(_))), "{reply:?}");
    }
    for node in 0..3 {
        office.cluster.services(node).clock.shift(120_000);
    }
    eventually("the removal of what expired", async || {
        let sweep = Operation {
            principal: None,
            op: Some(Op::Sweep(Sweep::default())),
        };
        leader.proposer.propose(sweep).await.unwrap();
        let state = read_state(&leader).await;
        let is_left = |seq| {
            query::inbox::message_at(&*state, team.id.parse().unwrap(), seq)
                .unwrap()
                .is_some()
        };
        (![1, 2].into_iter().any(is_left)).then_some(())
    })
    .await;
    let (mut socket, last_seq) = office.listen(0, &team, &["agent_to:alpha"], None).await;
    assert_eq!(last_seq, 0);
    let expired = socket.frame().await;
    assert_eq!(expired["type"], "cursor_expired", "{expired}");
    assert_eq!(expired["oldest_available_seq"], 3);
    let (seq, body) = socket.event().await;
    assert_eq!((seq, body.as_str()), (3, "3"));
    socket.silent().await;
    socket.ack(seq).await;
    office.acked(&team, "alpha", "", seq).await;
    let (mut socket, _) = office.listen(1, &team, &["agent_to:alpha"], None).await;
    socket.silent().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_outlive_the_node_that_they_were_on() {
    let office = office().await;
    let team = office.new_team("failover").await;
    let leader = office.cluster.leader().await;
    let (mut socket, _) = office.listen(leader, &team, &["agent_to:alpha"], None).await;
    office.send_all(&team, "alpha", ["1", "2", "3"]).await;
    let (seq, _) = socket.event().await;
    socket.ack(seq).await;
    office.acked(&team, "alpha", "", seq).await;
    let (ending, ()) = tokio::join!(socket.ending(), office.cluster.stop_node(leader));
    assert_eq!(
        ending,
        Ending {
            error: None,
            close: Some(1012)
        }
    );
    let other = office.cluster.running()[0];
    let (mut next, last_seq) = office.listen(other, &team, &["agent_to:alpha"], None).await;
    assert_eq!(last_seq, seq);
    assert_eq!(next.bodies(2).await, ["2", "3"]);
    // A crash loses nothing either, and the restarted node has the cursor.
    office.cluster.restart(leader).await;
    office.cluster.kill(other).await;
    let (mut next, last_seq) = office.listen(leader, &team, &["agent_to:alpha"], None).await;
    assert_eq!(last_seq, seq);
    assert_eq!(next.bodies(2).await, ["2", "3"]);
}
