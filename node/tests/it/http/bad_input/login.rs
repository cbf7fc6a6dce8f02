//! Bad input to the routes of device login: `/api/auth/` without a key, `/admin/v1/login/` with one.

use axum::http::Method;
use serde_json::{Value, json};

use super::{is_of_this_face, no_objects, nothing_was_stored};
use crate::common::office::office;
use crate::common::web::{Call, new_key};

/// Bad requests to the routes without a key.
fn devices() -> Vec<(Call, u16)> {
    const CODE: &str = "/api/auth/device-code";
    const TOKEN: &str = "/api/auth/device-token";
    let raw = |path: &str, body: &str| Call::new(Method::POST, path).raw(body.to_owned());
    let token = |code: Value| Call::post(TOKEN, &json!({ "device_code": code }));
    let large = json!({ "client": "x".repeat(64 * 1024), "device_code": "x" });
    let hex = "0a".repeat(32);
    let mut cases = no_objects(TOKEN);
    // A request without a body is valid.
    cases.extend(no_objects(CODE).into_iter().skip(1));
    cases.extend([
        (Call::post(CODE, &json!({ "client": 7 })), 400),
        (Call::post(CODE, &json!({ "client": ["kite"] })), 400),
        (raw(CODE, r#"{"client":"a","client":"b"}"#), 400),
        (raw(CODE, r#"{"client":"\ud800"}"#), 400),
        (raw(CODE, &"[".repeat(60_000)), 400),
        (Call::post(CODE, &large), 413),
        (Call::get(CODE), 405),
        (Call::post(TOKEN, &json!({})), 400),
        (token(Value::Null), 400),
        (token(json!(7)), 400),
        (token(json!([hex])), 400),
        (token(json!("")), 400),
        (token(json!("\u{0}ä\n")), 400),
        (token(json!(hex)), 400),
        (token(json!(hex.to_uppercase())), 400),
        (token(json!(format!("{hex}0"))), 400),
        (token(json!("x".repeat(60_000))), 400),
        (raw(TOKEN, r#"{"device_code":"a","device_code":"b"}"#), 400),
        (Call::post(TOKEN, &large), 413),
        (Call::delete(TOKEN), 405),
        (Call::get("/api/auth/device"), 404),
    ]);
    cases
}

/// Bad requests with a key that may approve devices.
fn decisions() -> Vec<(Call, u16)> {
    let mut cases = Vec::new();
    for what in ["lookup", "approve", "deny"] {
        let path = format!("/admin/v1/login/{what}");
        let post = |body: Value| Call::post(path.clone(), &body);
        let raw = |body: &str| Call::new(Method::POST, path.clone()).raw(body.to_owned());
        cases.extend(no_objects(&path));
        cases.extend([
            (post(json!({})), 400),
            (post(json!({ "user_code": null })), 400),
            (post(json!({ "user_code": 7 })), 400),
            (post(json!({ "user_code": ["BCDF-GHJK"] })), 400),
            (post(json!({ "user_code": "BCDF-GHJK", "more": 1 })), 400),
            (raw(r#"{"user_code":"BCDFGHJK","user_code":"BCDFGHJK"}"#), 400),
            (raw(&"[".repeat(60_000)), 400),
            (post(json!({ "user_code": "" })), 404),
            (post(json!({ "user_code": "\u{0}" })), 404),
            (post(json!({ "user_code": "BCDF-GHJ" })), 404),
            (post(json!({ "user_code": "ßßßßßßßß" })), 404),
            (post(json!({ "user_code": "B".repeat(60_000) })), 404),
            (post(json!({ "user_code": "BCDF-GHJK" })), 404),
            (post(json!({ "user_code": "x".repeat(64 * 1024) })), 413),
            (Call::get(path.clone()), 405),
        ]);
    }
    let approve = |body: Value| Call::post("/admin/v1/login/approve", &body);
    for (field, value) in [
        ("team", json!(7)),
        ("permissions", json!("write")),
        ("permissions", json!([])),
        ("permissions", json!(["write", 7])),
        ("permissions", json!(["everything"])),
        ("permissions", json!(vec!["x"; 9_000])),
    ] {
        cases.push((approve(json!({ "user_code": "BCDF-GHJK", field: value })), 400));
    }
    for team in ["nobody", "", "a\u{0}b", &"x".repeat(60_000)] {
        cases.push((approve(json!({ "user_code": "BCDF-GHJK", "team": team })), 404));
    }
    cases.push((Call::get("/admin/v1/login"), 404));
    cases
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bad_login_request_has_its_answer_on_every_node() {
    let office = office().await;
    let wanted = json!({ "name": "a", "permissions": ["admin"] });
    let (_, team_admin) = new_key(&office.urls[0], &office.admin, &office.team.id, &wanted).await;
    let decisions = decisions().into_iter();
    let decisions = decisions.map(|(call, status)| ("admin", (call.bearer(&team_admin), status)));
    let devices = devices().into_iter().map(|case| ("kite", case));
    for (face, (call, status)) in devices.chain(decisions) {
        for url in &office.urls {
            let answer = call.to(url).await;
            assert_eq!(answer.status, status, "{call}: {}", answer.body);
            is_of_this_face(&answer, face);
            answer.error(status);
        }
    }
    nothing_was_stored(&office.urls[1], &office.team).await;
}
