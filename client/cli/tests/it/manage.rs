//! `kite status|logs|keys` against a scripted server: requests and output, word for word.

use agentpost_testkit::ports::refusing_url;
use agentpost_testkit::scripted_server::{ScriptedServer, Step, greeting};
use serde_json::{Value, json};

use crate::common::{User, parts};

fn stats(permissions: Value) -> Value {
    json!({"team_id": "team_1", "webhooks_today": 42, "active_endpoints": 3, "active_api_keys": 2,
           "current_key_permissions": permissions, "plan_name": "self-hosted", "active_sources_limit": 1000})
}

fn event(seq: u64) -> Value {
    json!({"seq": seq, "created_at": "2026-04-30T10:00:00.000Z", "event": {
        "specversion": "1.0", "id": format!("event-{seq}"), "type": "com.kite.agent.message", "source": "s",
        "kitesummary": format!("[agent msg] b → a: number {seq}"),
    }})
}

fn lines(seqs: &[u64]) -> String {
    let line = |seq: &u64| {
        format!("#{seq} [2026-04-30T10:00:00.000Z] com.kite.agent.message - [agent msg] b → a: number {seq}\n")
    };
    seqs.iter().map(line).collect()
}

fn done(stdout: &str) -> (Option<i32>, String, String) {
    (Some(0), stdout.to_owned(), String::new())
}

fn error(text: &str) -> (Option<i32>, String, String) {
    (Some(1), String::new(), format!("Error: {text}\n"))
}

fn asked(method: &str, params: Value) -> (String, Value) {
    (method.to_owned(), params)
}

/// Runs a command against a server with one answer and returns its output.
async fn answered(ok: bool, payload: Value, args: &[&str]) -> (Option<i32>, String, String) {
    let server = ScriptedServer::start().await;
    server.session_that_answers(ok, payload);
    let printed = parts(&User::of(&server.base).kite(args).await);
    assert_eq!(server.requests().len(), 1, "{args:?}");
    printed
}

#[tokio::test]
async fn status_prints_where_this_machine_is_and_the_teams_numbers() {
    let server = ScriptedServer::start().await;
    server.session_that_answers(true, stats(json!(["read", "write"])));
    let output = User::of(&server.base).kite(&["status"]).await;
    let expected = format!(
        "Kite status\n- team_id: team_1\n- ws_url: {}\n- plan: self-hosted\n- webhooks_today: 42\n\
         - active_endpoints: 3\n- active_sources_limit: 1000\n- active_api_keys: 2\n\
         - current_key_permissions: read,write\n",
        server.ws_url()
    );
    assert_eq!(parts(&output), done(&expected));
    assert_eq!(server.requests(), [asked("dashboard.stats", json!({}))]);
    let hello = json!({"type": "connect", "version": 1, "token": "kite_key", "team_id": "team_1", "scopes": ["*"],
                       "client_id": null});
    assert_eq!(server.hellos(), [hello]);
}

#[tokio::test]
async fn without_a_login_every_command_says_so() {
    let user = User::new();
    for args in [
        &["status"][..],
        &["logs"],
        &["keys", "list"],
        &["keys", "create"],
        &["keys", "revoke", "--id", "key_1"],
    ] {
        let expected = error("No API key configured. Run `kite login` first.");
        assert_eq!(parts(&user.kite(args).await), expected, "{args:?}");
    }
}

#[tokio::test]
async fn a_rejected_key_and_a_dead_server_are_told_apart() {
    let server = ScriptedServer::start().await;
    let rejected = json!({"type": "error", "code": 4001, "message": "invalid API key for this team\u{1b}[2J"});
    server.session(vec![Step::Say(rejected.to_string())]);
    let output = User::of(&server.base).kite(&["status"]).await;
    let expected = error("Server error (4001): invalid API key for this team\\u{1b}[2J");
    assert_eq!(parts(&output), expected);

    let (code, stdout, stderr) = parts(&User::of(&refusing_url()).kite(&["status"]).await);
    assert_eq!((code, stdout.as_str()), (Some(1), ""));
    assert!(
        stderr.starts_with("Error: no node took the request: ws://127.0.0.1:"),
        "{stderr}"
    );
}

#[tokio::test]
async fn keys_are_listed_without_secrets_in_the_servers_order() {
    let key = |id: &str, name: Value, revoked: bool| {
        json!({"id": id, "name": name, "key_prefix": "kite_0011aabb", "revoked": revoked, "permissions": ["read"],
               "scopes": ["*"], "created_at": "2026-04-30T10:00:00.000Z"})
    };
    let list = json!({"team_id": "team_1", "keys": [key("key_2", json!("two\nlines"), false),
                      key("key_1", json!(null), true)]});
    let expected = "Team: team_1\n\
        - id=key_2 name=two\\nlines revoked=false key_prefix=kite_0011aabb created_at=2026-04-30T10:00:00.000Z\n\
        - id=key_1 name=- revoked=true key_prefix=kite_0011aabb created_at=2026-04-30T10:00:00.000Z\n";
    assert_eq!(answered(true, list, &["keys", "list"]).await, done(expected));
    let refused = json!({"error": "this key is bound to an agent"});
    let expected = error("this key is bound to an agent");
    assert_eq!(answered(false, refused, &["keys", "list"]).await, expected);
}

#[tokio::test]
async fn a_key_is_created_as_the_guide_says() {
    let server = ScriptedServer::start().await;
    let key = json!({"id": "key_9", "key_prefix": "kite_0011aabb", "api_key": "kite_0011aabb_secret"});
    for permissions in [json!(["admin"]), json!(["*"]), json!([]), Value::Null] {
        server
            .session_that_answers(true, stats(permissions))
            .session_that_answers(true, key.clone());
    }
    let user = User::of(&server.base);
    let expected = done(
        "Created API key:\n- id: key_9\n- key_prefix: kite_0011aabb\n- api_key (shown once): kite_0011aabb_secret\n",
    );
    let full = [
        "keys",
        "create",
        "--name",
        "build server",
        "--scopes",
        "agent_to:a,type:github",
        "--permissions",
        "read, write",
        "--expires-at",
        "2027-01-01T00:00:00Z",
    ];
    for args in [
        &["keys", "create", "--permissions", "write"][..],
        &full,
        &["keys", "create"],
        &["keys", "create"],
    ] {
        assert_eq!(parts(&user.kite(args).await), expected, "{args:?}");
    }
    let default =
        |permission: &str| json!({"name": null, "scopes": ["*"], "permissions": [permission], "expires_at": null});
    let requests = server.requests();
    let created: Vec<&Value> = requests.iter().skip(1).step_by(2).map(|(_, params)| params).collect();
    let chosen = json!({"name": "build server", "scopes": ["agent_to:a", "type:github"],
                        "permissions": ["read", "write"], "expires_at": "2027-01-01T00:00:00Z"});
    assert_eq!(
        created,
        [&default("write"), &chosen, &default("read"), &default("read")]
    );
    let methods: Vec<&str> = requests.iter().map(|(method, _)| method.as_str()).collect();
    assert_eq!(methods, ["dashboard.stats", "keys.create"].repeat(4));
}

#[tokio::test]
async fn admin_commands_report_the_missing_permission_before_they_ask() {
    for (args, command) in [
        (&["keys", "create"][..], "kite keys create"),
        (&["keys", "revoke", "--id", "key_1"], "kite keys revoke"),
    ] {
        let expected = error(&format!(
            "`{command}` needs a key with the permission admin; the key of this machine has read,write.\n\
             Ask an administrator of the team for such a key and set KITE_API_KEY to it, or run `kite login` again and \
             have it approved with the permission admin.\n\
             `kite status` shows what a key may do."
        ));
        let printed = answered(true, stats(json!(["read", "write"])), args).await;
        assert_eq!(printed, expected);
    }
}

#[tokio::test]
async fn a_change_of_unknown_outcome_says_how_to_find_out() {
    let server = ScriptedServer::start().await;
    let unknown = json!({"error": "outcome unknown: nobody answered"});
    let admin = || stats(json!(["admin"]));
    server
        .session_that_answers(true, admin())
        .session_that_answers(false, unknown.clone())
        .session_that_answers(true, admin())
        .session(vec![greeting(), Step::Ask, Step::Hang])
        .session_that_answers(true, admin())
        .session_that_answers(false, json!({"error": "no such key"}));
    let user = User::of(&server.base);
    let expected = error(&format!(
        "outcome unknown: {}: nobody answered\n\
         A key may have been created whose secret nobody has. `kite keys list` shows it, \
         `kite keys revoke --id ID` removes it.",
        server.ws_url()
    ));
    assert_eq!(parts(&user.kite(&["keys", "create"]).await), expected);
    let revoke = ["keys", "revoke", "--id", "key_1"];
    let (code, stdout, stderr) = parts(&user.kite(&revoke).await);
    assert_eq!((code, stdout.as_str()), (Some(1), ""));
    assert!(stderr.starts_with("Error: outcome unknown: ws://"), "{stderr}");
    assert!(
        stderr.ends_with("\nThe key may be revoked already: `kite keys list` tells.\n"),
        "{stderr}"
    );
    assert_eq!(parts(&user.kite(&revoke).await), error("no such key"));
    assert_eq!(server.requests().len(), 6, "no change is asked for twice");
}

#[tokio::test]
async fn a_key_is_revoked_by_its_id() {
    let server = ScriptedServer::start().await;
    server
        .session_that_answers(true, stats(json!(["admin"])))
        .session_that_answers(true, json!({"id": "key_1"}));
    let output = User::of(&server.base).kite(&["keys", "revoke", "--id", "key_1"]).await;
    assert_eq!(parts(&output), done("Revoked API key: key_1\n"));
    assert_eq!(server.requests()[1], asked("keys.revoke", json!({"id": "key_1"})));
}

#[tokio::test]
async fn logs_print_the_servers_order_one_line_an_event() {
    let events = json!({"events": [event(9), event(4)]});
    assert_eq!(answered(true, events, &["logs"]).await, done(&lines(&[9, 4])));
    let none = json!({"events": []});
    assert_eq!(answered(true, none, &["logs"]).await, done("No events found.\n"));
    let refused = json!({"error": "this API key lacks the permission read"});
    let expected = error("this API key lacks the permission read");
    assert_eq!(answered(false, refused, &["logs"]).await, expected);
}

#[tokio::test]
async fn logs_go_on_over_pages_until_there_are_enough_or_no_more() {
    let server = ScriptedServer::start().await;
    let page = |seqs: &[u64], next: Value| {
        let events: Vec<Value> = seqs.iter().map(|seq| event(*seq)).collect();
        json!({"events": events, "next_before_seq": next})
    };
    server
        .session_that_answers(true, page(&[9, 8], json!(8)))
        // The server has examined a part of the events, found none, and names the next page.
        .session_that_answers(true, page(&[], json!(5)))
        // The page has one event more than was asked for.
        .session_that_answers(true, page(&[4, 3], json!(3)));
    let user = User::of(&server.base);
    let args = ["logs", "--limit", "3", "--before", "20", "--thread", "t-1"];
    assert_eq!(parts(&user.kite(&args).await), done(&lines(&[9, 8, 4])));
    let params = |limit: u64, before: u64| {
        asked(
            "events.recent",
            json!({"limit": limit, "before_seq": before, "thread_id": "t-1"}),
        )
    };
    assert_eq!(server.requests(), [params(3, 20), params(1, 8), params(1, 5)]);

    // The server's pages form a circle.
    server
        .session_that_answers(true, page(&[9], json!(9)))
        .session_that_answers(true, page(&[8], json!(9)));
    assert_eq!(
        parts(&user.kite(&["logs", "--limit", "5000"]).await),
        done(&lines(&[9, 8]))
    );
    let last = &server.requests()[3..];
    assert_eq!(
        last,
        [
            asked("events.recent", json!({"limit": 5000})),
            asked("events.recent", json!({"limit": 4999, "before_seq": 9}))
        ]
    );
}

#[tokio::test]
async fn wrong_usage_ends_with_2_and_an_empty_list_with_1() {
    let user = User::of(&refusing_url());
    for args in [
        &["keys"][..],
        &["keys", "revoke"],
        &["keys", "create", "write"],
        &["logs", "--limit", "0"],
        &["logs", "--limit", "many"],
        &["status", "now"],
        &["login", "--server"],
    ] {
        let (code, stdout, stderr) = parts(&user.kite(args).await);
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{args:?}");
        assert!(
            stderr.contains("Usage: kite") || stderr.contains("try '--help'"),
            "{stderr}"
        );
    }
    let output = user.kite(&["keys", "create", "--scopes", ""]).await;
    assert_eq!(parts(&output), error("--scopes is empty; without it, it is `*`"));
    for args in [
        &["login", "--help"][..],
        &["logs", "--help"],
        &["keys", "create", "--help"],
    ] {
        let (code, stdout, _) = parts(&user.kite(args).await);
        assert!(code == Some(0) && stdout.contains("Examples:\n  kite "), "{stdout}");
    }
}
