//! The page `/activate` in a real browser: `vendor/activate.mjs` walks through it with Chromium, on a real node.
//!
//! Chromium and the npm packages are there after `scripts/test.sh`; without them the test fails. Pictures of the page are
//! kept in the directory that `AGENTPOST_SHOTS` names.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::common::TestCluster;
use crate::common::vendor;
use crate::common::web;
use crate::common::web::{Team, new_key};

const TYPES: [(&str, &str); 4] = [
    ("/activate", "text/html; charset=utf-8"),
    ("/activate.css", "text/css; charset=utf-8"),
    ("/activate.js", "text/javascript; charset=utf-8"),
    ("/activate.svg", "image/svg+xml"),
];

/// Chromium has different names on different systems.
fn chromium() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let mut found = std::env::split_paths(&path).flat_map(|dir| names.map(|name| dir.join(name)));
    found
        .find(|path| path.is_file())
        .expect("a Chromium, which this test drives: run scripts/test.sh, or apt-get install chromium")
}

/// Runs the walks in the browser and returns the failure of each, if any.
fn walk(office: &Value) -> BTreeMap<String, Option<String>> {
    let mut node = Command::new("node")
        .arg(vendor::scripts().join("activate.mjs"))
        .arg(vendor::installed("playwright-core"))
        .arg(chromium())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("node, which drives the browser: install Node.js 18 or newer");
    let office = serde_json::to_vec(office).unwrap();
    node.stdin.take().unwrap().write_all(&office).unwrap();
    let output = node.wait_with_output().unwrap();
    assert!(output.status.success(), "activate.mjs failed");
    let verdicts: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let verdicts = verdicts
        .iter()
        .map(|verdict| (text(&verdict["walk"]).unwrap(), text(&verdict["why"])));
    verdicts.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn people_let_devices_in_with_a_browser() {
    let cluster = TestCluster::start(1).await;
    let (url, operator) = (cluster.url(0), cluster.admin_key());
    let team = Team::create(&url, &operator, "Blue Harbour").await;
    for name in ["<script>alert(3)</script>", &"W".repeat(128)] {
        Team::create(&url, &operator, name).await;
    }
    let wanted = json!({ "name": "a", "permissions": ["admin"] });
    let (_, admin) = new_key(&url, &operator, &team.id, &wanted).await;
    let office = json!({
        "url": url, "operator": operator, "admin": admin, "writer": team.key, "team": "Blue Harbour",
        "shots": std::env::var("AGENTPOST_SHOTS").ok(),
    });
    let verdicts = tokio::task::spawn_blocking(move || walk(&office)).await.unwrap();
    let failed: Vec<_> = verdicts
        .iter()
        .filter_map(|(walk, why)| Some(format!("{walk}:\n{}", why.as_ref()?)))
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
    assert_eq!(verdicts.len(), 16);
}

/// The head of a response in lower case.
async fn headers(url: &str, path: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = TcpStream::connect(url.strip_prefix("http://").unwrap()).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer.split_once("\r\n\r\n").unwrap().0.to_lowercase()
}

#[tokio::test]
async fn its_files_say_what_they_are_and_what_they_may() {
    let cluster = TestCluster::start(1).await;
    for (path, kind) in TYPES {
        let headers = headers(&cluster.url(0), &format!("{path}?code=BCDF-GHJK")).await;
        assert!(headers.starts_with("http/1.1 200 ok\r\n"), "{headers}");
        for line in [
            &format!("content-type: {kind}"),
            "cache-control: no-store",
            "referrer-policy: no-referrer",
            "x-content-type-options: nosniff",
        ] {
            assert!(headers.lines().any(|found| found == line), "{path} {line}: {headers}");
        }
        let policy = headers
            .lines()
            .find_map(|line| line.strip_prefix("content-security-policy: "));
        let policy: Vec<_> = policy.unwrap().split("; ").collect();
        for directive in [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "connect-src 'self'",
            "img-src 'self'",
            "form-action 'none'",
            "base-uri 'none'",
            "frame-ancestors 'none'",
        ] {
            assert!(policy.contains(&directive), "{path} {directive}: {policy:?}");
        }
    }
    for (call, status) in [
        (web::Call::post("/activate", &json!({})), 405),
        (web::Call::get("/activate/"), 404),
        (web::Call::get("/activate.html"), 404),
    ] {
        call.to(&cluster.url(0)).await.error(status);
    }
}
