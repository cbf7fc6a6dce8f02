//! Every example runs against a cluster, and does what it says.

use std::process::Stdio;

use agentpost::http::Request;
use agentpost::{Agent, Mail};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::office::{By, Office, soon};

/// A running example. It is killed when it is dropped.
struct Example {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Example {
    /// Starts an example with the variables of a user.
    fn start(office: &Office, by: By, name: &str, more: &[(&str, &str)]) -> Self {
        // The examples are built beside the tests: target/debug/deps/it-… and target/debug/examples/….
        let test = std::env::current_exe().unwrap();
        let path = test.ancestors().nth(2).unwrap().join("examples").join(name);
        assert!(
            path.exists(),
            "{} is missing: cargo build -p agentpost --examples",
            path.display()
        );
        let mut command = Command::new(path);
        command
            .env_clear()
            .env("AGENTPOST_URLS", office.urls_from(1))
            .env("KITE_API_KEY", &office.team.key)
            .envs(more.iter().copied())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        if by == By::WebSocket {
            command.env("KITE_TEAM_ID", &office.team.id);
        }
        let mut process = command.spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Example { process, lines }
    }

    async fn line(&mut self) -> String {
        soon(self.lines.next_line()).await.unwrap().expect("the example ended")
    }

    /// What it still prints, when it ends well.
    async fn ended(mut self) -> Vec<String> {
        let mut rest = Vec::new();
        while let Some(line) = soon(self.lines.next_line()).await.unwrap() {
            rest.push(line);
        }
        let status = soon(self.process.wait()).await.unwrap();
        assert!(status.success(), "{status} after {rest:?}");
        rest
    }

    /// Ctrl-C.
    fn interrupt(&self) {
        let id = self.process.id().expect("it runs").to_string();
        let status = std::process::Command::new("kill").args(["-s", "INT", &id]).status();
        assert!(status.unwrap().success());
    }
}

/// Everything in an inbox, oldest first.
async fn inbox(agent: &Agent) -> Vec<Mail> {
    agent.inbox().await.unwrap().mail
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn send_and_listen() {
    for by in [By::WebSocket, By::LongPoll] {
        let office = Office::open(1).await;
        let mut listen = Example::start(&office, by, "listen", &[]);
        let alpha = office.agent(by, 1, "agent-alpha");
        let mut shown = Vec::new();
        for _ in 0..2 {
            // The second run sends the report under the same idempotency key.
            let sent = Example::start(&office, by, "send", &[]).ended().await;
            assert!(
                sent[0].starts_with("msg_") && sent[0].contains(" is in 1 inbox, read by "),
                "{sent:?}"
            );
            shown.push(listen.line().await);
        }
        shown.push(listen.line().await);
        shown.sort();
        let text = "agent-beta: Here are the results you asked for.";
        assert_eq!(
            shown,
            [text, text, "agent-beta: {\"rows\":12,\"table\":\"prices\"}"],
            "{by:?}"
        );
        let stored = inbox(&alpha).await;
        assert_eq!(stored.len(), 3);
        let report = stored.iter().find(|mail| mail.kind == "report.ready").unwrap();
        assert_eq!(report.thread.as_deref(), Some("prices"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worker_and_request_reply() {
    for by in [By::WebSocket, By::LongPoll] {
        let office = Office::open(1).await;
        let worker = Example::start(&office, by, "worker", &[]);
        let answer = Example::start(&office, by, "request_reply", &[]).ended().await;
        assert_eq!(answer, ["{\"sum\":42}"], "{by:?}");

        let asker = office.agent(by, 1, "somebody");
        let sent = asker.send("worker", "no numbers").await.unwrap();
        let wait = asker.inbox().wait(std::time::Duration::from_secs(30));
        let refused = &soon(wait.into_future()).await.unwrap().mail[0];
        assert_eq!(refused.reply_to.as_deref(), Some(sent.id.as_str()));
        assert!(refused.json::<Value>().unwrap()["error"].is_string(), "{refused:?}");
        worker.interrupt();
        assert!(worker.ended().await.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topic() {
    let office = Office::open(1).await;
    let shown = Example::start(&office, By::LongPoll, "topic", &[]).ended().await;
    assert_eq!(
        shown,
        ["price.change from publisher: 4", "price.change from publisher: 4.25"]
    );
    let reader = office.agent(By::LongPoll, 1, "reader");
    assert_eq!(reader.subscriptions().await.unwrap()[0].topic, "market.updates");
    assert!(
        reader.inbox().unread().await.unwrap().mail.is_empty(),
        "all are marked read"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_poll() {
    let office = Office::open(1).await;
    let mut example = Example::start(&office, By::LongPoll, "long_poll", &[]);
    let beta = office.agent(By::LongPoll, 1, "beta");
    for text in ["first", "second"] {
        beta.send("agent-alpha", text).await.unwrap();
        let line = example.line().await;
        assert!(line.ends_with(&format!(" beta: {text}")), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn webhook_axum() {
    let office = Office::open(1).await;
    // A port that was free a moment ago.
    let address = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let url = format!("http://{address}/hook");
    let variables = [("HOOK_URL", url.as_str()), ("LISTEN", address.as_str())];
    let mut example = Example::start(&office, By::LongPoll, "webhook_axum", &variables);
    let alpha = office.agent(By::LongPoll, 1, "agent-alpha");
    soon(async {
        while alpha.webhook().get().await.unwrap().is_none() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    })
    .await;
    let beta = office.agent(By::LongPoll, 1, "beta");
    let sent = beta.send("agent-alpha", json!({ "n": 1 })).await.unwrap();
    let body: Value = serde_json::from_str(&example.line().await).unwrap();
    assert!(body.to_string().contains(&sent.id), "{body}");

    // A call without a signature is turned away.
    let forger = agentpost::Agentpost::builder(format!("http://{address}"))
        .build()
        .unwrap();
    let forged = forger.http().request(&Request::post("/hook")).await.unwrap_err();
    assert_eq!(forged.answer().unwrap().status, 401);
}
