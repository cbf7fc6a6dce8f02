//! `kite stream`, and its loop that `kite agent listen` shares, word for word: scopes, output, acknowledgements, notes
//! about the session, and the end.

use agentpost_testkit::scripted_server::{ScriptedServer, Step, exists};
use serde_json::json;

use crate::common::process::Running;
use crate::common::steps::{REFUSED, connected, mail, of_type, refusal, say};
use crate::common::{User, parts};

/// Four events of three types. Each is acknowledged before the server sends the next one.
fn four_events() -> Vec<Step> {
    let events = [
        mail(1),
        of_type(2, "com.github.push", "https://getkite.sh/hooks/t/github"),
        of_type(3, "com.stripe.charge", "https://getkite.sh/hooks/t/agent-beta"),
        mail(4),
    ];
    let mut steps = vec![connected(0)];
    for (event, seq) in events.into_iter().zip(1..) {
        steps.extend([event, Step::Acked(seq)]);
    }
    steps.push(refusal());
    steps
}

/// Runs `kite stream` against [`four_events`]. Returns the requested scopes and the output.
async fn stream(args: &[&str]) -> (serde_json::Value, String) {
    let server = ScriptedServer::start().await;
    server.session(four_events());
    let user = User::of(&server.base).with("TZ", "UTC");
    let (code, stdout, stderr) = parts(&user.kite(&[&["stream"], args].concat()).await);
    let expected = format!(
        "Connecting to {}...\nConnected (last_seq: 0)\n{REFUSED}\n",
        server.ws_url()
    );
    assert_eq!((code, stderr), (Some(1), expected), "{args:?}");
    (server.hellos()[0]["scopes"].clone(), stdout)
}

const LINES: [&str; 4] = [
    "[10:00:00] #1 com.kite.agent.message  summary 1\n",
    "[10:00:00] #2 com.github.push  summary 2\n",
    "[10:00:00] #3 com.stripe.charge  summary 3\n",
    "[10:00:00] #4 com.kite.agent.message  summary 4\n",
];

#[tokio::test]
async fn the_server_is_asked_for_any_of_the_filters_and_all_of_them_have_to_fit() {
    let all: &[usize] = &[0, 1, 2, 3];
    for (args, scopes, shown) in [
        (&[][..], json!(["*"]), all),
        (&["--source", "github"], json!(["source:github"]), &[1]),
        (&["--source", "agent-beta"], json!(["source:agent-beta"]), &[0, 2, 3]),
        (&["--event-type", "kite.agent"], json!(["type:kite.agent"]), &[0, 3]),
        (&["--event-type", "Kite"], json!(["type:Kite"]), &[]),
        (
            &["--source", "agent-beta", "--event-type", "stripe"],
            json!(["source:agent-beta", "type:stripe"]),
            &[2],
        ),
        // `--source` also matches the type.
        (
            &["--source", "stripe", "--event-type", "charge"],
            json!(["source:stripe", "type:charge"]),
            &[2],
        ),
        (&["--importance", "low"], json!(["*"]), all),
        (&["--importance", "normal"], json!(["*"]), all),
    ] {
        let expected: String = shown.iter().map(|at| LINES[*at]).collect();
        assert_eq!(stream(args).await, (scopes, expected), "{args:?}");
    }
}

#[tokio::test]
async fn lines_are_summaries_or_whole_events() {
    let (_, compact) = stream(&["--compact", "--event-type", "kite"]).await;
    assert_eq!(compact, "summary 1\nsummary 4\n");
    let json = "{\"specversion\":\"1.0\",\"id\":\"event-2\",\"type\":\"com.github.push\",\
                \"source\":\"https://getkite.sh/hooks/t/github\",\"datacontenttype\":\"application/json\",\
                \"time\":\"2026-04-30T10:00:00.000Z\",\"data\":{\"body\":\"hello\",\"from\":\"agent-beta\",\
                \"to\":\"agent-alpha\"},\"kiteseq\":2,\"kitesummary\":\"summary 2\"}\n";
    for args in [
        &["--json", "--source", "github"][..],
        &["--json", "--compact", "--source", "github"],
    ] {
        assert_eq!(stream(args).await.1, json, "{args:?}");
    }
}

#[tokio::test]
async fn absent_fields_are_blank_and_non_events_are_skipped() {
    let bare = |seq, event| say(json!({"type": "event", "seq": seq, "event": event}));
    let steps = || {
        vec![
            connected(0),
            bare(
                1,
                json!({"id": "a", "type": "t", "time": "2026-04-30T23:30:00+00:00", "kitesummary": 5}),
            ),
            bare(2, json!({"id": "b", "kitesummary": "no type"})),
            bare(3, json!("no object")),
            bare(
                4,
                json!({"id": "c", "type": "two\nlines", "time": "2026-04-30T10:00:00Z", "kitesummary": "\u{1b}[2J"}),
            ),
            Step::Acked(4),
            refusal(),
        ]
    };
    let server = ScriptedServer::start().await;
    server.session(steps()).session(steps());
    let user = User::of(&server.base).with("TZ", "<+05>-5");
    let (_, stdout, _) = parts(&user.kite(&["stream"]).await);
    assert_eq!(stdout, "[04:30:00] #1 t  \n[15:00:00] #4 two\\nlines  \\u{1b}[2J\n");
    let (_, stdout, _) = parts(&user.kite(&["stream", "--compact"]).await);
    assert_eq!(stdout, "t\n\\u{1b}[2J\n");
}

#[tokio::test]
async fn arguments_that_no_server_accepts_are_refused_before_connecting() {
    let user = User::of("http://127.0.0.1:1");
    let long = "x".repeat(300);
    for args in [
        &["--source", ""][..],
        &["--source", &long],
        &["--event-type", &long],
        &["--client-id", ""],
        &["--client-id", "a\nb"],
        &["--client-id", &long],
        &["--exec", ""],
        &["--importance", "high"],
        &["--importance", "urgent"],
        &["more"],
    ] {
        let output = user.kite(&[&["stream"], args].concat()).await;
        assert_eq!(
            (output.status.code(), output.stdout.as_slice()),
            (Some(2), &b""[..]),
            "{args:?}"
        );
    }
    let output = user.kite(&["stream", "--importance", "critical"]).await;
    let (_, _, stderr) = parts(&output);
    assert!(
        stderr.contains("every event of this server has importance normal"),
        "{stderr}"
    );
    let (code, stdout, stderr) = parts(&user.kite(&["agent", "listen", "--as-id", "agent alpha"]).await);
    assert_eq!((code, stdout.as_str()), (Some(1), ""));
    assert!(stderr.starts_with("Error: `agent alpha` is no agent id: "), "{stderr}");
}

#[tokio::test]
async fn each_notice_of_a_session_is_one_line() {
    let server = ScriptedServer::start().await;
    let block = json!({"type": "billing_block", "provider": "agentpost", "reason": "used\nup", "retryable": true,
                       "action": {"type": "wait_or_raise_limit", "retry_after_secs": 5}});
    let quota = json!({"type": "quota_snapshot", "provider": "agentpost", "events_used": 2, "events_limit": 2,
                       "current_period_end": "2026-05-01T00:00:00Z"});
    let expired = json!({"type": "cursor_expired", "oldest_available_seq": 9, "message": "m"});
    let error = |code| say(json!({"type": "error", "code": code, "message": "why\nthen"}));
    server
        .session(vec![
            connected(3),
            say(quota),
            say(block),
            say(expired),
            mail(9),
            Step::Acked(9),
            error(4005),
        ])
        .session(vec![connected(9), error(4004)])
        .session(vec![error(4003)])
        .session(vec![connected(9), error(4001)]);
    let user = User::of(&server.base).with("TZ", "UTC");
    let (code, stdout, stderr) = parts(&user.kite(&["stream", "--client-id", "archive"]).await);
    assert_eq!(
        (code, stdout),
        (Some(1), LINES[0].replace('1', "9").replace("[90", "[10"))
    );
    let expected = format!(
        "Connecting to {}...\nConnected (last_seq: 3)\nThe team cannot send now, only receive: used\\nup\n\
         Some mail was removed before it was read; continuing at seq 9\n\
         Disconnected: Server error (4005): why\\nthen\nReconnecting in 1s...\n\
         Connected (last_seq: 9)\nDisconnected: slow consumer\nReconnecting in 1s...\n\
         Connection failed: Server error (4003): why\\nthen\nReconnecting in 2s...\nConnected (last_seq: 9)\n\
         Error: Server error (4001): why\\nthen\n",
        server.ws_url()
    );
    assert_eq!(stderr, expected);
    assert!(server.hellos().iter().all(|hello| hello["client_id"] == "archive"));
}

#[tokio::test]
async fn a_lost_node_is_followed_by_the_next_and_nothing_is_shown_twice() {
    let (first, second) = (ScriptedServer::start().await, ScriptedServer::start().await);
    first.session(vec![connected(0), mail(1), mail(2), Step::Acked(2), Step::Hang]);
    // The acknowledgements were lost with the first node.
    second.session(vec![
        connected(0),
        mail(1),
        Step::Acked(1),
        mail(2),
        mail(3),
        Step::Acked(3),
        Step::Hang,
    ]);
    first.session(vec![connected(3), refusal()]);
    let user = User::of(&format!("{} {}", first.base, second.base)).with("TZ", "UTC");
    let (code, stdout, stderr) = parts(&user.kite(&["stream", "--compact", "--client-id", "c"]).await);
    assert_eq!((code, stdout.as_str()), (Some(1), "summary 1\nsummary 2\nsummary 3\n"));
    let lines: Vec<&str> = stderr
        .lines()
        .filter(|line| !line.starts_with("Disconnected: "))
        .collect();
    let connecting = |stub: &ScriptedServer| format!("Connecting to {}...", stub.ws_url());
    let (first, second) = (connecting(&first), connecting(&second));
    assert_eq!(
        lines,
        [
            &first,
            "Connected (last_seq: 0)",
            "Reconnecting in 1s...",
            &second,
            "Connected (last_seq: 0)",
            "Reconnecting in 1s...",
            &first,
            "Connected (last_seq: 3)",
            REFUSED
        ]
    );
}

#[tokio::test]
async fn a_reader_that_has_enough_ends_it_quietly() {
    for args in [
        &["stream"][..],
        &["stream", "--json"],
        &["agent", "listen", "--as-id", "agent-alpha"],
    ] {
        let server = ScriptedServer::start().await;
        let closed = tempfile::tempdir().unwrap();
        let closed = closed.path().join("closed");
        server.session(vec![
            connected(0),
            mail(1),
            Step::Acked(1),
            Step::Await(closed.clone()),
            mail(2),
            Step::Gone,
        ]);
        let mut kite = Running::connected(&User::of(&server.base), args).await;
        kite.line().await;
        kite.close_stdout();
        std::fs::write(&closed, "").unwrap();
        assert_eq!(kite.ended().await.code(), Some(0), "{args:?}");
        assert_eq!(kite.rest_of_notes().await, [""; 0], "{args:?}");
    }
}

#[tokio::test]
async fn a_reader_that_stands_still_ends_neither_the_session_nor_the_process() {
    let body = "x".repeat(200 * 1024); // more than a pipe holds
    let big = json!({"type": "event", "seq": 1, "event": {"id": "i", "type": "t", "data": {"body": body}}});
    let folder = tempfile::tempdir().unwrap();
    let answered = folder.path().join("answered");
    let server = ScriptedServer::start().await;
    server.session(vec![
        connected(0),
        say(big),
        Step::Ping,
        Step::Touch(answered.clone()),
        Step::Gone,
    ]);
    let mut kite = Running::connected(&User::of(&server.base), &["stream", "--json"]).await;
    exists(&answered).await;
    kite.signal("TERM");
    assert_eq!(kite.ended().await.code(), Some(143));
    assert_eq!(kite.rest_of_notes().await, [""; 0]);
}

#[tokio::test]
async fn signals_end_it_and_its_session() {
    for (signal, code) in [("TERM", 143), ("INT", 130), ("HUP", 129)] {
        let folder = tempfile::tempdir().unwrap();
        let [acked, gone] = ["acked", "gone"].map(|name| folder.path().join(name));
        let server = ScriptedServer::start().await;
        server.session(vec![
            connected(0),
            mail(1),
            Step::Acked(1),
            Step::Touch(acked.clone()),
            Step::Gone,
            Step::Touch(gone.clone()),
        ]);
        let user = User::of(&server.base);
        let mut kite = Running::connected(&user, &["agent", "listen", "--as-id", "agent-alpha"]).await;
        exists(&acked).await;
        kite.signal(signal);
        assert_eq!(kite.ended().await.code(), Some(code));
        assert_eq!(kite.rest_of_notes().await, [""; 0]);
        exists(&gone).await;
    }
}

#[tokio::test]
async fn signals_that_the_caller_had_ignored_stay_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let signalled = folder.path().join("signalled");
    let server = ScriptedServer::start().await;
    server.session(vec![
        connected(0),
        Step::Await(signalled.clone()),
        mail(1),
        Step::Acked(1),
        Step::Gone,
    ]);
    let user = User::of(&server.base);
    // `nohup` ignores SIGHUP, and a script ignores SIGINT for commands that it starts with `&`.
    let mut shell = tokio::process::Command::new("sh");
    let kite = user.command(&[]);
    let variables = kite
        .as_std()
        .get_envs()
        .filter_map(|(name, value)| Some((name, value?)));
    shell
        .args([
            "-c",
            "trap '' HUP INT; exec \"$0\" stream --compact",
            env!("CARGO_BIN_EXE_kite"),
        ])
        .env_clear()
        .envs(variables)
        .current_dir(user.home.path())
        .kill_on_drop(true);
    let mut kite = Running::start(shell);
    kite.note_with("Connected (last_seq: 0)").await;
    kite.signal("HUP");
    kite.signal("INT");
    std::fs::write(&signalled, "").unwrap();
    assert_eq!(kite.line().await, "summary 1");
    kite.signal("TERM");
    assert_eq!(kite.ended().await.code(), Some(143));
}

#[tokio::test]
async fn help_teaches_with_examples_that_can_be_typed() {
    let user = User::new();
    let folder = std::path::Path::new(env!("CARGO_BIN_EXE_kite")).parent().unwrap();
    for args in [
        &["--help"][..],
        &["agent", "--help"],
        &["agent", "register", "--help"],
        &["agent", "listen", "--help"],
        &["agent", "send", "--help"],
        &["stream", "--help"],
    ] {
        let (code, help, _) = parts(&user.kite(args).await);
        assert_eq!(code, Some(0));
        assert!(help.lines().all(|line| line.chars().count() <= 120), "{help}");
        let examples: Vec<&str> = help.lines().filter(|line| line.starts_with("  kite ")).collect();
        assert!(examples.len() >= 2, "{help}");
        for example in examples {
            // The command alone, without its explanation and without a pipe; `--help` makes it harmless.
            let typed = example.trim().split("   ").next().unwrap().split(" | ").next().unwrap();
            let mut shell = tokio::process::Command::new("/bin/sh");
            shell.args(["-c", &format!("{typed} --help")]).env("PATH", folder);
            let output = shell.output().await.unwrap();
            assert!(output.status.success(), "{typed}: {output:?}");
        }
    }
}
