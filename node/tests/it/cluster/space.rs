//! Nodes with a full disk: what they refuse, what they still do, and that they recover.

use serde_json::{Value, json};

use crate::common::eventually;
use crate::common::office::{Office, office};
use crate::common::web::{Answer, Call, Team, bodies, mail};

/// No disk has so much free space.
const FULL: &str = "[storage]\nmin_free_bytes = 4_000_000_000_000_000_000\nmin_free_percent = 0\nballast_bytes = 0\n";

impl Office {
    /// Restarts a node with other settings.
    async fn again(&mut self, node: usize, settings: &str) {
        self.cluster.stop_node(node).await;
        self.cluster.set(settings);
        self.cluster.restart(node).await;
        self.cluster.leader().await;
    }

    fn sends(&self, team: &Team) -> [Call; 3] {
        let batch = json!({ "messages": [mail("alpha", &json!("b1")), mail("alpha", &json!("b2"))] });
        let note = json!({ "from": "beta", "to": "alpha", "body": "k" });
        [
            Call::post("/v1/messages", &mail("alpha", &json!("a")))
                .key(&team.key)
                .agent("beta"),
            Call::post("/v1/messages/batch", &batch).key(&team.key).agent("beta"),
            Call::post("/api/v1/agents/messages", &note).bearer(&team.key),
        ]
    }

    async fn inbox(&self, node: usize, team: &Team) -> Vec<Value> {
        let call = Call::get("/v1/messages").key(&team.key).agent("alpha");
        bodies(&call.to(&self.urls[node]).await.ok())
    }
}

/// Asserts that the refusal names the node with the full disk and says that nothing was changed.
fn no_room(answer: &Answer, of_node: usize) {
    assert_eq!(answer.status, 503, "{}", answer.body);
    assert_eq!(answer.headers["retry-after"], "5");
    let told = answer.body["error"].as_str().unwrap();
    assert!(
        told.contains(&format!("node {} takes no writes", of_node + 1)),
        "{told}"
    );
    assert!(
        told.contains("storage.min_free_bytes") && told.contains("nothing was changed"),
        "{told}"
    );
    assert!(
        answer
            .body
            .get("success")
            .is_none_or(|_| answer.body["code"] == "no_room"),
        "{}",
        answer.body
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_writes_and_nothing_else() {
    let mut office = office().await;
    let team = office.new_team("full").await;
    let (_, boss) = office
        .key(&team, json!({ "name": "boss", "permissions": ["admin"] }))
        .await;
    office.send(0, &team, "alpha", "before").await;

    // A full follower refuses its own clients only.
    let follower = office.cluster.follower().await;
    office.again(follower, FULL).await;
    let leader = office.cluster.leader().await;
    assert_ne!(leader, follower);
    for send in office.sends(&team) {
        no_room(&send.to(&office.urls[follower]).await, follower);
    }
    office.send(leader, &team, "alpha", "elsewhere").await;

    // A full leader refuses the writes of all clients, on whichever node they arrive.
    let other = (0..3).find(|node| ![leader, follower].contains(node)).unwrap();
    office.lead(follower).await;
    for send in office.sends(&team) {
        no_room(&send.to(&office.urls[other]).await, follower);
        no_room(&send.to(&office.urls[follower]).await, follower);
    }
    let proposals = office
        .metric(other, "agentpost_proposals_total{outcome=\"NoRoom\"}")
        .await;
    assert_eq!(proposals, Some(3.0));
    assert_eq!(office.metric(follower, "agentpost_storage_refusing").await, Some(1.0));
    assert_eq!(office.metric(other, "agentpost_storage_refusing").await, Some(0.0));

    // Reads, sockets and the cluster's own operations continue.
    let there = vec![json!({ "text": "before" }), json!({ "text": "elsewhere" })];
    for node in 0..3 {
        assert_eq!(office.inbox(node, &team).await, there);
    }
    let (mut socket, _) = office.listen(follower, &boss, &["*"], None).await;
    assert_eq!(
        socket.answer("events.recent", json!({ "limit": 1 })).await["events"][0]["event"]["data"]["body"],
        "elsewhere"
    );
    let refused = socket.refusal("keys.create", json!({ "name": "k" })).await;
    assert!(refused.contains("takes no writes"), "{refused}");
    let read = Call::get("/v1/messages")
        .key(&team.key)
        .agent("alpha")
        .to(&office.urls[other])
        .await
        .ok();
    let id = read["messages"][0]["id"].as_str().unwrap();
    let mark = Call::patch(format!("/v1/messages/{id}"), &json!({ "read": true }))
        .key(&team.key)
        .agent("alpha");
    let marked = mark.to(&office.urls[other]).await;
    assert!(marked.status < 300, "{}", marked.body);

    // There is free space again.
    office.again(follower, "").await;
    for (n, send) in office.sends(&team).into_iter().enumerate() {
        let sent = send.to(&office.urls[n]).await;
        assert!(sent.status < 300, "{}", sent.body);
    }
    office.cluster.caught_up().await;
}

impl Office {
    async fn lead(&self, node: usize) {
        let id = node as u64 + 1;
        eventually("the leader that is wanted", async || {
            let leader = self.cluster.leader().await;
            if leader == node {
                return Some(());
            }
            let _ = self.cluster.services(leader).cluster.transfer(id).await;
            None
        })
        .await;
    }

    async fn metric(&self, node: usize, name: &str) -> Option<f64> {
        let text = self.cluster.services(node).services.metrics.encode();
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|value| value.trim().parse().ok())
    }
}
