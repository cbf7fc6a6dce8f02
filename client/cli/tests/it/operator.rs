//! `agentpost` against a scripted server: requests and output, word for word.

use std::process::{Output, Stdio};

use agentpost::Agentpost;
use agentpost::http::Request;
use agentpost::retry::RetryPolicy;
use agentpost_testkit::PATIENCE;
use agentpost_testkit::scripted_server::ScriptedServer;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::common::parts;

const TEAM: &str = "team_00000000000000000000000000000001";

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_agentpost"));
    command.args(args).env_clear().kill_on_drop(true);
    command
}

async fn agentpost(server: &ScriptedServer, args: &[&str]) -> Output {
    let output = command(args)
        .env("AGENTPOST_URLS", &server.base)
        .env("AGENTPOST_ADMIN_KEY", "admin")
        .output();
    tokio::time::timeout(PATIENCE, output)
        .await
        .expect("agentpost did not end")
        .unwrap()
}

/// Method and path of each request.
fn asked(server: &ScriptedServer) -> Vec<String> {
    let seen = server.seen();
    assert!(seen.iter().all(|seen| seen.header("authorization") == "Bearer admin"));
    seen.iter()
        .map(|seen| format!("{} {}", seen.method, seen.path))
        .collect()
}

fn delivery(id: &str, attempts: Value) -> Value {
    json!({
        "id": id, "state": "dead", "end": "exhausted", "messageId": "msg_1", "fromAgentId": "a", "toAgentId": "b",
        "topic": "t", "subscriptionId": null, "attempts": attempts, "attemptCount": 4, "step": 3, "due": null,
        "dueInMs": null, "url": "http://h/hook", "createdAt": "2026-04-30T10:00:00.000Z",
        "endedAt": "2026-04-30T10:01:51.000Z", "redrivenAs": null, "redriveOf": null,
    })
}

fn page(deliveries: &[Value], cursor: &str) -> String {
    json!({"success": true, "deliveries": deliveries, "cursor": cursor}).to_string()
}

fn team(limits: Value) -> Value {
    json!({"id": TEAM, "name": "research", "limits": limits, "strict_recipients": false})
}

fn limits() -> Value {
    json!({"daily_sends": 5000, "daily_reads": 10000, "daily_webhook_registrations": 100, "monthly_events": 0,
           "overage_price_atomic": null})
}

#[tokio::test]
async fn every_error_begins_with_the_same_word() {
    for (args, code, start) in [
        (&["team", "creat"][..], 2, "Error: unrecognized subcommand 'creat'\n"),
        (
            &["team", "list", "--yaml"],
            2,
            "Error: unexpected argument '--yaml' found\n",
        ),
        (&["team", "list"], 1, "Error: no admin key: "),
    ] {
        let (exit, stdout, stderr) = parts(&command(args).output().await.unwrap());
        assert_eq!((exit, stdout.as_str()), (Some(code), ""), "{args:?}");
        assert!(stderr.starts_with(start), "{stderr}");
    }
    let (exit, _, stderr) = parts(&command(&["team"]).output().await.unwrap());
    assert_eq!(exit, Some(2));
    assert!(stderr.starts_with("Create and list teams"), "{stderr}");
}

#[tokio::test]
async fn signing_keys_are_shown_and_rotated() {
    let server = ScriptedServer::start().await;
    let pair = |current: &str, next: &str| json!({"current": current, "next": next}).to_string();
    server
        .answer(200, pair("sig_1", "sig_2"))
        .answer(200, pair("sig_2", "sig_3"));
    let output = agentpost(&server, &["signing-keys", "show", "--team", TEAM]).await;
    let expected = "Signing keys\n  current: sig_1\n  next:    sig_2\n";
    assert_eq!(parts(&output), (Some(0), expected.to_owned(), String::new()));
    let output = agentpost(&server, &["signing-keys", "rotate", "--team", TEAM, "--json"]).await;
    let (code, stdout, stderr) = parts(&output);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    let keys: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(keys, json!({"current": "sig_2", "next": "sig_3"}));
    let path = format!("/admin/v1/teams/{TEAM}/signing-keys");
    assert_eq!(asked(&server), [format!("GET {path}"), format!("POST {path}/rotate")]);
}

#[tokio::test]
async fn a_rotation_of_unknown_outcome_is_not_repeated() {
    let server = ScriptedServer::start().await;
    server.answer(504, json!({"error": "outcome unknown"}).to_string());
    let output = agentpost(&server, &["signing-keys", "rotate", "--team", TEAM]).await;
    let (code, stdout, stderr) = parts(&output);
    assert_eq!((code, stdout.as_str()), (Some(1), ""));
    assert!(stderr.starts_with("Error: outcome unknown: "), "{stderr}");
    assert_eq!(asked(&server).len(), 1);
}

#[tokio::test]
async fn a_promotion_is_asked_for_until_the_learner_has_caught_up() {
    let server = ScriptedServer::start().await;
    let lags = |n: u64| json!({"error": format!("node 4 lags by {n} entries")}).to_string();
    let member = json!({"id": 4, "peer_addr": "h:1", "url": "http://h:2"}).to_string();
    server
        .answer(409, lags(2000))
        .answer(409, lags(2000))
        .answer(409, lags(1500))
        .answer(200, &member[..]);
    let (code, stdout, stderr) = parts(&agentpost(&server, &["cluster", "promote", "4"]).await);
    assert_eq!((code, stdout.as_str()), (Some(0), "Node 4 is a voter\n"));
    let waited = "Waiting: node 4 lags by 2000 entries\nWaiting: node 4 lags by 1500 entries\n";
    assert_eq!(stderr, waited, "news only");
    assert_eq!(asked(&server), ["POST /admin/v1/cluster/members/4/promote"; 4]);
}

#[tokio::test]
async fn deliveries_are_listed_page_by_page_until_the_cursor_repeats() {
    let server = ScriptedServer::start().await;
    server
        .answer(200, page(&[delivery("dlv_1", json!(4))], "c1"))
        // The server has examined a part of the events, found none, and names the next page.
        .answer(200, page(&[], "c2"))
        .answer(200, page(&[delivery("dlv_2", json!(4))], "c3"))
        .answer(200, page(&[], "c3"));
    let args = ["deliveries", "list", "--team", TEAM, "--state", "dead"];
    let (code, stdout, stderr) = parts(&agentpost(&server, &args).await);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    let lines: Vec<&str> = stdout.lines().collect();
    assert_eq!(lines.len(), 3, "{stdout}");
    assert!(
        lines[1].starts_with("dlv_1  dead (exhausted)         4     3"),
        "{stdout}"
    );
    assert!(
        lines[2].starts_with("dlv_2") && lines[2].ends_with("http://h/hook"),
        "{stdout}"
    );
    let path = format!("GET /admin/v1/deliveries?team={TEAM}&state=dead&order=desc");
    assert_eq!(
        asked(&server),
        [
            format!("{path}&limit=50"),
            format!("{path}&cursor=c1&limit=49"),
            format!("{path}&cursor=c2&limit=49"),
            format!("{path}&cursor=c3&limit=48"),
        ]
    );
}

#[tokio::test]
async fn a_delivery_is_shown_and_redriven() {
    let server = ScriptedServer::start().await;
    let attempt = json!({"number": 4, "step": 3, "end": "failed", "status": 500, "error": "status", "tookMs": 3});
    let reply = json!({"success": true, "delivery": delivery("dlv_1", json!([attempt]))});
    let redriven = json!({"success": true, "deliveryId": "dlv_9"}).to_string();
    server
        .answer(200, reply.to_string())
        .answer(200, &redriven[..])
        .answer(409, json!({"error": "the delivery is not dead"}).to_string());
    let (code, stdout, stderr) = parts(&agentpost(&server, &["deliveries", "show", "dlv_1", "--team", TEAM]).await);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert!(stdout.contains("\n  state:        dead (exhausted)\n"), "{stdout}");
    assert!(
        stdout.contains("\n      4     3  failed     500  status        3  -        -\n"),
        "{stdout}"
    );
    // The first redrive succeeds and is printed, the second is refused.
    let args = ["deliveries", "redrive", "dlv_1", "dlv_2", "--team", TEAM];
    let (code, stdout, stderr) = parts(&agentpost(&server, &args).await);
    assert_eq!((code, stdout.as_str()), (Some(1), "Redriven dlv_1\n  as: dlv_9\n"));
    assert_eq!(stderr, "Error: the delivery is not dead (409 Conflict)\n");
    assert_eq!(
        asked(&server),
        [
            format!("GET /admin/v1/deliveries/dlv_1?team={TEAM}"),
            format!("POST /admin/v1/deliveries/dlv_1/redrive?team={TEAM}"),
            format!("POST /admin/v1/deliveries/dlv_2/redrive?team={TEAM}"),
        ]
    );
}

#[tokio::test]
async fn limits_are_shown_and_only_those_named_are_set() {
    let server = ScriptedServer::start().await;
    let teams = json!({"teams": [team(limits())]}).to_string();
    let changed = team(limits()).to_string();
    server
        .answer(200, &teams[..])
        .answer(200, &teams[..])
        .answer(200, changed);
    let shown = "  sends of an agent per day:                 5000\n  \
                   inbox reads of an agent per day:           10000\n  \
                   webhook registrations of an agent per day: 100\n  \
                   events of the team per month:              unlimited\n  \
                   price of an event beyond, atomic units:    refused\n";
    let output = agentpost(&server, &["team", "limits", "show", "research"]).await;
    assert_eq!(
        parts(&output),
        (Some(0), format!("Limits of team research\n{shown}"), String::new())
    );
    let args = [
        "team",
        "limits",
        "set",
        "research",
        "--daily-sends",
        "5000",
        "--no-overage",
    ];
    let output = agentpost(&server, &args).await;
    let expected = format!("Changed the limits of team research\n{shown}");
    assert_eq!(parts(&output), (Some(0), expected, String::new()));
    let seen = server.seen();
    let patch = &seen[2];
    assert_eq!(
        (patch.method.as_str(), &patch.path[..]),
        ("PATCH", &*format!("/admin/v1/teams/{TEAM}"))
    );
    assert_eq!(
        patch.json(),
        json!({"limits": {"daily_sends": 5000, "overage_price_atomic": null}})
    );
    let (code, _, stderr) = parts(&agentpost(&server, &["team", "limits", "set", "research"]).await);
    assert!(
        code == Some(1) && stderr.starts_with("Error: no limit given"),
        "{stderr}"
    );
    assert_eq!(server.seen().len(), 3);
}

fn waiting(teams: &[(&str, &str)]) -> String {
    let teams: Vec<Value> = teams.iter().map(|(id, name)| json!({"id": id, "name": name})).collect();
    json!({"user_code": "BCDF-GHJK", "client": "kite 0.1.0 on laptop\u{1b}[2J", "expires_in": 475,
           "requested_at": "2026-04-30T10:00:00.000Z", "teams": teams})
    .to_string()
}

const WHO: &str = "Login BCDF-GHJK\n  device:  kite 0.1.0 on laptop\\u{1b}[2J\n  \
                   asked:   2 min 5 s ago (2026-04-30T10:00:00.000Z)\n  ends in: 7 min 55 s\n";
const APPROVED: &str = "Approved BCDF-GHJK\n  team:        research (team_1)\n  permissions: write\n";

fn approved() -> String {
    json!({"user_code": "BCDF-GHJK", "team": {"id": "team_1", "name": "research"}, "permissions": ["write"]})
        .to_string()
}

#[tokio::test]
async fn a_waiting_machine_is_shown_and_turned_away() {
    let server = ScriptedServer::start().await;
    let teams = [("team_1", "research"), ("team_22", "ops")];
    server
        .answer(200, waiting(&teams))
        .answer(200, waiting(&teams))
        .answer(200, "{\"success\":true}")
        .answer(404, json!({"error": "no machine waits with this code"}).to_string());
    let output = agentpost(&server, &["login", "show", "bcdfghjk"]).await;
    let expected = format!("{WHO}\nTEAM      ID\nresearch  team_1\nops       team_22\n");
    assert_eq!(parts(&output), (Some(0), expected, String::new()));
    let output = agentpost(&server, &["login", "show", "bcdfghjk", "--json"]).await;
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(shown, serde_json::from_str::<Value>(&waiting(&teams)).unwrap());
    let output = agentpost(&server, &["login", "deny", "BCDF-GHJK"]).await;
    assert_eq!(
        parts(&output),
        (Some(0), "Denied BCDF-GHJK\n".to_owned(), String::new())
    );
    let output = agentpost(&server, &["login", "deny", "BCDF-GHJK"]).await;
    let expected = "Error: no machine waits with this code (404 Not Found)\n".to_owned();
    assert_eq!(parts(&output), (Some(1), String::new(), expected));
    let lookup = "POST /admin/v1/login/lookup";
    let deny = "POST /admin/v1/login/deny";
    assert_eq!(asked(&server), [lookup, lookup, deny, deny]);
    assert_eq!(server.seen()[0].json(), json!({"user_code": "bcdfghjk"}));
    assert_eq!(server.seen()[2].json(), json!({"user_code": "BCDF-GHJK"}));
}

#[tokio::test]
async fn a_machine_is_let_into_the_team_that_is_named_or_the_only_one() {
    let server = ScriptedServer::start().await;
    let own = waiting(&[("team_1", "research")]);
    let all = waiting(&[("team_1", "research"), ("team_2", "ops")]);
    for (waiting, args, team, permissions) in [
        (&own, &[][..], "team_1", json!(["write"])),
        (
            &all,
            &["--team", "ops", "--permissions", "read,admin"],
            "team_2",
            json!(["read", "admin"]),
        ),
        (&all, &["--team", "team_1", "--yes"], "team_1", json!(["write"])),
    ] {
        server.answer(200, &waiting[..]).answer(200, approved());
        let output = agentpost(&server, &[&["login", "approve", "BCDF-GHJK"], args].concat()).await;
        // stdin is no terminal, so the command asks no question.
        assert_eq!(
            parts(&output),
            (Some(0), APPROVED.to_owned(), WHO.to_owned()),
            "{args:?}"
        );
        let body = json!({"user_code": "BCDF-GHJK", "team": team, "permissions": permissions});
        assert_eq!(server.seen().last().unwrap().json(), body);
    }
    let count = server.seen().len();
    server.answer(200, &all[..]);
    let output = agentpost(&server, &["login", "approve", "BCDF-GHJK"]).await;
    let expected =
        "Error: this key can let the machine into 2 teams: name one with --team\n  research\n  ops\n".to_owned();
    assert_eq!(parts(&output), (Some(1), String::new(), expected));
    assert_eq!(server.seen().len(), count + 1, "nothing is approved");

    // The outcome is unknown, so the request is not repeated.
    server
        .answer(200, &own[..])
        .answer(504, json!({"error": "outcome unknown"}).to_string());
    let (code, stdout, stderr) = parts(&agentpost(&server, &["login", "approve", "BCDF-GHJK", "--json"]).await);
    assert_eq!((code, stdout.as_str()), (Some(1), ""));
    assert!(stderr.contains("\nError: outcome unknown: "), "{stderr}");
    assert_eq!(server.seen().len(), count + 3);
    for args in [
        &["login"][..],
        &["login", "approve"],
        &["login", "approve", "C", "--permissions", "all"],
    ] {
        assert_eq!(agentpost(&server, args).await.status.code(), Some(2), "{args:?}");
    }
}

/// Runs on a terminal that the command `script` provides.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn on_a_terminal_a_machine_is_let_in_only_after_a_yes() {
    use tokio::io::AsyncWriteExt;
    let server = ScriptedServer::start().await;
    for (flag, answer, code) in [("", "n\n", 1), ("", "\n", 1), ("", "yes\n", 0), ("--yes", "", 0)] {
        let before = server.seen().len();
        server.answer(200, waiting(&[("team_1", "research")]));
        if code == 0 {
            server.answer(200, approved());
        }
        let run = format!("'{}' login approve BCDF-GHJK {flag}", env!("CARGO_BIN_EXE_agentpost"));
        let mut terminal = Command::new("script")
            .args(["-q", "-e", "-c", &run, "/dev/null"])
            .env("AGENTPOST_URLS", &server.base)
            .env("AGENTPOST_ADMIN_KEY", "admin")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut keyboard = terminal.stdin.take().unwrap();
        keyboard.write_all(answer.as_bytes()).await.unwrap();
        let output = tokio::time::timeout(PATIENCE, terminal.wait_with_output())
            .await
            .expect("it did not end")
            .unwrap();
        let screen = String::from_utf8(output.stdout).unwrap().replace('\r', "");
        assert_eq!(output.status.code(), Some(code), "{screen}");
        let question = screen.contains("Let it in into research with write? [y/N] ");
        assert_eq!(question, flag.is_empty(), "{screen}");
        assert_eq!(screen.contains(APPROVED), code == 0, "{screen}");
        assert_eq!(server.seen().len() - before, if code == 0 { 2 } else { 1 });
    }
}

#[tokio::test]
async fn a_webhook_listens_answers_as_told_and_ends_after_its_count() {
    let args = [
        "webhook", "listen", "--port", "0", "--answer", "500,200", "--count", "2",
    ];
    let mut listener = command(&args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut notes = BufReader::new(listener.stderr.take().unwrap()).lines();
    let note = tokio::time::timeout(PATIENCE, notes.next_line())
        .await
        .unwrap()
        .unwrap();
    let base = note.unwrap().strip_prefix("Listening at ").unwrap().to_owned();
    let post = Agentpost::builder(&base).retry(RetryPolicy::once()).build().unwrap();
    let client = post.http();
    let hook = Request::post("/hook")
        .json(&json!({"event": "message.received", "fromAgentId": "a", "toAgentId": "b", "body": {"text": "hi"}}))
        .unwrap();
    let refused = client.request(&hook).await.unwrap_err();
    assert_eq!(refused.answer().unwrap().status, 500);
    assert_eq!(client.request(&hook).await.unwrap().status, 200);
    let output = tokio::time::timeout(PATIENCE, listener.wait_with_output())
        .await
        .unwrap()
        .unwrap();
    let line = |answer: &str| {
        format!("[-] attempt -, not verified, answered {answer}: message.received a → b: {{\"text\":\"hi\"}}\n")
    };
    let (code, stdout, _) = parts(&output);
    assert_eq!((code, stdout), (Some(0), line("500") + &line("200")));
}
