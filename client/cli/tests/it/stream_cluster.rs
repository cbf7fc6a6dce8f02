//! `kite stream` against three nodes: a stored position that survives a killed node and a restart, commands that fail
//! or run while their node is killed, and the scopes of a bound key.

use agentpost_testkit::eventually;
use agentpost_testkit::scripted_server::exists;

use crate::common::cluster::Cluster;
use crate::common::process::Running;
use crate::common::{User, parts};

/// A cluster with a team.
struct Post {
    cluster: Cluster,
    team: String,
    key: String,
}

impl Post {
    async fn open() -> Self {
        let cluster = Cluster::start().await;
        let team = cluster.agentpost_json(&["team", "create", "default"]).await["id"].clone();
        let team = team.as_str().unwrap().to_owned();
        let mut post = Post {
            cluster,
            team,
            key: String::new(),
        };
        post.key = post.new_key(&[]).await;
        post
    }

    async fn new_key(&self, more: &[&str]) -> String {
        let args = ["key", "create", "--team", &self.team, "--permissions", "write"];
        let key = self.cluster.agentpost_json(&[&args, more].concat()).await;
        key["api_key"].as_str().unwrap().to_owned()
    }

    /// A user whose first node is `node`.
    fn user(&self, key: &str, node: usize) -> User {
        User::of(&self.cluster.urls_from(node))
            .with("KITE_API_KEY", key)
            .with("KITE_TEAM_ID", &self.team)
            .with("PATH", &std::env::var("PATH").unwrap())
    }

    /// Sends a message from agent-beta.
    async fn send(&self, to: &str, body: &str) {
        let args = ["agent", "send", "--from", "agent-beta", "--to", to, body];
        let (code, _, stderr) = parts(&self.user(&self.key, 1).kite(&args).await);
        assert_eq!((code, stderr.as_str()), (Some(0), ""));
    }
}

/// The line of `kite stream --compact`.
fn shown(to: &str, body: &str) -> String {
    format!("[agent msg] agent-beta → {to}: {body}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_named_stream_goes_on_at_another_node_and_after_a_restart() {
    let mut post = Post::open().await;
    post.send("a", "before the stream").await;
    let args = ["stream", "--compact", "--client-id", "archive"];
    let mut stream = Running::connected(&post.user(&post.key, 2), &args).await;
    post.send("a", "1").await;
    assert_eq!(stream.line().await, shown("a", "1"));

    post.cluster.kill(2);
    post.send("b", "2").await;
    assert_eq!(stream.line().await, shown("b", "2"));
    stream.note_with("Reconnecting in ").await;
    stream.note_with("Connected (last_seq: ").await;
    stream.signal("TERM");
    assert_eq!(stream.ended().await.code(), Some(143));

    post.send("a", "3").await;
    let user = post.user(&post.key, 3);
    let mut live = Running::connected(&user, &["stream", "--compact"]).await;
    let mut stream = Running::connected(&user, &args).await;
    post.send("a", "4").await;
    let mut line = stream.line().await;
    if line == shown("b", "2") {
        // The stream was stopped before its acknowledgement arrived.
        line = stream.line().await;
    }
    assert_eq!(line, shown("a", "3"));
    assert_eq!(stream.line().await, shown("a", "4"));
    assert_eq!(
        live.line().await,
        shown("a", "4"),
        "a stream without a name is live only"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_gets_its_event_again_until_it_succeeds_also_after_a_node_was_killed() {
    let mut post = Post::open().await;
    let user = post.user(&post.key, 2);
    let file = |name: &str| user.home.path().join(name);
    // The first command fails twice. The third ends after its node was killed.
    let command = "echo $KITE_SEQ >> tried; n=$(sort -u tried | wc -l); \
                   if [ $n = 1 ]; then [ $(wc -l < tried) = 3 ] || exit 1; fi; \
                   if [ $n = 3 ]; then touch running; until [ -e go ]; do sleep 0.05; done; fi; \
                   jq -r .data.body >> done";
    let mut stream = Running::connected(&user, &["stream", "--client-id", "worker", "--exec", command]).await;
    for body in ["1", "2", "3", "4"] {
        post.send("a", body).await;
    }
    let failed = stream.note_with("Command failed (exit status: 1) for event ").await;
    assert!(failed.contains(", attempt 1: "), "{failed}");
    let failed = stream.note_with("Command failed (exit status: 1) for event ").await;
    assert!(failed.contains(", attempt 2: "), "{failed}");
    exists(&file("running")).await;
    post.cluster.kill(2);
    std::fs::write(file("go"), "").unwrap();
    stream.note_with("Disconnected: ").await;
    stream.note_with("Connected (last_seq: ").await;
    post.send("a", "5").await;

    let done = || std::fs::read_to_string(file("done")).unwrap_or_default();
    eventually("five commands", async || (done().lines().count() >= 5).then_some(())).await;
    assert_eq!(done(), "1\n2\n3\n4\n5\n");
    let tried = std::fs::read_to_string(file("tried")).unwrap();
    assert_eq!(tried.lines().count(), 7, "{tried}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bound_key_streams_only_its_own_mail_and_the_error_says_why() {
    let post = Post::open().await;
    let bound = post.user(&post.new_key(&["--agent", "agent-alpha"]).await, 1);
    let mut stream = Running::connected(&bound, &["stream", "--compact"]).await;
    for to in ["agent-gamma", "agent-alpha"] {
        post.send(to, "x").await;
    }
    assert_eq!(stream.line().await, shown("agent-alpha", "x"));

    let output = bound.kite(&["agent", "listen", "--as-id", "agent-gamma"]).await;
    let (code, stdout, stderr) = parts(&output);
    assert_eq!((code, stdout.as_str()), (Some(1), ""));
    let why =
        "Error: Server error (4001): this key allows none of the requested scopes: it is bound to agent agent-alpha";
    assert_eq!(stderr.lines().last(), Some(why), "{stderr}");
}
