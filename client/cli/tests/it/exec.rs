//! `kite stream --exec`: the input of a command, the acknowledgement of its event, repeats after a failure, and the end
//! of all processes.

use std::path::Path;

use agentpost_testkit::eventually;
use agentpost_testkit::scripted_server::{ScriptedServer, Step, exists};
use serde_json::json;

use crate::common::process::Running;
use crate::common::steps::{REFUSED, connected, mail, of_type, refusal, say};
use crate::common::{User, parts};

/// The lines of a file that the commands write.
fn lines(user: &User, file: &str) -> Vec<String> {
    let text = std::fs::read_to_string(user.home.path().join(file)).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn a_command_gets_the_event_and_its_output_is_passed_through() {
    let server = ScriptedServer::start().await;
    let odd = say(json!({"type": "event", "seq": 3, "event": {"id": "nul\u{0} $(id)", "type": "plain"}}));
    let github = of_type(2, "com.github.push", "https://getkite.sh/hooks/t/github");
    server.session(vec![
        connected(0),
        mail(1),
        Step::Acked(1),
        github,
        Step::Acked(2),
        odd,
        Step::Acked(3),
        refusal(),
    ]);
    let command = "echo \"$KITE_SEQ|$KITE_EVENT_ID|$KITE_EVENT_TYPE|$KITE_SOURCE|$KITE_EVENT_SOURCE|$KITE_TEAM_ID\"; \
                   cat > \"stdin-$KITE_SEQ\"; echo \"on stderr\" >&2";
    let user = User::of(&server.base);
    let (code, stdout, stderr) = parts(&user.kite(&["stream", "--exec", command]).await);
    let expected = "1|event-1|com.kite.agent.message|kite|https://getkite.sh/agents/agent-beta|team_1\n\
                    2|event-2|com.github.push|github|https://getkite.sh/hooks/t/github|team_1\n\
                    3|nul $(id)|plain|unknown||team_1\n";
    assert_eq!((code, stdout.as_str()), (Some(1), expected));
    let noted: Vec<&str> = stderr.lines().skip(2).collect();
    assert_eq!(noted, ["on stderr", "on stderr", "on stderr", REFUSED]);
    let event = "{\"specversion\":\"1.0\",\"id\":\"event-1\",\"type\":\"com.kite.agent.message\",\
                 \"source\":\"https://getkite.sh/agents/agent-beta\",\"datacontenttype\":\"application/json\",\
                 \"time\":\"2026-04-30T10:00:00.000Z\",\"data\":{\"body\":\"hello\",\"from\":\"agent-beta\",\
                 \"to\":\"agent-alpha\"},\"kiteseq\":1,\"kitesummary\":\"summary 1\"}";
    assert_eq!(lines(&user, "stdin-1"), [event]);
}

#[tokio::test]
async fn commands_run_one_after_another_and_need_not_read() {
    let server = ScriptedServer::start().await;
    let body = "x".repeat(200 * 1024); // more than a pipe holds
    let big = json!({"type": "event", "seq": 2, "event": {"id": "big", "type": "t", "data": {"body": body}}});
    server.session(vec![
        connected(0),
        mail(1),
        say(big),
        mail(3),
        Step::Acked(3),
        refusal(),
    ]);
    let user = User::of(&server.base);
    // Each command takes a lock that the one before must have released.
    let command = "mkdir lock || exit 0; sleep 0.1; echo $KITE_SEQ >> done; rmdir lock";
    let (_, stdout, stderr) = parts(&user.kite(&["stream", "--exec", command, "--json"]).await);
    assert_eq!((stdout.as_str(), stderr.lines().count()), ("", 3), "{stderr}");
    assert_eq!(lines(&user, "done"), ["1", "2", "3"]);
}

#[tokio::test]
async fn a_command_that_fails_leaves_its_event_unacknowledged_and_it_comes_again() {
    let server = ScriptedServer::start().await;
    // The server sends the next event before the command has failed; the event must wait.
    server.session(vec![
        connected(0),
        mail(1),
        Step::Acked(1),
        mail(2),
        mail(3),
        Step::Gone,
    ]);
    server.session(vec![connected(1), mail(2), mail(3), Step::Gone]);
    server.session(vec![
        connected(1),
        mail(2),
        Step::Acked(2),
        mail(3),
        Step::Acked(3),
        refusal(),
    ]);
    let user = User::of(&server.base);
    let command = "echo $KITE_SEQ >> tried; [ $KITE_SEQ != 2 ] || [ $(grep -c 2 tried) = 3 ] || exit 7";
    let args = ["stream", "--client-id", "worker", "--exec", command];
    let (code, stdout, stderr) = parts(&user.kite(&args).await);
    assert_eq!((code, stdout.as_str()), (Some(1), ""));
    let again = "it comes again until the command ends with 0";
    let expected = format!(
        "Connecting to {}...\nConnected (last_seq: 0)\n\
         Command failed (exit status: 7) for event event-2, attempt 1: {again}\nReconnecting in 1s...\n\
         Connected (last_seq: 1)\n\
         Command failed (exit status: 7) for event event-2, attempt 2: {again}\nReconnecting in 2s...\n\
         Connected (last_seq: 1)\n{REFUSED}\n",
        server.ws_url()
    );
    assert_eq!(stderr, expected);
    assert_eq!(lines(&user, "tried"), ["1", "2", "2", "2", "3"]);
}

#[tokio::test]
async fn without_a_place_on_the_server_a_failed_event_is_passed_over() {
    let server = ScriptedServer::start().await;
    server.session(vec![connected(0), mail(1), mail(2), Step::Acked(2), refusal()]);
    let user = User::of(&server.base);
    let command = "echo $KITE_SEQ >> tried; [ $KITE_SEQ != 1 ] || kill -KILL $$";
    let (_, _, stderr) = parts(&user.kite(&["stream", "--exec", command]).await);
    let failed = "Command failed (signal: 9 (SIGKILL)) for event event-1: passed over, because without --client-id nothing \
                  comes again";
    assert_eq!(stderr.lines().skip(2).collect::<Vec<_>>(), [failed, REFUSED]);
    assert_eq!(lines(&user, "tried"), ["1", "2"]);
}

#[tokio::test]
async fn the_session_stays_open_while_a_command_takes_its_time() {
    let server = ScriptedServer::start().await;
    let user = User::of(&server.base);
    let answered = user.home.path().join("answered");
    // The ping comes after events. The client must acknowledge before it answers, or a server may count the pong as an
    // acknowledgement of the events.
    server.session(vec![
        connected(4),
        mail(7),
        mail(8),
        mail(9),
        Step::Ping,
        Step::Acked(6),
        Step::Touch(answered),
        Step::Acked(9),
        refusal(),
    ]);
    let command = "until [ -e answered ]; do sleep 0.05; done; echo $KITE_SEQ >> done";
    let (_, _, stderr) = parts(&user.kite(&["stream", "--client-id", "slow", "--exec", command]).await);
    assert_eq!(
        stderr.lines().skip(1).collect::<Vec<_>>(),
        ["Connected (last_seq: 4)", REFUSED]
    );
    assert_eq!(lines(&user, "done"), ["7", "8", "9"]);
}

#[tokio::test]
async fn a_finished_event_is_not_run_again_after_a_disconnect() {
    let server = ScriptedServer::start().await;
    let user = User::of(&server.base);
    let (running, broken) = (user.home.path().join("running"), user.home.path().join("broken"));
    server.session(vec![
        connected(0),
        mail(1),
        mail(2),
        Step::Await(running),
        Step::Touch(broken),
        Step::Hang,
    ]);
    server.session(vec![
        connected(0),
        mail(1),
        mail(2),
        Step::Acked(2),
        mail(3),
        Step::Acked(3),
        refusal(),
    ]);
    let command = "touch running; until [ -e broken ]; do sleep 0.05; done; sleep 0.1; echo $KITE_SEQ >> done";
    let (_, _, stderr) = parts(&user.kite(&["stream", "--client-id", "c", "--exec", command]).await);
    assert!(
        stderr.contains("\nDisconnected: ") && stderr.ends_with(&format!("{REFUSED}\n")),
        "{stderr}"
    );
    assert_eq!(lines(&user, "done"), ["1", "2", "3"]);
}

/// Whether a process runs. A process that has ended stays listed as a zombie until its parent waits for it.
fn is_running(id: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    stat.rsplit(") ")
        .next()
        .is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

/// Starts a command with a child process and waits until both have written their process ids.
async fn busy(command: &str) -> (User, ScriptedServer, Running) {
    let server = ScriptedServer::start().await;
    server.session(vec![connected(0), mail(1), Step::Gone]);
    let user = User::of(&server.base).with("PATH", &std::env::var("PATH").unwrap());
    let kite = Running::connected(&user, &["stream", "--client-id", "c", "--exec", command]).await;
    exists(&user.home.path().join("ready")).await;
    (user, server, kite)
}

async fn all_ended(folder: &Path) {
    let ids = std::fs::read_to_string(folder.join("ids")).unwrap();
    assert_eq!(ids.lines().count(), 2, "{ids}");
    let ended = async || (!ids.lines().any(is_running)).then_some(());
    eventually("the command and its child to end", ended).await;
}

#[tokio::test]
async fn when_it_is_stopped_the_command_ends_with_all_its_children() {
    for (signal, code) in [("TERM", 143), ("INT", 130), ("HUP", 129)] {
        let command = "sleep 1000 & echo $! > ids; echo $$ >> ids; touch ready; wait; echo done >> done";
        let (user, _server, mut kite) = busy(command).await;
        kite.signal(signal);
        assert_eq!(kite.ended().await.code(), Some(code));
        all_ended(user.home.path()).await;
        assert_eq!(
            kite.rest_of_notes().await,
            [""; 0],
            "an interrupted command has not failed"
        );
        assert_eq!(lines(&user, "done"), [""; 0]);
    }
}

#[tokio::test]
async fn a_command_may_clean_up_and_a_second_signal_does_not_wait_for_it() {
    let command =
        "trap 'echo clean > cleaned; exit' TERM; sleep 1000 & echo $! > ids; echo $$ >> ids; touch ready; wait";
    let (user, _server, mut kite) = busy(command).await;
    kite.signal("INT");
    assert_eq!(kite.ended().await.code(), Some(130));
    all_ended(user.home.path()).await;
    assert_eq!(lines(&user, "cleaned"), ["clean"]);

    let deaf = "trap 'touch asked' TERM; (trap '' TERM; exec sleep 1000) & echo $! > ids; echo $$ >> ids; touch ready; \
                while :; do sleep 1; done";
    let (user, _server, mut kite) = busy(deaf).await;
    kite.signal("TERM");
    exists(&user.home.path().join("asked")).await;
    kite.signal("TERM");
    assert_eq!(kite.ended().await.code(), Some(143));
    all_ended(user.home.path()).await;
}
