//! `kite agent list` against a scripted server and against three nodes.

use std::process::Stdio;

use agentpost_testkit::PATIENCE;
use agentpost_testkit::ports::refusing_url;
use agentpost_testkit::scripted_server::ScriptedServer;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::common::cluster::Cluster;
use crate::common::{User, parts};

const LIST: &[&str] = &["agent", "list"];

fn agent(id: &str, name: Option<&str>, registered_at: Option<&str>, sessions: u64) -> Value {
    json!({ "id": id, "name": name, "registered": registered_at.is_some(), "registered_at": registered_at,
            "sessions": sessions })
}

fn page(agents: &[Value], next: Option<&str>, unreachable: &[u64]) -> String {
    json!({ "agents": agents, "next": next, "unreachable_nodes": unreachable }).to_string()
}

#[tokio::test]
async fn all_pages_stand_in_one_table() {
    let server = ScriptedServer::start().await;
    let day = Some("2026-04-30T10:00:00.000Z");
    let first = [agent("agent-alpha", Some("Größe"), day, 12), agent("b", None, day, 0)];
    let forged = agent("c:x", Some("two\nlines\u{1b}[2J"), None, 1);
    server
        .answer(200, page(&first, Some("b"), &[]))
        .answer(200, page(&[forged], None, &[]));
    let expected = "\
AGENT        NAME                 LISTENING  REGISTERED
agent-alpha  Größe                       12  2026-04-30T10:00:00.000Z
b            -                            0  2026-04-30T10:00:00.000Z
c:x          two\\nlines\\u{1b}[2J          1  -
";
    let output = User::of(&server.base).kite(LIST).await;
    assert_eq!(parts(&output), (Some(0), expected.to_owned(), String::new()));
    let seen = server.seen();
    let paths: Vec<&str> = seen.iter().map(|seen| seen.path.as_str()).collect();
    assert_eq!(paths, ["/api/v1/agents?limit=200", "/api/v1/agents?after=b&limit=200"]);
    assert_eq!(
        (seen[0].method.as_str(), seen[0].header("authorization")),
        ("GET", "Bearer kite_key")
    );
}

#[tokio::test]
async fn json_is_one_agent_per_line_as_it_came() {
    let server = ScriptedServer::start().await;
    let agents = [agent("a", Some("\u{1b}[2J"), None, 1), agent("b", None, None, 0)];
    server.answer(200, page(&agents, None, &[]));
    let (code, stdout, stderr) = parts(&User::of(&server.base).kite(&["agent", "list", "--json"]).await);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    let lines: Vec<Value> = stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines, agents);
}

#[tokio::test]
async fn nodes_that_did_not_answer_are_named_once_on_stderr() {
    let one = agent("a", None, None, 0);
    let table = "AGENT  NAME  LISTENING  REGISTERED\na      -             0  -\n";
    for (pages, nodes) in [
        (vec![page(std::slice::from_ref(&one), None, &[3])], "Node 3"),
        (
            vec![
                page(std::slice::from_ref(&one), Some("a"), &[3, 2]),
                page(&[], None, &[3]),
            ],
            "Nodes 2, 3",
        ),
    ] {
        let server = ScriptedServer::start().await;
        for page in pages {
            server.answer(200, page);
        }
        let output = User::of(&server.base).kite(LIST).await;
        let note = format!("{nodes} did not answer: who listens there is not counted\n");
        assert_eq!(parts(&output), (Some(0), table.to_owned(), note));
    }
}

#[tokio::test]
async fn an_empty_directory_a_refusal_and_a_node_that_is_down() {
    let server = ScriptedServer::start().await;
    let user = User::of(&format!("{} {}", refusing_url(), server.base));
    server.answer(200, page(&[], None, &[]));
    let nobody = (Some(0), "No agents found.\n".to_owned(), String::new());
    assert_eq!(parts(&user.kite(LIST).await), nobody);
    server.answer(200, page(&[], None, &[]));
    let nothing = (Some(0), String::new(), String::new());
    assert_eq!(parts(&user.kite(&["agent", "list", "--json"]).await), nothing);
    server.answer(403, "{\"error\":\"the key lacks read\u{1b}\"}");
    let error = "Error: list failed (403 Forbidden): {\"error\":\"the key lacks read\\u{1b}\"}\n";
    assert_eq!(
        parts(&user.kite(LIST).await),
        (Some(1), String::new(), error.to_owned())
    );
    let no_key = "Error: No API key configured. Run `kite login` first.\n";
    assert_eq!(
        parts(&User::new().kite(LIST).await),
        (Some(1), String::new(), no_key.to_owned())
    );
}

#[tokio::test]
async fn pages_that_go_in_circles_end_with_an_error() {
    let server = ScriptedServer::start().await;
    for _ in 0..2 {
        server.answer(200, page(&[agent("a", None, None, 0)], Some("a"), &[]));
    }
    let (code, stdout, stderr) = parts(&User::of(&server.base).kite(LIST).await);
    assert_eq!((code, stdout.as_str()), (Some(1), ""));
    assert_eq!(stderr, "Error: the server's pages do not go on after a\n");
}

/// Waits until `kite agent list` prints these rows, and this note on stderr.
async fn lists(user: &User, rows: &[&str], note: &str) {
    let expected = format!("AGENT  NAME  LISTENING  REGISTERED\n{}\n", rows.join("\n"));
    let mut last = None;
    let listed = async {
        while last.as_ref() != Some(&(Some(0), expected.clone(), note.to_owned())) {
            last = Some(parts(&user.kite(LIST).await));
        }
    };
    let waited = tokio::time::timeout(PATIENCE, listed).await;
    assert!(waited.is_ok(), "expected {rows:?} {note:?}, not {last:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listeners_of_a_node_that_hangs_are_missing_until_it_goes_on() {
    let cluster = Cluster::start().await;
    let team = cluster.agentpost_json(&["team", "create", "default"]).await;
    let key = ["key", "create", "--team", "default", "--permissions", "write"];
    let key = cluster.agentpost_json(&key).await;
    let user = |urls: &str| {
        User::of(urls)
            .with("KITE_TEAM_ID", team["id"].as_str().unwrap())
            .with("KITE_API_KEY", key["api_key"].as_str().unwrap())
    };
    let (others, third) = (user(&cluster.urls_from(1)), user(&cluster.url(3)));
    for agent in ["a", "b"] {
        let sent = others
            .kite(&["agent", "send", "--to", agent, "--from", "x", "hi"])
            .await;
        assert!(sent.status.success(), "{sent:?}");
    }
    let mut listener = third.command(&["agent", "listen", "--as-id", "b"]);
    let mut listener = listener.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut mail = BufReader::new(listener.stdout.take().unwrap()).lines();
    let first = tokio::time::timeout(PATIENCE, mail.next_line()).await;
    assert!(first.unwrap().unwrap().unwrap().ends_with("x → b: hi"));

    lists(&others, &["a      -             0  -", "b      -             1  -"], "").await;
    cluster.pause(3);
    let note = "Node 3 did not answer: who listens there is not counted\n";
    lists(
        &others,
        &["a      -             0  -", "b      -             0  -"],
        note,
    )
    .await;
    cluster.resume(3);
    lists(&others, &["a      -             0  -", "b      -             1  -"], "").await;
    listener.kill().await.unwrap();
    lists(&others, &["a      -             0  -", "b      -             0  -"], "").await;
}
