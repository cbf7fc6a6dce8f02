//! `kite login` against a scripted server: its requests, its output and the configuration file.

use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use agentpost_testkit::PATIENCE;
use agentpost_testkit::ports::refusing_url;
use agentpost_testkit::scripted_server::ScriptedServer;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::common::{User, parts};

const SECRET: &str = "kite_0011aabb_00112233445566778899aabbccddeeff";

/// A code that expires after ten minutes.
fn code(server: &ScriptedServer) -> Value {
    json!({"device_code": "dev-1", "user_code": "BCDF-GHJK", "verification_url": format!("{}/activate", server.base),
           "verification_url_complete": format!("{}/activate?code=BCDF-GHJK", server.base),
           "ws_url": server.ws_url(), "interval": 1, "expires_in": 600})
}

fn said(error: &str) -> String {
    json!({"error": error}).to_string()
}

fn key() -> String {
    json!({"api_key": SECRET, "team_id": "team_1"}).to_string()
}

fn write_config(user: &User, text: &str) {
    std::fs::create_dir_all(user.config_path().parent().unwrap()).unwrap();
    std::fs::write(user.config_path(), text).unwrap();
}

fn table(text: &str) -> toml::Table {
    text.parse().unwrap()
}

fn written(user: &User) -> toml::Table {
    table(&std::fs::read_to_string(user.config_path()).unwrap())
}

#[tokio::test]
async fn a_code_is_shown_and_the_key_goes_into_the_file() {
    let server = ScriptedServer::start().await;
    server
        .answer(200, code(&server).to_string())
        .answer(400, said("authorization_pending"))
        .answer(200, key());
    let user = User::new();
    let output = user.kite(&["login", "--server", &server.base]).await;
    let expected = format!("Logged in\n  team:   team_1\n  server: {}\n", server.base);
    let notes = format!(
        "Open {base}/activate and enter the code BCDF-GHJK\nor open {base}/activate?code=BCDF-GHJK\n\
         Waiting for approval; the code ends in 10 minutes...\n",
        base = server.base
    );
    assert_eq!(parts(&output), (Some(0), expected, notes));

    let file = format!(
        "[auth]\napi_key = \"{SECRET}\"\nteam_id = \"team_1\"\n[server]\nurl = \"{}\"\nhttp_base = \"{}\"\n",
        server.ws_url(),
        server.base
    );
    assert_eq!(written(&user), table(&file));
    let mode = std::fs::metadata(user.config_path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let seen = server.seen();
    let asked: Vec<String> = seen
        .iter()
        .map(|seen| format!("{} {}", seen.method, seen.path))
        .collect();
    let poll = "POST /api/auth/device-token";
    assert_eq!(asked, ["POST /api/auth/device-code", poll, poll]);
    let client = seen[0].json()["client"].as_str().unwrap().to_owned();
    assert!(
        client.starts_with(concat!("kite ", env!("CARGO_PKG_VERSION"))),
        "{client}"
    );
    assert_eq!(seen[2].json(), json!({"device_code": "dev-1"}));
    assert!(seen.iter().all(|seen| seen.header("authorization").is_empty()));

    // The next command uses the login that was written.
    server.session_that_answers(true, json!({"team_id": "team_1", "keys": []}));
    let output = user.kite(&["keys", "list"]).await;
    let expected = "Team: team_1\nNo API keys configured.\n".to_owned();
    assert_eq!(parts(&output), (Some(0), expected, String::new()));
    assert_eq!(server.hellos()[0]["token"], SECRET);
}

#[tokio::test]
async fn a_server_that_tells_little_is_enough_and_the_login_before_is_replaced() {
    let server = ScriptedServer::start().await;
    // A short interval keeps this test short; the library's tests cover the default.
    let little = json!({"device_code": "d", "user_code": "AB\u{1b}[2J", "verification_url": "http://x/activate",
                        "interval": 1, "verification_url_complete": null, "news": 1});
    server
        .answer(200, little.to_string())
        // None of these answers decides the login.
        .answer(502, "<html>")
        .answer(404, "")
        .answer(200, key());
    let user = User::new().with("KITE_TEAM_ID", "other");
    write_config(
        &user,
        &format!(
            "top = 1\n[auth]\napi_key = \"old\"\nteam_id = \"old\"\nhook_token = \"h\"\n[agent]\nid = \"a\"\n\
             [server]\nurl = \"{}\"\n",
            server.ws_url()
        ),
    );
    let output = user.kite(&["login"]).await;
    let expected = format!("Logged in\n  team:   team_1\n  server: {}\n", server.base);
    let notes = "Open http://x/activate and enter the code AB\\u{1b}[2J\nWaiting for approval...\n\
                 The key that was configured before is replaced; it is not revoked.\n\
                 Still set, and used instead of what was written: KITE_TEAM_ID\n";
    assert_eq!(parts(&output), (Some(0), expected, notes.to_owned()));
    let file = format!(
        "top = 1\n[auth]\napi_key = \"{SECRET}\"\nteam_id = \"team_1\"\nhook_token = \"h\"\n[agent]\nid = \"a\"\n\
         [server]\nurl = \"{}\"\nhttp_base = \"{}\"\n",
        server.ws_url(),
        server.base
    );
    assert_eq!(written(&user), table(&file));
}

#[tokio::test]
async fn a_refusal_ends_it_and_the_file_stays() {
    let server = ScriptedServer::start().await;
    let user = User::new();
    write_config(&user, "[auth]\napi_key = \"old\"\n");
    let before = written(&user);
    for (status, answer, sentence) in [
        (403, said("access_denied"), "Authorization denied."),
        (
            400,
            said("expired_token"),
            "Device code expired. Please run `kite login` again.",
        ),
    ] {
        server.answer(200, code(&server).to_string()).answer(status, answer);
        let (code, stdout, stderr) = parts(&user.kite(&["login", "--server", &server.base]).await);
        assert_eq!((code, stdout.as_str()), (Some(1), ""));
        assert_eq!(stderr.lines().last(), Some(&*format!("Error: {sentence}")));
    }
    // The answer with the key was lost, and the code is used up.
    server
        .answer(200, code(&server).to_string())
        .answer(504, said("outcome unknown"))
        .answer(400, said("expired_token"));
    let (code, _, stderr) = parts(&user.kite(&["login", "--server", &server.base]).await);
    let sentence = "Error: the server's answer was lost on the way, and the key with it. Please run `kite login` again; \
                    `kite keys list` then shows the lost key, for revoking it.";
    assert_eq!((code, stderr.lines().last()), (Some(1), Some(sentence)));
    assert_eq!(written(&user), before);
}

#[tokio::test]
async fn without_a_code_there_is_no_login() {
    let server = ScriptedServer::start().await;
    server
        .answer(
            429,
            json!({"error": "too many codes", "retry_after_secs": 7}).to_string(),
        )
        .answer(200, "{}");
    let user = User::new();
    let output = user.kite(&["login", "--server", &server.base]).await;
    let expected = "Error: no code for a login: too many codes (429 Too Many Requests)\n".to_owned();
    assert_eq!(parts(&output), (Some(1), String::new(), expected));
    for (base, start) in [
        (
            &server.base[..],
            "Error: no code for a login: the server's answer is not of",
        ),
        (
            &refusing_url(),
            "Error: no code for a login: no node took the request: http://",
        ),
        (
            "post.example",
            "Error: `post.example` is not an http:// or https:// URL",
        ),
    ] {
        let (code, stdout, stderr) = parts(&user.kite(&["login", "--server", base]).await);
        assert_eq!((code, stdout.as_str()), (Some(1), ""));
        assert!(stderr.starts_with(start), "{stderr}");
    }
    assert!(!user.config_path().exists());
}

/// Runs `kite login` and does something else while it waits.
async fn meanwhile(user: &User, server: &ScriptedServer, deed: impl AsyncFnOnce()) -> (Option<i32>, String, String) {
    server.answer(200, code(server).to_string());
    let mut command = user.command(&["login", "--server", &server.base]);
    let login = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    agentpost_testkit::eventually("a second question", async || (server.seen().len() > 1).then_some(())).await;
    deed().await;
    server.answer(200, key());
    let output = tokio::time::timeout(PATIENCE, login.wait_with_output())
        .await
        .expect("kite did not end");
    parts(&output.unwrap())
}

#[tokio::test]
async fn edits_during_a_login_are_kept() {
    let server = ScriptedServer::start().await;
    let user = User::new();
    let register = async || drop(user.kite(&["agent", "register", "--name", "agent-alpha"]).await);
    let (code, _, stderr) = meanwhile(&user, &server, register).await;
    assert_eq!(code, Some(0), "{stderr}");
    let file = written(&user);
    assert_eq!(file["agent"]["id"].as_str(), Some("agent-alpha"));
    assert_eq!(file["auth"]["api_key"].as_str(), Some(SECRET));
}

#[tokio::test]
async fn a_key_that_cannot_be_kept_is_not_shown_but_told_of() {
    let server = ScriptedServer::start().await;
    let user = User::new();
    let (code, stdout, stderr) = meanwhile(&user, &server, async || write_config(&user, "[auth\n")).await;
    assert_eq!((code, stdout.as_str()), (Some(1), ""));
    let start = "Error: a key was made, but it is lost; `kite keys list` shows it to others, for revoking it: ";
    let error = stderr.lines().find(|line| line.starts_with("Error: ")).unwrap();
    assert!(error.starts_with(start) && !stderr.contains(SECRET), "{stderr}");
    assert_eq!(std::fs::read_to_string(user.config_path()).unwrap(), "[auth\n");
}

#[tokio::test]
async fn an_interrupt_leaves_everything_as_it_was() {
    let server = ScriptedServer::start().await;
    server.answer(200, code(&server).to_string());
    let user = User::new();
    write_config(&user, "[auth]\napi_key = \"old\"\n");
    let before = written(&user);
    let mut command = user.command(&["login", "--server", &server.base]);
    let mut login = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut notes = BufReader::new(login.stderr.take().unwrap()).lines();
    let next = async |notes: &mut tokio::io::Lines<_>| {
        tokio::time::timeout(PATIENCE, notes.next_line())
            .await
            .expect("no note in time")
            .unwrap()
    };
    while !next(&mut notes).await.unwrap().starts_with("Waiting for approval") {}
    // The second request shows that the wait has begun.
    agentpost_testkit::eventually("a second question", async || (server.seen().len() > 1).then_some(())).await;
    let interrupt = format!("kill -INT {}", login.id().unwrap());
    assert!(
        Command::new("sh")
            .args(["-c", &interrupt])
            .status()
            .await
            .unwrap()
            .success()
    );
    let error = next(&mut notes).await;
    assert_eq!(
        error.as_deref(),
        Some("Error: interrupted; this machine is as it was before")
    );
    let status = tokio::time::timeout(PATIENCE, login.wait())
        .await
        .expect("kite did not end");
    assert_eq!(status.unwrap().code(), Some(1));
    assert_eq!(written(&user), before);
    assert_eq!(
        std::fs::read_dir(user.config_path().parent().unwrap()).unwrap().count(),
        1
    );
}
