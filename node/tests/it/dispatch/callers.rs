//! Webhook calls that the leader hands to the other nodes.
//!
//! The leader makes the first calls itself, so these tests have many calls under way at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use agentpost_node::net::dial::Purpose;
use agentpost_proto::peer::{CallerReport, DelegatedCall, Reachability};
use agentpost_proto::record::{AttemptEnd, Claimed, Delivery, DeliveryState, Message};
use agentpost_testkit::receiver::{Answer, Receiver};
use futures::future::join_all;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::common::eventually;
use crate::common::webhooks::WebhookOffice;

/// Agents with a webhook each.
const AGENTS: usize = 20;
/// Messages: two to each agent, which all webhooks may have at a time.
const MESSAGES: usize = 2 * AGENTS;

/// Three nodes, each of which can call for the leader, and the agents' webhooks.
async fn office(receiver: &Receiver) -> WebhookOffice {
    let office = WebhookOffice::start(3).await;
    for agent in 0..AGENTS {
        office
            .register(&format!("agent-{agent}"), &receiver.url(&format!("/{agent}")))
            .await;
    }
    all_call(&office, 3).await;
    office
}

/// Waits until the leader has streams to all others.
async fn all_call(office: &WebhookOffice, nodes: usize) {
    eventually("nodes that call for the leader", async || {
        let leader = office.cluster.leader().await;
        let text = office.cluster.services(leader).metrics_text();
        text.lines()
            .any(|line| line == format!("agentpost_dispatch_callers {nodes}"))
            .then_some(())
    })
    .await;
}

async fn send(office: &WebhookOffice, messages: usize) {
    let sends = (0..messages).map(|n| async move { office.send(&format!("agent-{}", n % AGENTS), "x").await });
    join_all(sends).await;
}

/// The first call of each delivery gets no answer, the second one 200.
fn hang_at_first(receiver: &Receiver) {
    for agent in 0..AGENTS {
        receiver.script_per_delivery(&format!("/{agent}"), [Answer::never(), Answer::status(200)]);
    }
}

/// The node that each open delivery's call was given to.
async fn claimed_by(office: &WebhookOffice) -> BTreeMap<u64, u64> {
    let deliveries = office.deliveries().await;
    let claims = deliveries.iter().filter_map(|d| Some((d.number, d.claim?.node)));
    claims.collect()
}

fn ends(delivery: &Delivery) -> Vec<AttemptEnd> {
    delivery.attempts.iter().map(|attempt| attempt.end()).collect()
}

/// More calls are under way than one node makes for a team, and all nodes make some.
#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_call_at_a_time() {
    let receiver = Receiver::start().await.unwrap();
    receiver.set_default(Answer::never());
    let office = office(&receiver).await;
    send(&office, 8 * AGENTS).await;
    receiver.wait_for(8 * AGENTS, Duration::from_secs(60)).await.unwrap();
    let nodes: BTreeSet<u64> = claimed_by(&office).await.into_values().collect();
    assert_eq!(nodes, BTreeSet::from([1, 2, 3]));
    assert_eq!(receiver.count(), 8 * AGENTS, "each was made once");
    for node in office.cluster.running() {
        office.cluster.kill(node).await;
    }
}

/// The calls of the dead node have an unknown outcome and are repeated; all others end as usual.
#[tokio::test(flavor = "multi_thread")]
async fn the_calls_of_a_node_that_died_are_repeated_under_the_next_number() {
    let receiver = Receiver::start().await.unwrap();
    hang_at_first(&receiver);
    let office = office(&receiver).await;
    send(&office, MESSAGES).await;
    receiver.wait_for(MESSAGES, Duration::from_secs(60)).await.unwrap();
    let claims = claimed_by(&office).await;
    let dead = office.cluster.follower().await;
    office.cluster.kill(dead).await;
    check_ends(&office, &receiver, &claims, dead as u64 + 1).await;
}

/// The leader dies. The calls that it had delegated go on, and their nodes record them under the next leader.
#[tokio::test(flavor = "multi_thread")]
async fn calls_that_a_dead_leader_had_delegated_are_recorded() {
    let receiver = Receiver::start().await.unwrap();
    hang_at_first(&receiver);
    let office = office(&receiver).await;
    send(&office, MESSAGES).await;
    receiver.wait_for(MESSAGES, Duration::from_secs(60)).await.unwrap();
    let claims = claimed_by(&office).await;
    let dead = office.cluster.leader().await;
    office.cluster.kill(dead).await;
    check_ends(&office, &receiver, &claims, dead as u64 + 1).await;
}

/// The first attempt of every delivery failed, except those of the node that died, which are unknown; the second one
/// succeeded.
async fn check_ends(office: &WebhookOffice, receiver: &Receiver, claims: &BTreeMap<u64, u64>, dead: u64) {
    let deliveries = office.settled(MESSAGES).await;
    let mut lost = 0;
    for delivery in &deliveries {
        let node = claims[&delivery.number];
        lost += usize::from(node == dead);
        let first = match node == dead {
            true => AttemptEnd::Unknown,
            false => AttemptEnd::Failed,
        };
        assert_eq!(ends(delivery), [first, AttemptEnd::Delivered], "{delivery:?}");
        assert_eq!(delivery.attempts[0].node, node);
    }
    assert!(lost > 0 && lost < MESSAGES, "{lost} calls were lost");
    assert_eq!(receiver.count(), 2 * MESSAGES);
    office.indexes_are_empty().await;
}

/// A node that stops finishes its calls, and takes no more.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_finishes_the_calls_that_it_was_given() {
    let receiver = Receiver::start().await.unwrap();
    receiver.set_default(Answer::status(200).after(Duration::from_secs(1)));
    let office = office(&receiver).await;
    let stopping = office.cluster.follower().await;
    send(&office, MESSAGES).await;
    tokio::join!(office.cluster.stop_node(stopping), send(&office, MESSAGES));
    let deliveries = office.settled(2 * MESSAGES).await;
    assert!(deliveries.iter().all(|d| d.state() == DeliveryState::Delivered));
    assert_eq!(deliveries.iter().map(|d| d.closed_unknown).sum::<u32>(), 0);
    assert_eq!(receiver.count(), 2 * MESSAGES);
    all_call(&office, 2).await;
}

/// A hand-over waits for the calls of other nodes as well, so none is repeated.
#[tokio::test(flavor = "multi_thread")]
async fn a_hand_over_waits_for_the_calls_of_other_nodes() {
    let receiver = Receiver::start().await.unwrap();
    receiver.set_default(Answer::status(200).after(Duration::from_millis(300)));
    let office = office(&receiver).await;
    for round in 1..=3 {
        send(&office, MESSAGES).await;
        receiver
            .wait_for(round * MESSAGES - MESSAGES / 2, Duration::from_secs(60))
            .await
            .unwrap();
        let to = office.cluster.follower().await;
        let leader = office.cluster.leader().await;
        let asked = office.cluster.services(leader).cluster.transfer(to as u64 + 1).await;
        asked.unwrap();
    }
    let deliveries = office.settled(3 * MESSAGES).await;
    assert!(deliveries.iter().all(|d| d.state() == DeliveryState::Delivered));
    assert_eq!(deliveries.iter().map(|d| d.closed_unknown).sum::<u32>(), 0);
    let nodes: BTreeSet<u64> = deliveries.iter().flat_map(|d| &d.attempts).map(|a| a.node).collect();
    assert_eq!(nodes, BTreeSet::from([1, 2, 3]));
    assert_eq!(receiver.count(), 3 * MESSAGES);
    office.cluster.caught_up().await;
}

/// A stream to a node, on which this test delegates calls as a leader would.
struct Stream {
    calls: mpsc::Sender<DelegatedCall>,
    reports: tonic::Streaming<CallerReport>,
}

impl Stream {
    async fn open(office: &WebhookOffice, from: usize, to: usize) -> Self {
        let address = office.cluster.peer_addr(to).to_string();
        let dialer = office.cluster.services(from).cluster.dialer;
        let mut client = dialer.client(to as u64 + 1, &address, Purpose::Forward);
        let (calls, delegated) = mpsc::channel(8);
        let reports = client.calls(ReceiverStream::new(delegated)).await.unwrap().into_inner();
        Stream { calls, reports }
    }

    /// Waits for the report of `count` recorded calls: the number of each delivery, and whether its call was made.
    async fn recorded(&mut self, count: usize) -> BTreeMap<u64, Reachability> {
        let mut recorded = BTreeMap::new();
        while recorded.len() < count {
            let report = self.reports.message().await.unwrap().expect("the stream goes on");
            for call in report.recorded {
                recorded.insert(call.attempt.clone().unwrap().number, call.reachability());
            }
        }
        recorded
    }
}

/// However late a call arrives, it begins before the time that the leader named, or not at all; it begins once, and only
/// on the node that its claim names.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_begins_a_call_only_in_time_and_once() {
    let office = WebhookOffice::start(3).await;
    let receiver = Receiver::start().await.unwrap();
    receiver.set_default(Answer::status(200).after(Duration::from_millis(500)));
    let (leader, node) = (office.cluster.leader().await, office.cluster.follower().await);
    let mut stream = Stream::open(&office, leader, node).await;
    let call = |number: u64, claimed_by: u64, begin_before_ms: u64| DelegatedCall {
        shard: 0,
        team_id: office.team.id.to_bytes(),
        delivery: Some(Delivery {
            id: vec![number as u8; 16].into(),
            number,
            agent: "b".to_owned(),
            url: receiver.url(&format!("/{number}")),
            attempt_no: 1,
            claim: Some(Claimed {
                epoch: 1,
                node: claimed_by,
                ..Claimed::default()
            }),
            ..Delivery::default()
        }),
        message: Some(Message {
            id: vec![7; 16].into(),
            from: "a".to_owned(),
            to: "b".to_owned(),
            ..Message::default()
        }),
        begin_before_ms,
        ..DelegatedCall::default()
    };
    let clock_ms = stream.reports.message().await.unwrap().unwrap().clock_ms;
    let (here, soon_ms) = (node as u64 + 1, clock_ms + 60_000);
    for delegated in [
        call(1, here, clock_ms),
        call(2, here, soon_ms),
        // The same again, and one for another node.
        call(2, here, soon_ms),
        call(3, here + 1, soon_ms),
        call(4, here, soon_ms),
    ] {
        stream.calls.send(delegated).await.unwrap();
    }
    let recorded = stream.recorded(3).await;
    let expected = [
        (1, Reachability::Unspecified),
        (2, Reachability::Reached),
        (4, Reachability::Reached),
    ];
    assert_eq!(recorded, BTreeMap::from(expected));
    // The leader ends the stream; the node has nothing left to say.
    drop(stream.calls);
    while stream.reports.message().await.unwrap().is_some() {}
    let calls: BTreeSet<String> = receiver.calls().iter().map(|call| call.path.clone()).collect();
    assert_eq!(calls, BTreeSet::from(["/2".to_owned(), "/4".to_owned()]));
    assert_eq!(receiver.count(), 2);
}

/// Without other nodes the limits are those of one node.
#[tokio::test(flavor = "multi_thread")]
async fn one_node_alone_makes_all_calls() {
    let receiver = Receiver::start().await.unwrap();
    receiver.set_default(Answer::never());
    let office = WebhookOffice::start(1).await;
    for agent in 0..AGENTS {
        office
            .register(&format!("agent-{agent}"), &receiver.url(&format!("/{agent}")))
            .await;
    }
    send(&office, 8 * AGENTS).await;
    receiver.wait_for(64, Duration::from_secs(60)).await.unwrap();
    let claims = claimed_by(&office).await;
    assert_eq!(claims.len(), 64, "as many as one node makes for a team");
    assert!(claims.into_values().all(|node| node == 1));
    office.cluster.kill(0).await;
}
