//! What a daemon answers while it opens its data directory, which may take long. A failpoint holds it there.
#![cfg(feature = "failpoints")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use agentpost_testkit::ports;
use serde_json::json;

use crate::common::eventually;
use crate::common::web::{Call, mail, metrics};

/// A running `agentpostd dev`.
struct Daemon {
    process: Child,
    url: String,
    go_on: PathBuf,
}

impl Daemon {
    fn start(dir: &Path, failpoint: &str) -> Self {
        let port = ports::free(1).unwrap()[0];
        let go_on = dir.join("go-on");
        let process = Command::new(env!("CARGO_BIN_EXE_agentpostd"))
            .args(["dev", "--port", &port.to_string(), "--data-dir"])
            .arg(dir)
            .env("AGENTPOST_NODE__PEER_ADDR", "127.0.0.1:0")
            .env("AGENTPOST_FAILPOINT", failpoint)
            .env("AGENTPOST_FAILPOINT_UNTIL", &go_on)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let url = format!("http://127.0.0.1:{port}");
        Daemon { process, url, go_on }
    }

    async fn ready(&self) {
        eventually("a node that is ready", async || {
            let answer = Call::get("/readyz").try_to(&self.url).await.ok()?;
            (answer.status == 200).then_some(())
        })
        .await;
    }

    /// Waits until the node says that it reads its log.
    async fn reading(&self) {
        eventually("a node that reads its log", async || {
            let answer = Call::get("/readyz").try_to(&self.url).await.ok()?;
            assert_eq!(answer.headers["retry-after"], "1");
            let why = answer.error(503);
            assert!(why.starts_with("this node is starting: "), "{why}");
            why.ends_with("the log is being read: segment 1 of 1").then_some(())
        })
        .await;
    }

    fn terminate(mut self) {
        let id = self.process.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        assert_eq!(self.process.wait().unwrap().code(), Some(0));
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A supervisor would kill a node in a loop whose log takes longer to read than `/health` may be silent.
#[tokio::test]
async fn health_answers_while_the_log_is_read_and_everything_else_says_why_not() {
    let dir = tempfile::tempdir().unwrap();
    let first = Daemon::start(dir.path(), "none");
    first.ready().await;
    first.terminate();

    let held = Daemon::start(dir.path(), "opening");
    held.reading().await;
    assert_eq!(Call::get("/health").to(&held.url).await.ok(), json!({ "status": "ok" }));
    assert!(metrics(&held.url).await.contains("\nagentpost_is_leader 0\n"));
    for call in [
        Call::get("/admin/v1/cluster"),
        Call::post("/v1/messages", &mail("agent-a", &json!({}))),
    ] {
        let answer = call.to(&held.url).await;
        assert_eq!(answer.headers["retry-after"], "1");
        assert_eq!(
            (&answer.body["success"], &answer.body["code"]),
            (&json!(false), &json!("not_ready"))
        );
        assert!(answer.error(503).contains("segment 1 of 1"));
    }
    let kite = Call::get("/api/v1/agents").to(&held.url).await;
    assert_eq!(kite.body.as_object().unwrap().len(), 1, "Kite's form: {}", kite.body);
    assert!(kite.error(503).contains("segment 1 of 1"));

    std::fs::write(&held.go_on, "").unwrap();
    held.ready().await;
    assert_eq!(Call::get("/health").to(&held.url).await.ok(), json!({ "status": "ok" }));
    Call::get("/v1/messages").to(&held.url).await.error(401);
    held.terminate();
}

#[tokio::test]
async fn a_node_that_is_stopped_while_it_reads_its_log_exits_with_0() {
    let dir = tempfile::tempdir().unwrap();
    let first = Daemon::start(dir.path(), "none");
    first.ready().await;
    first.terminate();
    let held = Daemon::start(dir.path(), "opening");
    held.reading().await;
    held.terminate();
    let again = Daemon::start(dir.path(), "none");
    again.ready().await;
    again.terminate();
}
