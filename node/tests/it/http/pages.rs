//! Pages that need more than one read of the inbox.

use serde_json::{Value, json};

use crate::common::office::Office;
use crate::common::web::{Call, Team};

/// Sends from alice to bob, in batches of this many.
async fn fill(office: &Office, team: &Team, count: usize, batch: usize, body: &str) {
    let numbers: Vec<usize> = (0..count).collect();
    for numbers in numbers.chunks(batch) {
        let message = |n: &usize| json!({ "toAgentId": "bob", "type": "t", "body": { "n": n, "x": body } });
        let messages: Vec<Value> = numbers.iter().map(message).collect();
        let sent = Call::post("/v1/messages/batch", &json!({ "messages": messages }));
        sent.key(&team.key).agent("alice").to(&office.urls[0]).await.ok();
    }
}

/// The numbers of the messages in a list of bob's.
async fn list(office: &Office, query: &str) -> Vec<u64> {
    let asked = Call::get(format!("/v1/messages?{query}"))
        .key(&office.team.key)
        .agent("bob");
    let listed = asked.to(&office.urls[0]).await.ok();
    let messages = listed["messages"].as_array().unwrap().iter();
    messages.map(|message| message["body"]["n"].as_u64().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offset_counts_messages_whatever_their_size() {
    let office = Office::start(1, "").await;
    fill(&office, &office.team, 260, 20, &"y".repeat(30_000)).await;
    let page: Vec<u64> = (200..250).collect();
    assert_eq!(list(&office, "offset=200&limit=50").await, page);
    assert_eq!(list(&office, "offset=260&limit=50").await, [0; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_finds_what_lies_beyond_one_read() {
    let office = Office::start(1, "").await;
    fill(&office, &office.team, 2_100, 100, "").await;
    let carols = json!({ "toAgentId": "bob", "type": "t", "body": { "n": 9_999 } });
    let sent = Call::post("/v1/messages", &carols).key(&office.team.key).agent("carol");
    sent.to(&office.urls[0]).await.ok();
    // A page may be empty; its cursor moves on.
    assert_eq!(list(&office, "fromAgentId=carol").await, [0; 0]);
    // A long poll goes on until the end before it waits; it would wait in vain.
    assert_eq!(list(&office, "fromAgentId=carol&wait=20").await, [9_999]);
    // An empty page at an offset would be taken for the end.
    assert_eq!(
        list(&office, "offset=2000&limit=200").await,
        (2_000..2_100).chain([9_999]).collect::<Vec<_>>()
    );
    assert_eq!(
        list(&office, "fromAgentId=alice&offset=2000&limit=5").await,
        [2_000, 2_001, 2_002, 2_003, 2_004]
    );
}
