//! `kite login` and the management commands against three nodes, as the vendor's guide describes them.

use std::process::{Output, Stdio};

use agentpost_testkit::PATIENCE;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr};
use tokio::time::timeout;

use crate::common::cluster::Cluster;
use crate::common::{User, parts};

/// A `kite login` that waits for approval.
struct Waiting {
    process: Child,
    notes: Lines<BufReader<ChildStderr>>,
    code: String,
}

impl Waiting {
    async fn start(user: &User, server: &str) -> Self {
        let mut command = user.command(&["login", "--server", server]);
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut notes = BufReader::new(process.stderr.take().unwrap()).lines();
        let line = timeout(PATIENCE, notes.next_line())
            .await
            .expect("no code in time")
            .unwrap()
            .unwrap();
        let start = format!("Open {server}/activate and enter the code ");
        let code = line.strip_prefix(&start).unwrap_or_else(|| panic!("{line}")).to_owned();
        Waiting { process, notes, code }
    }

    /// Exit code, stdout and the last line of stderr.
    async fn end(mut self) -> (Option<i32>, String, String) {
        let mut last = String::new();
        while let Some(line) = timeout(PATIENCE, self.notes.next_line())
            .await
            .expect("no end in time")
            .unwrap()
        {
            last = line;
        }
        let output = timeout(PATIENCE, self.process.wait_with_output())
            .await
            .expect("kite did not end")
            .unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), last)
    }
}

fn stdout(output: &Output) -> String {
    let (code, stdout, stderr) = parts(output);
    assert_eq!((code, stderr.as_str()), (Some(0), ""), "{stdout}");
    stdout
}

/// Id, prefix and secret from the output of `kite keys create`.
fn created(text: &str) -> [String; 3] {
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!((lines[0], lines.len()), ("Created API key:", 4), "{text}");
    ["- id: ", "- key_prefix: ", "- api_key (shown once): "].map(|start| {
        lines
            .iter()
            .find_map(|line| line.strip_prefix(start))
            .unwrap_or_else(|| panic!("{text}"))
            .to_owned()
    })
}

async fn send(user: &User, thread: &str, body: &str) {
    let args = [
        "agent",
        "send",
        "--to",
        "agent-alpha",
        "--from",
        "agent-beta",
        "--thread",
        thread,
        body,
    ];
    stdout(&user.kite(&args).await);
}

/// The operator approves a machine as administrator of the first of two teams.
async fn logged_in(cluster: &Cluster, team: &str) -> User {
    let user = User::new();
    let waiting = Waiting::start(&user, &cluster.url(2)).await;
    // Every node knows the code, in either case and without the dash. The operator must name the team.
    let code = waiting.code.to_lowercase().replace('-', "");
    let shown = cluster.agentpost_json(&["login", "show", &code]).await;
    assert_eq!(shown["user_code"], waiting.code.as_str());
    assert!(shown["client"].as_str().unwrap().starts_with("kite "), "{shown}");
    let mut teams: Vec<&str> = shown["teams"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| t["name"].as_str().unwrap())
        .collect();
    teams.sort_unstable();
    assert_eq!(teams, ["ops", "research"]);
    let (exit, _, stderr) = parts(&cluster.agentpost(&["login", "approve", &code]).await);
    assert!(exit == Some(1), "{stderr}");
    assert!(
        stderr.starts_with("Error: this key can let the machine into 2 teams"),
        "{stderr}"
    );
    let args = [
        "login",
        "approve",
        &code,
        "--team",
        "research",
        "--permissions",
        "admin",
    ];
    let (exit, approved, stderr) = parts(&cluster.agentpost(&args).await);
    let expected = format!(
        "Approved {}\n  team:        research ({team})\n  permissions: admin\n",
        waiting.code
    );
    assert_eq!((exit, approved), (Some(0), expected), "{stderr}");
    assert!(
        stderr.starts_with(&format!("Login {}\n  device:  kite ", waiting.code)),
        "{stderr}"
    );
    let (exit, printed, last) = waiting.end().await;
    assert_eq!(exit, Some(0), "{last}");
    assert_eq!(
        printed,
        format!("Logged in\n  team:   {team}\n  server: {}\n", cluster.url(2))
    );
    user
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_logs_in_and_manages_the_teams_keys() {
    let mut cluster = Cluster::start().await;
    let team = cluster.agentpost_json(&["team", "create", "research"]).await["id"]
        .as_str()
        .unwrap()
        .to_owned();
    cluster.agentpost_json(&["team", "create", "ops"]).await;
    let user = logged_in(&cluster, &team).await;

    // The file now has an admin key of the team.
    let status = stdout(&user.kite(&["status"]).await);
    let lines: Vec<&str> = status.lines().collect();
    let ws_url = format!("- ws_url: {}", agentpost::urls::ws_url(&cluster.url(2)).unwrap());
    assert_eq!(lines[..3], ["Kite status", &format!("- team_id: {team}"), &ws_url]);
    assert_eq!(
        lines[7..],
        ["- active_api_keys: 1", "- current_key_permissions: admin"],
        "{status}"
    );

    // From the guide: a key with the permission write.
    let text = stdout(
        &user
            .kite(&["keys", "create", "--name", "second", "--permissions", "write"])
            .await,
    );
    let [id, prefix, key] = created(&text);
    assert!(key.starts_with(&prefix), "{text}");
    let second = User::new()
        .with("KITE_API_KEY", &key)
        .with("KITE_TEAM_ID", &team)
        .with("AGENTPOST_URLS", &cluster.urls_from(3));
    send(&second, "t-1", "one").await;
    let list = stdout(&second.kite(&["keys", "list"]).await);
    assert_eq!(list.lines().count(), 3, "{list}");
    assert!(
        list.starts_with(&format!("Team: {team}\n")) && !list.contains(&key),
        "{list}"
    );
    let line = format!("- id={id} name=second revoked=false key_prefix={prefix} created_at=");
    assert!(list.contains(&line), "{list}");
    let (exit, _, stderr) = parts(&second.kite(&["keys", "create"]).await);
    let start = "Error: `kite keys create` needs a key with the permission admin; the key of this machine has write.\n";
    assert!(exit == Some(1) && stderr.starts_with(start), "{stderr}");

    // After a node is killed, the others answer, and a revocation holds on both.
    cluster.kill(3);
    stdout(&second.kite(&["status"]).await);
    let revoked = stdout(&user.kite(&["keys", "revoke", "--id", &id]).await);
    assert_eq!(revoked, format!("Revoked API key: {id}\n"));
    let (exit, _, stderr) = parts(&second.kite(&["status"]).await);
    assert!(
        exit == Some(1) && stderr.starts_with("Error: Server error (4001): "),
        "{stderr}"
    );
    let list = stdout(&user.kite(&["keys", "list"]).await);
    assert!(list.contains(&format!("- id={id} name=second revoked=true ")), "{list}");
    let nobody = ["keys", "revoke", "--id", "key_00000000000000000000000000000000"];
    let (exit, _, stderr) = parts(&user.kite(&nobody).await);
    assert!(exit == Some(1) && stderr.starts_with("Error: "), "{stderr}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_show_the_history_page_by_page_and_a_refused_machine_gets_nothing() {
    let cluster = Cluster::start().await;
    let team = cluster.agentpost_json(&["team", "create", "research"]).await["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let create = ["key", "create", "--team", "research", "--permissions"];
    let key = cluster.agentpost_json(&[&create[..], &["write"]].concat()).await["api_key"]
        .as_str()
        .unwrap()
        .to_owned();
    let user = User::new()
        .with("KITE_API_KEY", &key)
        .with("KITE_TEAM_ID", &team)
        .with("AGENTPOST_URLS", &cluster.urls_from(2));
    assert_eq!(stdout(&user.kite(&["logs"]).await), "No events found.\n");
    for (thread, body) in [("t-1", "one"), ("t-2", "two\nlines"), ("t-1", "three")] {
        send(&user, thread, body).await;
    }
    let logs = stdout(&user.kite(&["logs"]).await);
    let lines: Vec<&str> = logs.lines().collect();
    let ends = |line: &str, body: &str| {
        let end = format!("Z] com.kite.agent.message - [agent msg] agent-beta → agent-alpha: {body}");
        assert!(line.starts_with('#') && line.ends_with(&end), "{logs}");
    };
    assert_eq!(lines.len(), 3, "{logs}");
    for (line, body) in lines.iter().zip(["three", "two\\nlines", "one"]) {
        ends(line, body);
    }
    let seq = |line: &str| line[1..].split_once(' ').unwrap().0.to_owned();
    let args = ["logs", "--limit", "1", "--before", &seq(lines[0])];
    assert_eq!(stdout(&user.kite(&args).await), format!("{}\n", lines[1]));
    let thread = stdout(&user.kite(&["logs", "--thread", "t-1"]).await);
    assert_eq!(thread, format!("{}\n{}\n", lines[0], lines[2]));

    // An admin key of the team may decide as well, for this team only.
    let admin = cluster.agentpost_json(&[&create[..], &["admin"]].concat()).await;
    let file = user.home.path().join("admin.key");
    std::fs::write(&file, admin["api_key"].as_str().unwrap()).unwrap();
    let as_admin = async |args: &[&str]| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_agentpost"));
        let command = command.args(args).arg("--admin-key-file").arg(&file).env_clear();
        let output = command.env("AGENTPOST_URLS", cluster.urls_from(3)).output();
        parts(&timeout(PATIENCE, output).await.expect("agentpost did not end").unwrap())
    };
    let machine = User::new();
    let waiting = Waiting::start(&machine, &cluster.url(1)).await;
    let (exit, shown, _) = as_admin(&["login", "show", &waiting.code]).await;
    assert!(
        exit == Some(0) && shown.ends_with(&format!("\nTEAM      ID\nresearch  {team}\n")),
        "{shown}"
    );
    let (exit, denied, _) = as_admin(&["login", "deny", &waiting.code]).await;
    assert_eq!((exit, denied), (Some(0), format!("Denied {}\n", waiting.code)));
    let (exit, printed, last) = waiting.end().await;
    assert_eq!(
        (exit, printed.as_str(), last.as_str()),
        (Some(1), "", "Error: Authorization denied.")
    );
    assert!(!machine.config_path().exists());
    let (exit, _, stderr) = as_admin(&["login", "show", "BBBB-BBBB"]).await;
    assert!(exit == Some(1) && stderr.ends_with("(404 Not Found)\n"), "{stderr}");

    let waiting = Waiting::start(&machine, &cluster.url(1)).await;
    let (exit, approved, stderr) = as_admin(&["login", "approve", &waiting.code]).await;
    assert_eq!(exit, Some(0), "{stderr}");
    assert!(
        approved.ends_with(&format!("  team:        research ({team})\n  permissions: write\n")),
        "{approved}"
    );
    let (exit, _, last) = waiting.end().await;
    assert_eq!(exit, Some(0), "{last}");
    send(&machine, "t-3", "from the machine").await;
}
