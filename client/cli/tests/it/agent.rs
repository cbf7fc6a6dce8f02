//! `kite agent register|send|listen`: requests, output and exit codes, word for word.

use agentpost_testkit::ports::refusing_url;
use agentpost_testkit::scripted_server::{ScriptedServer, Step};
use serde_json::json;

use crate::common::{User, parts};

fn say(frame: serde_json::Value) -> Step {
    Step::Say(frame.to_string())
}

fn event(seq: u64, data: serde_json::Value) -> Step {
    say(json!({"type": "event", "seq": seq, "event": {
        "specversion": "1.0", "id": format!("event-{seq}"), "type": "com.kite.agent.message",
        "source": "https://getkite.sh/agents/agent-beta", "datacontenttype": "application/json",
        "time": "2026-04-30T10:00:00.000Z", "data": data, "kiteseq": seq, "kitesummary": "s",
    }}))
}

fn ack(seq: u64) -> Step {
    Step::Hear(json!({"type": "ack", "seq": seq}))
}

#[tokio::test]
async fn register_writes_the_slug_and_tells_the_address() {
    let user = User::new();
    let output = user.kite(&["agent", "register", "--name", "Agent Alpha"]).await;
    let expected = "Registered agent\n  name: Agent Alpha\n  id:   agent-alpha\n\n\
                    Other agents on your team can address this agent with:\n  \
                    kite agent send --to agent-alpha \"<message>\"\n";
    assert_eq!(parts(&output), (Some(0), expected.to_owned(), String::new()));
    let file: toml::Table = std::fs::read_to_string(user.config_path()).unwrap().parse().unwrap();
    assert_eq!(
        file,
        "[agent]\nid = \"agent-alpha\"\nname = \"Agent Alpha\"\n"
            .parse()
            .unwrap()
    );
}

#[tokio::test]
async fn register_without_a_name_makes_a_uuid() {
    let user = User::new();
    let (code, stdout, stderr) = parts(&user.kite(&["agent", "register"]).await);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    let id = stdout.lines().nth(1).unwrap().strip_prefix("  id:   ").unwrap();
    assert_eq!(uuid::Uuid::parse_str(id).unwrap().get_version_num(), 7);
    let send = format!("  kite agent send --to {id} \"<message>\"");
    assert_eq!(stdout.lines().nth(4), Some(send.as_str()));
}

#[tokio::test]
async fn register_follows_xdg_config_home_and_refuses_a_name_without_letters() {
    let user = User::new();
    let elsewhere = user.home.path().join("xdg");
    let user = user.with("XDG_CONFIG_HOME", elsewhere.to_str().unwrap());
    let output = user.kite(&["agent", "register", "--name", "!!!"]).await;
    let error = "Error: Agent name must contain at least one alphanumeric character\n";
    assert_eq!(parts(&output), (Some(1), String::new(), error.to_owned()));
    assert!(!elsewhere.exists());
    assert_eq!(
        user.kite(&["agent", "register", "--name", "a"]).await.status.code(),
        Some(0)
    );
    assert!(elsewhere.join("kite/config.toml").exists() && !user.config_path().exists());
}

#[tokio::test]
async fn send_posts_the_message_and_prints_its_id() {
    let server = ScriptedServer::start().await;
    server.answer(200, json!({"id": "0192-id", "created_at": "x"}).to_string());
    let user = User::of(&server.base);
    let args = [
        "agent",
        "send",
        "--to",
        "agent-alpha",
        "--from",
        "agent-beta",
        "--thread",
        "t-1",
        "--reply-to",
        "r-1",
    ];
    let output = user.kite(&[&args[..], &["Re: those results"]].concat()).await;
    let expected = "Sent agent message\n  from: agent-beta\n  to:   agent-alpha\n  id:   0192-id\n";
    assert_eq!(parts(&output), (Some(0), expected.to_owned(), String::new()));

    let seen = &server.seen()[0];
    assert_eq!(seen.path, "/api/v1/agents/messages?team_id=team_1");
    assert_eq!(
        (seen.method.as_str(), seen.header("authorization")),
        ("POST", "Bearer kite_key")
    );
    assert_eq!(seen.header("content-type"), "application/json");
    let body = json!({"from": "agent-beta", "to": "agent-alpha", "body": "Re: those results", "thread_id": "t-1",
                      "reply_to_id": "r-1"});
    assert_eq!(seen.json(), body);
}

#[tokio::test]
async fn send_as_the_registered_agent_with_the_servers_of_the_file() {
    let server = ScriptedServer::start().await;
    server.answer(202, "").answer(200, "{}");
    let user = User::new();
    std::fs::create_dir_all(user.config_path().parent().unwrap()).unwrap();
    let file = format!(
        "[auth]\napi_key = \"k\"\nteam_id = \"clerk-user:a&b\"\n[server]\nurl = \"{}\"\n",
        server.ws_url()
    );
    std::fs::write(user.config_path(), file).unwrap();
    user.kite(&["agent", "register", "--name", "agent-beta"]).await;

    let expected = "Sent agent message\n  from: agent-beta\n  to:   agent-alpha\n";
    for args in [
        &["agent", "send", "--to", "agent-alpha", "hi"][..],
        &["agent", "send", "--from", "--to", "agent-alpha", "hi"],
    ] {
        let output = user.kite(args).await;
        assert_eq!(
            parts(&output),
            (Some(0), expected.to_owned(), String::new()),
            "{args:?}"
        );
    }
    let seen = &server.seen()[0];
    assert_eq!(
        seen.json(),
        json!({"from": "agent-beta", "to": "agent-alpha", "body": "hi"})
    );
    assert!(seen.path.ends_with("?team_id=clerk-user%3Aa%26b"), "{}", seen.path);
}

#[tokio::test]
async fn send_shows_a_refusal_with_its_raw_body() {
    let server = ScriptedServer::start().await;
    server.answer(403, "{\"error\":\"the key lacks write\"}");
    let output = User::of(&server.base)
        .kite(&["agent", "send", "--to", "a", "--from", "b", "x"])
        .await;
    let error = "Error: send failed (403 Forbidden): {\"error\":\"the key lacks write\"}\n";
    assert_eq!(parts(&output), (Some(1), String::new(), error.to_owned()));
    assert_eq!(server.seen().len(), 1, "a refusal is final");
}

#[tokio::test]
async fn send_turns_to_another_node_and_repeats_under_one_key() {
    let (first, second) = (ScriptedServer::start().await, ScriptedServer::start().await);
    first.answer(504, "{\"error\":\"outcome unknown\"}");
    second.answer(200, "{\"id\":\"i\"}");
    let user = User::of(&format!("{} {} {}", refusing_url(), first.base, second.base));
    let output = user.kite(&["agent", "send", "--to", "a", "--from", "b", "x"]).await;
    let expected = "Sent agent message\n  from: b\n  to:   a\n  id:   i\n";
    assert_eq!(parts(&output), (Some(0), expected.to_owned(), String::new()));
    let key = |server: &ScriptedServer| server.seen()[0].header("idempotency-key").to_owned();
    assert_eq!(key(&first), key(&second));
    assert!(!key(&first).is_empty());
}

#[tokio::test]
async fn missing_settings_are_reported_in_the_guides_words() {
    let error = |sentence: &str| (Some(1), String::new(), format!("Error: {sentence}\n"));
    let send = ["agent", "send", "--to", "a", "x"];
    let user = User::new();
    let no_key = error("No API key configured. Run `kite login` first.");
    assert_eq!(parts(&user.kite(&send).await), no_key);
    assert_eq!(parts(&user.kite(&["agent", "listen"]).await), no_key);

    let user = User::of("http://127.0.0.1:1");
    let no_agent = error("No agent registered. Run `kite agent register` first.");
    assert_eq!(parts(&user.kite(&["agent", "listen"]).await), no_agent);
    assert_eq!(
        parts(&user.kite(&["agent", "send", "--to", "a", "x", "--from"]).await),
        no_agent
    );
    let no_sender = error(
        "No --from agent id specified and no local agent registered. Run `kite agent register` first or pass --from <id>.",
    );
    assert_eq!(parts(&user.kite(&send).await), no_sender);
}

#[tokio::test]
async fn usage_errors_end_with_2_and_help_with_0() {
    let user = User::new();
    for args in [
        &["agent", "send", "x"][..],
        &["agent", "send", "--to", "a"],
        &["agent", "fly"],
        &["--nonsense"],
        &[],
    ] {
        let (code, stdout, stderr) = parts(&user.kite(args).await);
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{args:?}");
        assert!(stderr.contains("Usage: kite"), "{stderr}");
    }
    for args in [
        &["--help"][..],
        &["agent", "--help"],
        &["agent", "send", "--help"],
        &["agent", "listen", "-V"],
    ] {
        assert_eq!(user.kite(args).await.status.code(), Some(0), "{args:?}");
    }
}

#[tokio::test]
async fn listen_prints_mail_acknowledges_it_and_ends_when_the_key_is_rejected() {
    let server = ScriptedServer::start().await;
    let mail = |body: &str| json!({"from": "agent-beta", "to": "agent-alpha", "body": body});
    let replied = json!({"from": "agent-beta", "to": "agent-alpha", "body": "two\nlines\u{1b}[31m", "thread_id": "t-1",
                         "reply_to_id": "event-1"});
    let foreign = json!({"from": "agent-beta", "to": "Agent-Alpha", "body": "case matters"});
    server.session(vec![
        say(json!({"type": "connected", "last_seq": 5, "client_id": "c"})),
        say(json!({"type": "quota_snapshot", "provider": "p", "events_used": 1, "events_limit": 2, "current_period_end": ""})),
        event(6, mail("Here are the results you asked for.")),
        ack(6),
        event(7, replied),
        event(8, foreign),
        say(json!({"type": "news", "of": "the future"})),
        ack(7),
        ack(8),
    ]);
    server.session(vec![
        say(json!({"type": "connected", "last_seq": 7, "client_id": "d"})),
        say(json!({"type": "cursor_expired", "oldest_available_seq": 9, "message": "m"})),
        event(
            8,
            json!({"from": "agent-beta", "to": "agent-alpha", "body": "now addressed"}),
        ),
        ack(8),
        event(7, mail("seen before, hence not printed again")),
        ack(7),
        Step::Hang,
    ]);
    server.session(vec![say(
        json!({"type": "error", "code": 4001, "message": "key revoked"}),
    )]);

    let user = User::of("").with("KITE_WS_URL", &server.ws_url());
    user.kite(&["agent", "register", "--name", "agent-alpha"]).await;
    let (code, stdout, stderr) = parts(&user.kite(&["agent", "listen"]).await);
    let expected = "[event-6] agent-beta → agent-alpha: Here are the results you asked for.\n\
                    [event-7] agent-beta → agent-alpha thread=t-1 reply_to=event-1: two\\nlines\\u{1b}[31m\n\
                    [event-8] agent-beta → agent-alpha: now addressed\n";
    assert_eq!((code, stdout.as_str()), (Some(1), expected));
    let lines: Vec<&str> = stderr.lines().collect();
    let connecting = format!("Connecting to {}...", server.ws_url());
    assert_eq!(
        lines[..3],
        [
            "Listening as agent `agent-alpha` (team team_1)",
            &connecting,
            "Connected (last_seq: 5)"
        ]
    );
    assert_eq!(
        lines[3..6],
        [
            "Disconnected: the server closed the connection",
            "Reconnecting in 1s...",
            "Connected (last_seq: 7)"
        ]
    );
    assert_eq!(
        lines[6],
        "Some mail was removed before it was read; continuing at seq 9"
    );
    assert!(lines[7].starts_with("Disconnected: "), "{}", lines[7]);
    assert_eq!(
        lines[8..],
        [
            "Reconnecting in 1s...",
            "Connection failed: Server error (4001): key revoked",
            "Error: Server error (4001): key revoked"
        ]
    );
    let hello = json!({"type": "connect", "version": 1, "token": "kite_key", "team_id": "team_1",
                       "scopes": ["agent_to:agent-alpha"], "client_id": null});
    assert_eq!(server.hellos(), [hello.clone(), hello.clone(), hello]);
}

#[tokio::test]
async fn listen_prints_cloudevents_with_json_and_moves_to_the_next_node() {
    let (first, second) = (ScriptedServer::start().await, ScriptedServer::start().await);
    first.session(vec![say(json!({"type": "error", "code": 4002, "message": "not now"}))]);
    second.session(vec![
        say(json!({"type": "connected", "last_seq": 0, "client_id": "c"})),
        event(1, json!({"to": "x", "from": "agent-beta", "body": "two\nlines"})),
        ack(1),
        say(json!({"type": "error", "code": 4001, "message": "key revoked"})),
    ]);
    let user = User::of(&format!("{} {}", first.base, second.base));
    let (code, stdout, stderr) = parts(&user.kite(&["agent", "listen", "--as-id", "x", "--json"]).await);
    let expected = "{\"specversion\":\"1.0\",\"id\":\"event-1\",\"type\":\"com.kite.agent.message\",\
                    \"source\":\"https://getkite.sh/agents/agent-beta\",\"datacontenttype\":\"application/json\",\
                    \"time\":\"2026-04-30T10:00:00.000Z\",\"data\":{\"body\":\"two\\nlines\",\"from\":\"agent-beta\",\
                    \"to\":\"x\"},\"kiteseq\":1,\"kitesummary\":\"s\"}\n";
    assert_eq!((code, stdout.as_str()), (Some(1), expected));
    let expected = format!(
        "Listening as agent `x` (team team_1)\nConnecting to {}...\n\
         Connection failed: Server error (4002): not now\nConnecting to {}...\nConnected (last_seq: 0)\n\
         Error: Server error (4001): key revoked\n",
        first.ws_url(),
        second.ws_url()
    );
    assert_eq!(stderr, expected);
}

#[tokio::test]
async fn variables_may_stand_in_a_file_of_the_folder() {
    let server = ScriptedServer::start().await;
    server.answer(200, "{\"id\":\"i\"}");
    let user = User::new();
    let file = format!(
        "KITE_API_KEY=\"from-file\"\nexport KITE_TEAM_ID=t\nKITE_HOOK_BASE_URL={}/\n",
        server.base
    );
    std::fs::write(user.home.path().join(".env"), file).unwrap();
    let output = user.kite(&["agent", "send", "--to", "a", "--from", "b", "x"]).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(server.seen()[0].header("authorization"), "Bearer from-file");
}
