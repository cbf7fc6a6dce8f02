//! The failpoints themselves: a node dies where its environment tells it to. The fault tests check with whole clusters what
//! must hold afterwards.
#![cfg(feature = "failpoints")]

use std::collections::HashMap;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};

use agentpost_testkit::receiver::Receiver;

use crate::common::eventually;
use crate::common::web::{Call, mail, metrics};
use serde_json::{Value, json};

const SIGABRT: i32 = 6;

/// A running `agentpostd dev` with the keys that it wrote to its directory.
struct Dev {
    process: Child,
    keys: HashMap<String, String>,
}

impl Dev {
    async fn start(dir: &Path, failpoint: &str) -> Self {
        Self::start_with(dir, ("AGENTPOST_FAILPOINT", failpoint)).await
    }

    async fn start_with(dir: &Path, (name, value): (&str, &str)) -> Self {
        let _ = std::fs::remove_file(dir.join("ready"));
        let process = Command::new(env!("CARGO_BIN_EXE_agentpostd"))
            .args(["dev", "--port", "0", "--data-dir"])
            .arg(dir)
            .env(name, value)
            .stdout(std::fs::File::create(dir.join("ready")).unwrap())
            .stderr(std::fs::File::create(dir.join("log")).unwrap())
            .spawn()
            .unwrap();
        let keys = eventually("a node that serves", async || {
            let said = std::fs::read_to_string(dir.join("ready")).ok()?;
            said.contains("Ctrl-C").then(|| exports(&dir.join("keys.env")))
        })
        .await;
        Dev { process, keys }
    }

    async fn call(&self, call: Call) -> Value {
        self.asked(call).await
    }

    fn asked(&self, call: Call) -> impl Future<Output = Value> + use<> {
        let call = call.key(&self.keys["KITE_API_KEY"]).agent("agent-a");
        let url = self.keys["AGENTPOST_URLS"].clone();
        async move { call.to(&url).await.ok() }
    }

    async fn ended(mut self) -> ExitStatus {
        eventually("the end of the node", async || self.process.try_wait().unwrap()).await
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn exports(file: &Path) -> HashMap<String, String> {
    let text = std::fs::read_to_string(file).unwrap();
    let lines = text
        .lines()
        .filter_map(|line| line.strip_prefix("export ")?.split_once('='));
    lines
        .map(|(name, value)| (name.to_owned(), value.trim_matches('"').to_owned()))
        .collect()
}

/// Sends a message to a webhook through a node that ends at `failpoint`. Returns how it ended.
async fn one_message(dir: &Path, receiver: &Receiver, failpoint: &str) -> ExitStatus {
    let node = Dev::start(dir, failpoint).await;
    let webhook = json!({ "url": receiver.url("/hook"), "events": ["message.received"] });
    node.call(Call::post("/v1/messages/webhook", &webhook)).await;
    // The node may die before or while it answers, so there may be no answer.
    let sending = node.asked(Call::post("/v1/messages", &mail("agent-a", &json!({ "n": 1 }))));
    let _ = tokio::spawn(sending).await;
    node.ended().await
}

/// Sends a message to a webhook; the node dies at `failpoint` and is started again. Returns the numbers of calls before the
/// restart and in total.
async fn one_delivery(failpoint: &str) -> (usize, usize) {
    let dir = tempfile::tempdir().unwrap();
    let receiver = Receiver::start().await.unwrap();
    let status = one_message(dir.path(), &receiver, failpoint).await;
    assert_eq!(status.signal(), Some(SIGABRT));
    let before = receiver.count();
    let node = Dev::start(dir.path(), "none").await;
    eventually("the end of the delivery", async || {
        let list = node.call(Call::get("/v1/deliveries")).await;
        (list["deliveries"][0]["state"] == "delivered").then_some(())
    })
    .await;
    (before, receiver.count())
}

#[tokio::test(flavor = "multi_thread")]
async fn before_the_claim_nothing_was_sent() {
    assert_eq!(one_delivery("before-claim").await, (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_outcome_nothing_is_sent_again() {
    assert_eq!(one_delivery("outcome-committed:1").await, (1, 1));
}

/// A node whose dispatcher is dead would look healthy and deliver nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_panics_ends_the_node_and_the_log_says_which() {
    let dir = tempfile::tempdir().unwrap();
    let receiver = Receiver::start().await.unwrap();
    let status = one_message(dir.path(), &receiver, "choosing").await;
    assert_eq!(status.code(), Some(1));
    let log = std::fs::read_to_string(dir.path().join("log")).unwrap();
    let line = log.lines().find(|line| line.contains("agentpostd failed"));
    assert!(
        line.is_some_and(|line| line.contains("the task `dispatcher` panicked")),
        "{log}"
    );
}

/// A leader that cannot apply would send heartbeats for ever and answer nobody.
#[tokio::test(flavor = "multi_thread")]
async fn an_apply_that_hangs_shows_in_the_metrics_and_ends_readiness() {
    let dir = tempfile::tempdir().unwrap();
    // The first effect is that of the new epoch.
    let node = Dev::start(dir.path(), "applied:2").await;
    // The task with the answer may wait for the thread that hangs.
    let sending = tokio::spawn(node.asked(Call::post("/v1/messages", &mail("agent-a", &json!({ "n": 1 })))));
    let url = node.keys["AGENTPOST_URLS"].clone();
    eventually("an alarm", async || {
        let metrics = metrics(&url).await;
        let waited = metrics
            .lines()
            .find_map(|line| line.strip_prefix("agentpost_apply_waiting_seconds "))?;
        (waited.parse::<f64>().unwrap() >= 10.0).then_some(())
    })
    .await;
    assert_eq!(Call::get("/readyz").to(&url).await.status, 503);
    eventually("a line of the log", async || {
        let log = std::fs::read_to_string(dir.path().join("log")).unwrap();
        log.contains("committed entries are not applied").then_some(())
    })
    .await;
    sending.abort();
}

/// An idempotency key counts for a day of cluster time, and the sweep removes its rows afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn cluster_time_can_advance_a_day_in_two_seconds() {
    let dir = tempfile::tempdir().unwrap();
    let node = Dev::start_with(dir.path(), ("AGENTPOST_CLUSTER_TIME_SPEED", "43200")).await;
    let send = async || {
        let call = Call::post("/v1/messages", &mail("agent-a", &json!({ "n": 1 })));
        node.call(call.once("once")).await["messageId"].clone()
    };
    let first = send().await;
    eventually("a second message under the key", async || {
        (send().await != first).then_some(())
    })
    .await;
    eventually("a sweep", async || {
        let metrics = metrics(&node.keys["AGENTPOST_URLS"]).await;
        let swept = metrics
            .lines()
            .find_map(|line| line.strip_prefix("agentpost_swept_rows_total "))?;
        (swept.parse::<u64>().unwrap() >= 2).then_some(())
    })
    .await;
}
