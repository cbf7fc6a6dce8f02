//! The vendor's guide, word for word, against three nodes: agents on different nodes, a killed node, a revoked key.

use agentpost_testkit::PATIENCE;

use crate::common::cluster::Cluster;
use crate::common::process::Running;
use crate::common::{User, parts};

struct Post {
    cluster: Cluster,
    team: String,
    key_id: String,
    key: String,
}

impl Post {
    async fn open() -> Self {
        let cluster = Cluster::start().await;
        let team = cluster.agentpost_json(&["team", "create", "default"]).await["id"]
            .as_str()
            .unwrap()
            .to_owned();
        let key = cluster
            .agentpost_json(&["key", "create", "--team", "default", "--permissions", "write"])
            .await;
        let text = |name: &str| key[name].as_str().unwrap().to_owned();
        let (key_id, key) = (text("id"), text("api_key"));
        Post {
            cluster,
            team,
            key_id,
            key,
        }
    }

    /// An agent whose first node is `node`.
    async fn agent(&self, name: &str, node: usize) -> User {
        let user = self.user(&self.key, node);
        let output = user.kite(&["agent", "register", "--name", name]).await;
        assert!(output.status.success(), "{output:?}");
        user
    }

    fn user(&self, key: &str, node: usize) -> User {
        let urls = self.cluster.urls_from(node);
        User::new()
            .with("KITE_API_KEY", key)
            .with("KITE_TEAM_ID", &self.team)
            .with("AGENTPOST_URLS", &urls)
    }
}

/// Sends a message, checks the output and returns the id.
async fn send(user: &User, args: &[&str], from: &str, to: &str) -> String {
    let (code, stdout, stderr) = parts(&user.kite(&[&["agent", "send"], args].concat()).await);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    let start = format!("Sent agent message\n  from: {from}\n  to:   {to}\n  id:   ");
    let id = stdout
        .strip_prefix(&start)
        .unwrap_or_else(|| panic!("{stdout}"))
        .trim_end()
        .to_owned();
    assert_eq!(uuid::Uuid::parse_str(&id).unwrap().get_version_num(), 7);
    id
}

/// Waits until the list shows one listener of agent-alpha, and this note on stderr.
async fn alpha_listens(user: &User, note: &str) {
    let table = "AGENT        NAME  LISTENING  REGISTERED\nagent-alpha  -             1  -\n";
    let expected = (Some(0), table.to_owned(), note.to_owned());
    // The note may also name a node that is slow to answer.
    let listed = async { while parts(&user.kite(&["agent", "list"]).await) != expected {} };
    tokio::time::timeout(PATIENCE, listed)
        .await
        .unwrap_or_else(|_| panic!("not listed: {expected:?}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_guide_works_across_nodes_and_when_one_is_killed() {
    let mut post = Post::open().await;
    let alpha = post.agent("Agent Alpha", 2).await;
    let beta = post.agent("agent-beta", 3).await;

    // Mail that arrives before the listener starts waits in the inbox.
    let early = send(
        &beta,
        &["--to", "agent-alpha", "before you came"],
        "agent-beta",
        "agent-alpha",
    )
    .await;
    let mut listener = Running::connected(&alpha, &["agent", "listen"]).await;
    assert_eq!(
        listener.line().await,
        format!("[{early}] agent-beta → agent-alpha: before you came")
    );

    let body = "Here are the results you asked for.";
    let first = send(&beta, &["--to", "agent-alpha", body], "agent-beta", "agent-alpha").await;
    assert_eq!(
        listener.line().await,
        format!("[{first}] agent-beta → agent-alpha: {body}")
    );
    let args = [
        "--to",
        "agent-alpha",
        "--from",
        "other",
        "--thread",
        "t-1",
        "--reply-to",
        &first,
        "Re:\n\u{1b}[1mbold",
    ];
    let second = send(&beta, &args, "other", "agent-alpha").await;
    let line = format!("[{second}] other → agent-alpha thread=t-1 reply_to={first}: Re:\\n\\u{{1b}}[1mbold");
    assert_eq!(listener.line().await, line);
    alpha_listens(&beta, "").await;

    // The listener's node is killed. The listener continues at another node, and no message comes twice.
    post.cluster.kill(2);
    listener.note_with("Disconnected: ").await;
    let third = send(
        &beta,
        &["--to", "agent-alpha", "still there?"],
        "agent-beta",
        "agent-alpha",
    )
    .await;
    listener.note_with("Connected (last_seq: ").await;
    assert_eq!(
        listener.line().await,
        format!("[{third}] agent-beta → agent-alpha: still there?")
    );

    alpha_listens(&beta, "Node 2 did not answer: who listens there is not counted\n").await;
    let output = post.cluster.agentpost(&["cluster", "status"]).await;
    let (code, stdout, stderr) = parts(&output);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert!(stdout.contains("2 of 3 nodes reached"), "{stdout}");
    let dead = stdout
        .lines()
        .find(|line| line.contains("unreachable"))
        .expect("the dead node is shown");
    assert!(
        dead.trim_start().starts_with('2') && dead.contains(&post.cluster.url(2)),
        "{stdout}"
    );

    // A revoked key ends the listener.
    let output = post.cluster.agentpost(&["key", "revoke", &post.key_id]).await;
    assert_eq!(
        parts(&output),
        (Some(0), format!("Revoked key {}\n", post.key_id), String::new())
    );
    let error = listener.note_with("Error: ").await;
    assert!(error.starts_with("Error: Server error (4001): "), "{error}");
    assert_eq!(listener.ended().await.code(), Some(1));
    let (code, _, stderr) = parts(&beta.kite(&["agent", "send", "--to", "agent-alpha", "x"]).await);
    assert_eq!(code, Some(1));
    assert!(
        stderr.starts_with("Error: send failed (401 Unauthorized): {"),
        "{stderr}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_listing_and_the_load_generator() {
    let post = Post::open().await;
    let reader = post
        .cluster
        .agentpost_json(&["key", "create", "--team", &post.team, "--permissions", "read"])
        .await;
    let user = post.user(reader["api_key"].as_str().unwrap(), 3);
    let (code, stdout, stderr) = parts(&user.kite(&["agent", "send", "--to", "a", "--from", "b", "x"]).await);
    assert_eq!((code, stdout.as_str()), (Some(1), ""));
    assert!(
        stderr.starts_with("Error: send failed (403 Forbidden): {\"error\":"),
        "{stderr}"
    );

    // Each line is a CloudEvent with its members in the vendor's order.
    let id = send(&post.agent("b", 1).await, &["--to", "a", "x"], "b", "a").await;
    let mut listener = Running::connected(&user, &["agent", "listen", "--as-id", "a", "--json"]).await;
    let line = listener.line().await;
    let start = format!(
        "{{\"specversion\":\"1.0\",\"id\":\"{id}\",\"type\":\"com.kite.agent.message\",\
         \"source\":\"https://getkite.sh/agents/b\",\"datacontenttype\":\"application/json\",\"time\":\""
    );
    assert!(line.starts_with(&start), "{line}");
    let middle = "\"data\":{\"body\":\"x\",\"from\":\"b\",\"to\":\"a\"},\"kiteseq\":";
    assert!(
        line.contains(middle) && line.ends_with("\"kitesummary\":\"[agent msg] b → a: x\"}"),
        "{line}"
    );

    let output = post.cluster.agentpost(&["team", "create", "default"]).await;
    let (code, _, stderr) = parts(&output);
    assert!(code == Some(1) && stderr.ends_with("(409 Conflict)\n"), "{stderr}");
    let keys = post.cluster.agentpost(&["key", "list", "--team", "default"]).await;
    let (_, stdout, _) = parts(&keys);
    assert_eq!(stdout.lines().count(), 3, "{stdout}");

    let args = [
        "bench",
        "--mode",
        "http,batch",
        "--in-flight",
        "1",
        "--seconds",
        "1",
        "--warm-up",
        "0",
        "--tsv",
    ];
    let (code, stdout, stderr) = parts(&post.cluster.agentpost(&args).await);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    let rows: Vec<Vec<&str>> = stdout.lines().map(|line| line.split('\t').collect()).collect();
    let peers: Vec<&str> = rows.iter().map(|row| row[0]).collect();
    assert_eq!(
        peers,
        [
            "agentpost-http",
            "agentpost-http-leader",
            "agentpost-http-follower",
            "agentpost-batch"
        ]
    );
    for row in &rows {
        assert_eq!(
            (row[1], row[2], row[5], row.len()),
            ("acked-writes", "1", "msg/s", 9),
            "{stdout}"
        );
        assert!(
            row[4].parse::<f64>().unwrap() > 0.0 && !row[8].contains("errors"),
            "{stdout}"
        );
        assert!(
            row[8].contains("flushes/ack=1:") && row[8].contains(" cpu-s=1:"),
            "{stdout}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_moves_and_snapshots_are_taken_on_demand() {
    let cluster = Cluster::start().await;
    let status = cluster.agentpost_json(&["cluster", "status"]).await;
    let leader = status["leader"].as_u64().unwrap();
    let next = leader % 3 + 1;
    let output = cluster.agentpost(&["cluster", "transfer", &next.to_string()]).await;
    assert_eq!(parts(&output), (Some(0), format!("Node {next} leads\n"), String::new()));
    let output = cluster.agentpost(&["cluster", "transfer", &next.to_string()]).await;
    assert_eq!(
        parts(&output),
        (Some(0), format!("Node {next} leads already\n"), String::new())
    );
    let (code, _, stderr) = parts(&cluster.agentpost(&["cluster", "transfer", "9"]).await);
    assert!(code == Some(1) && stderr.ends_with("(400 Bad Request)\n"), "{stderr}");
    let output = cluster.agentpost(&["cluster", "snapshot"]).await;
    assert_eq!(parts(&output), (Some(0), "Snapshot taken\n".to_owned(), String::new()));
}
