//! Whole answers of every API, header by header: errors in the form of their API, the quota headers, HEAD, and paths and
//! methods that do not exist.
//!
//! A transcript has pairs of lines: `> KEY METHOD PATH [+ HEADER]... [:: BODY]`, and `< STATUS [HEADER]... BODY`. A body
//! that ends with `…` is compared up to there. Headers that every answer has are checked and not written down.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::common::office::Office;
use crate::common::web::Team;

/// One node, and a team with small quotas.
struct Desk {
    office: Office,
    team: Team,
}

impl Desk {
    async fn open() -> Self {
        let office = Office::start(1, "").await;
        let limits =
            json!({ "daily_sends": 3, "daily_reads": 7, "daily_webhook_registrations": 2, "monthly_events": 4 });
        let team = Team::with_limits(&office.urls[0], &office.admin, "small", &limits).await;
        Desk { office, team }
    }

    /// The headers of a caller.
    fn caller(&self, name: &str) -> String {
        match name {
            "nobody" => String::new(),
            "stranger" => "X-API-Key: aba_x\r\n".to_owned(),
            "agent" => format!("X-API-Key: {}\r\nX-Agent-Id: a\r\n", self.team.key),
            "team" => format!("X-API-Key: {}\r\n", self.team.key),
            "operator" => format!("Authorization: Bearer {}\r\n", self.office.admin),
            other => panic!("unknown caller {other}"),
        }
    }

    async fn answer(&self, line: &str) -> String {
        let (line, body) = line.split_once(" :: ").unwrap_or((line, ""));
        let mut parts = line.split(" + ");
        let (caller, target) = parts.next().unwrap().split_once(' ').unwrap();
        let more: Vec<&str> = parts.collect();
        let mut request = format!(
            "{target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{}",
            self.caller(caller)
        );
        for header in &more {
            write!(request, "{header}\r\n").unwrap();
        }
        if !more.iter().any(|header| header.starts_with("Content-Length")) {
            write!(request, "Content-Length: {}\r\n", body.len()).unwrap();
        }
        write!(request, "\r\n{body}").unwrap();
        let host = self.office.urls[0].strip_prefix("http://").unwrap();
        let mut stream = TcpStream::connect(host).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // A node that refuses a body may reset the connection after its answer.
        let read = stream.read_to_end(&mut answer);
        let _ = tokio::time::timeout(Duration::from_secs(60), read)
            .await
            .expect("an answer in time");
        shown(&String::from_utf8(answer).unwrap(), target.starts_with("HEAD "))
    }

    async fn follows(&self, transcript: &str) {
        let mut actual = String::new();
        let mut wrong = 0;
        let mut lines = transcript
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        while let Some(request) = lines.next() {
            let answer = self.answer(request.strip_prefix("> ").expect("a request")).await;
            let expected = lines
                .next()
                .and_then(|line| line.strip_prefix("< "))
                .expect("an answer");
            let same = match expected.strip_suffix('…') {
                Some(beginning) => answer.starts_with(beginning),
                None => answer == expected,
            };
            wrong += usize::from(!same);
            let mark = if same { "" } else { " DIFFERS" };
            writeln!(actual, "{request}\n< {answer}{mark}").unwrap();
        }
        assert_eq!(wrong, 0, "\n{actual}");
    }
}

/// Writes an answer as a line of a transcript.
fn shown(answer: &str, is_head: bool) -> String {
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).expect("a status");
    let mut out = status.to_owned();
    let (mut length, mut safe) = (0, false);
    for line in lines {
        let (name, value) = line.split_once(": ").unwrap();
        match name {
            "date" | "connection" => {}
            "content-type" => assert_eq!(value, "application/json", "{answer}"),
            "x-content-type-options" => safe = value == "nosniff",
            "x-ratelimit-reset" => assert_eq!(value.parse::<u64>().unwrap() % 86_400, 0, "a UTC midnight"),
            "x-ratelimit-limit" => write!(out, " limit={value}").unwrap(),
            "x-ratelimit-remaining" => write!(out, " left={value}").unwrap(),
            "content-length" => length = value.parse().unwrap(),
            // Until the next day or month.
            "retry-after" => write!(out, " {name}={}", if value == "1" { "1" } else { "later" }).unwrap(),
            _ => write!(out, " {name}={value}").unwrap(),
        }
    }
    assert!(safe, "{answer}");
    if is_head {
        assert!(length > 0 && body.is_empty(), "{answer}");
        return out;
    }
    assert_eq!(length, body.len(), "{answer}");
    format!("{out} {body}")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_abba_baba_api_answers_with_its_quota() {
    Desk::open().await.follows(include_str!("answers/abbababa.txt")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kite_answers_in_a_form_of_its_own() {
    Desk::open().await.follows(include_str!("answers/kite.txt")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_and_monitors_are_answered_without_a_quota() {
    Desk::open().await.follows(include_str!("answers/admin.txt")).await;
}
