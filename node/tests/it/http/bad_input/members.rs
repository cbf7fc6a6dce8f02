//! The exact answers to odd JSON on the routes that read raw members.
//!
//! A name may be escaped, a name that is not known is skipped, `null` counts as absent, a name may appear once, and one
//! bad item does not spoil a batch.

use axum::http::Method;
use serde_json::Value;

use super::MESSAGE;
use crate::common::office::Office;
use crate::common::web::{Answer, Call};

/// A body and its answer.
type Row = (&'static str, &'static str);

const SEND: &[Row] = &[
    ("", "400 the request body must be a JSON object"),
    ("[]", "400 the request body must be a JSON object"),
    ("[{}]", "400 the request body must be a JSON object"),
    ("null", "400 the request body must be a JSON object"),
    (
        " {\"toAgentId\":\"beta\",\"type\":\"t\",\"body\":{\"a\":1e999}} x",
        "400 the request body is not valid JSON: trailing characters at line 1 column 53",
    ),
    (
        r#"{"type":"t","type":"t"}"#,
        "400 the message has an object with the same key twice",
    ),
    (
        r#"{"type":null,"type":"t"}"#,
        "400 the message has an object with the same key twice",
    ),
    (
        r#"{"type":"t","ty\u0070e":"t"}"#,
        "400 the message has an object with the same key twice",
    ),
    (
        r#"{"type":"t","type":"t",}"#,
        "400 the request body is not valid JSON: trailing comma at line 1 column 24",
    ),
    (
        r#"{"type":"t","type":"t" "body":{}}"#,
        "400 the request body is not valid JSON: expected `,` or `}` at line 1 column 24",
    ),
    (
        r#"{"type":"t","type":"t"} x"#,
        "400 the request body is not valid JSON: trailing characters at line 1 column 25",
    ),
    (
        r#"{"type":"t","type":nul}"#,
        "400 the request body is not valid JSON: expected ident at line 1 column 23",
    ),
    (
        r#"{"type":"t","type":"#,
        "400 the request body is not valid JSON: EOF while parsing a value at line 1 column 19",
    ),
    (
        r#"{"type":"t","type":"t","body":{"a":1,}}"#,
        "400 the request body is not valid JSON: key must be a string at line 1 column 38",
    ),
    (
        r#"{"type":"t","type":"t","\ud800":1}"#,
        "400 the request body is not valid JSON: unexpected end of hex escape at line 1 column 31",
    ),
    (
        r#"{"\ud800":1,"type":"t"}"#,
        "400 the request body is not valid JSON: unexpected end of hex escape at line 1 column 9",
    ),
    (
        r#"{"x":01}"#,
        "400 the request body is not valid JSON: invalid number at line 1 column 7",
    ),
    (
        r#"{1:2}"#,
        "400 the request body is not valid JSON: key must be a string at line 1 column 2",
    ),
    (
        "{\"type\":\"\u{1}\"}",
        r#"400 the request body is not valid JSON: control character (\u0000-\u001F) found while parsing a string at line 1 column 9"#,
    ),
    (
        r#"{"0":"beta","1":"news"}"#,
        "400 toAgentId or topic is required [toAgentId]",
    ),
    (
        r#"{"x":{"y":[1,]}}"#,
        "400 the request body is not valid JSON: expected value at line 1 column 14",
    ),
    (
        "{\n \"x\":{\"y\":1,}}",
        "400 the request body is not valid JSON: key must be a string at line 2 column 13",
    ),
    (
        r#"{"toAgentId":"beta","type":"t","body":{"b":1,"b":1}}"#,
        "400 body has an object with the same key twice [body]",
    ),
    (
        r#"{"toAgentId":null,"topic":null,"type":"t","body":{}}"#,
        "400 toAgentId or topic is required [toAgentId]",
    ),
    (
        r#"{"x":1,"x":[],"to\u0041gentId":"beta","topic":null,"type":"t","body":"b","metadata":null}"#,
        "200 ok",
    ),
    (
        r#"{"x":"\ud800","y":1e999,"toAgentId":"beta","type":"t","body":{}}"#,
        "200 ok",
    ),
];

const BATCH: &[Row] = &[
    ("[[]]", "400 the request body must be a JSON object"),
    (
        "{}",
        "400 the request body is not valid JSON: missing field `messages` at line 1 column 2",
    ),
    (
        r#"{"message":[]}"#,
        "400 the request body is not valid JSON: missing field `messages` at line 1 column 14",
    ),
    (
        r#"{"messages":null}"#,
        "400 the request body is not valid JSON: expected a list of messages at line 1 column 16",
    ),
    (
        r#"{"messages":{}}"#,
        "400 the request body is not valid JSON: expected a list of messages at line 1 column 12",
    ),
    (
        r#"{"messages":7}"#,
        "400 the request body is not valid JSON: expected a list of messages at line 1 column 13",
    ),
    (
        r#"{"messages":"text"}"#,
        "400 the request body is not valid JSON: expected a list of messages at line 1 column 18",
    ),
    (
        r#"{"messages":[],"messages":[]}"#,
        "400 the request body is not valid JSON: duplicate field `messages` at line 1 column 29",
    ),
    (
        r#"{"messages":[],"messages":[{"type":1,}]}"#,
        "400 the request body is not valid JSON: trailing comma at line 1 column 38",
    ),
    (
        r#"{"messages":[]} x"#,
        "400 the request body is not valid JSON: trailing characters at line 1 column 17",
    ),
    (r#"{"messages":[]}"#, "200 ok"),
    (
        r#"{"x":1,"mess\u0061ges":[{"type":"a"},7,{"type":"b","type":"c"},[{}],null,true,"s",-1.5,[],1e5]}"#,
        "200 ok | 400 toAgentId or topic is required | 400 the message must be a JSON object | 400 the message has an object with the same key twice | 400 the message must be a JSON object | 400 the message must be a JSON object | 400 the message must be a JSON object | 400 the message must be a JSON object | 400 the message must be a JSON object | 400 the message must be a JSON object | 400 the message must be a JSON object",
    ),
    (
        r#"{"messages":[[null,null,null,null,null,null,null,null,null,null,null,null,null],["beta",null,"t",null,"b"]]}"#,
        "200 ok | 400 the message must be a JSON object | 400 the message must be a JSON object",
    ),
    (
        r#"{"messages":[{"type":null,"ty\u0070e":"c"},{"type":"t","body":{"a":1,"a":1}}]}"#,
        "200 ok | 400 the message has an object with the same key twice | 400 toAgentId or topic is required",
    ),
    (
        r#"{"messages":[{"toAgentId":"beta","type":"t","body":{},"x":"\ud800","x":1e999},{"toAgentId":"beta","type":"t","body":"\ud800"}]}"#,
        "200 ok | 200 ok | 400 body has a string that is not valid Unicode",
    ),
    (
        r#"{"messages":[{"0":"beta"},{"toAgentId":null,"to\u0041gentId":"b"}]}"#,
        "200 ok | 400 toAgentId or topic is required | 400 the message has an object with the same key twice",
    ),
    (
        r#"{"messages":[1e999]}"#,
        "400 the request body is not valid JSON: number out of range at line 1 column 18",
    ),
    (
        r#"{"messages":["\ud800"]}"#,
        "400 the request body is not valid JSON: unexpected end of hex escape at line 1 column 21",
    ),
    (
        r#"{"messages":[{}, {"\ud800":1}]}"#,
        "400 the request body is not valid JSON: unexpected end of hex escape at line 1 column 26",
    ),
    (
        "{\"messages\":[\n{\"a\":1},\n {\"a\":1,}\n]}",
        "400 the request body is not valid JSON: trailing comma at line 3 column 9",
    ),
    (
        r#"{"messages":[[1,]]}"#,
        "400 the request body is not valid JSON: trailing comma at line 1 column 17",
    ),
    (
        r#"{"messages":[{},]}"#,
        "400 the request body is not valid JSON: trailing comma at line 1 column 17",
    ),
    (
        r#"{"messages":[{"a":[1,]}]}"#,
        "400 the request body is not valid JSON: expected value at line 1 column 22",
    ),
    (
        r#"{"messages":[{"a":{"b":1,}}]}"#,
        "400 the request body is not valid JSON: key must be a string at line 1 column 26",
    ),
    (
        r#"{"messages":[{"type":"b","type":"c"},{"type":"b","type":"c",}]}"#,
        "400 the request body is not valid JSON: trailing comma at line 1 column 61",
    ),
    (
        r#"{"messages":[{"type":"b","type":"c"},{"type":nul}]}"#,
        "400 the request body is not valid JSON: expected ident at line 1 column 49",
    ),
    (
        r#"{"messages":[{"type":"b","type":"c"}, x]}"#,
        "400 the request body is not valid JSON: expected value at line 1 column 39",
    ),
    (
        r#"{"messages":[{"type":"b","type":"c"}"#,
        "400 the request body is not valid JSON: EOF while parsing a list at line 1 column 36",
    ),
    (
        r#"{"messages":[7,{"type":"b"#,
        "400 the request body is not valid JSON: EOF while parsing a string at line 1 column 25",
    ),
    (
        "{\"messages\":[{\"type\":\"\u{1}\"}]}",
        r#"400 the request body is not valid JSON: control character (\u0000-\u001F) found while parsing a string at line 1 column 22"#,
    ),
];

const KITE: &[Row] = &[
    ("[]", "400 the request body must be a JSON object"),
    (
        r#"{"from":"a","fr\u006fm":"b"}"#,
        "400 the request body has an object with the same key twice",
    ),
    (
        r#"{"from":null,"from":"a","to":"b",}"#,
        "400 the request body is not valid JSON: trailing comma at line 1 column 34",
    ),
    (r#"{"from":"a","threadId":1,"to":null}"#, "400 to is required"),
    (
        r#"{"from":"a","to":"b","body":"x","thread_id":1}"#,
        "400 thread_id must be a string",
    ),
];

const AGENT: &[Row] = &[
    ("[\"a\",\"b\"]", "400 the request body must be a JSON object"),
    (
        r#"{"id":"a","i\u0064":"a"}"#,
        "400 the request body has an object with the same key twice",
    ),
    (
        r#"{"id":"a","id":"a"} x"#,
        "400 the request body is not valid JSON: trailing characters at line 1 column 21",
    ),
    (r#"{"name":null,"id":null}"#, "400 id is required"),
    (
        r#"{"id":"a b","x":1,"x":2}"#,
        "400 id is invalid: an agent id has 1 to 128 characters of A-Z a-z 0-9 . _ : -",
    ),
];

const WEBHOOK: &[Row] = &[
    ("[\"https://a/\"]", "400 the request body must be a JSON object"),
    (
        r#"{"url":"https://a/","url":null}"#,
        "400 the request body has an object with the same key twice",
    ),
    (
        r#"{"url":"https://a/","url":null,"\ud800":1}"#,
        "400 the request body is not valid JSON: unexpected end of hex escape at line 1 column 39",
    ),
    (r#"{"url":null,"events":null}"#, "400 url is required [url]"),
    (
        r#"{"url":"https://a/","events":["message.topic",]}"#,
        "400 the request body is not valid JSON: expected value at line 1 column 47",
    ),
];

const MARK: &[Row] = &[
    ("", "404 no such message"),
    ("[true]", "400 the request body must be a JSON object"),
    ("true", "400 the request body must be a JSON object"),
    (r#"{"re\u0061d": true ,"x":1,"x":1}"#, "404 no such message"),
    (
        r#"{"read":true,"read":true}"#,
        "400 the request body has an object with the same key twice [the request body]",
    ),
    (
        r#"{"read":true,"read":1e999}"#,
        "400 the request body has an object with the same key twice [the request body]",
    ),
    (
        r#"{"read":true,"read":true,}"#,
        "400 the request body is not valid JSON: trailing comma at line 1 column 26",
    ),
    (r#"{"read":null}"#, "400 read must be true or false [read]"),
    ("{}", "400 read must be true or false [read]"),
    (
        "{",
        "400 the request body is not valid JSON: EOF while parsing an object at line 1 column 1",
    ),
];

/// The status, the text of the error and the named field; of a batch, the same for each item.
fn told(answer: &Answer) -> String {
    let error = |at: &Value| at["error"].as_str().unwrap_or("ok").to_owned();
    let mut told = format!("{} {}", answer.status, error(&answer.body));
    if let Some(field) = answer.body["details"][0]["field"].as_str() {
        told += &format!(" [{field}]");
    }
    for item in answer.body["results"].as_array().into_iter().flatten() {
        told += &format!(" | {} {}", item["status"], error(item));
    }
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_json_has_its_exact_answer() {
    let office = Office::start(1, "").await;
    let (post, patch) = (Method::POST, Method::PATCH);
    for (method, path, rows) in [
        (&post, "/v1/messages", SEND),
        (&post, "/v1/messages/batch", BATCH),
        (&post, "/v1/agents/messages", KITE),
        (&post, "/v1/agents", AGENT),
        (&post, "/v1/messages/webhook", WEBHOOK),
        (&patch, MESSAGE, MARK),
    ] {
        let mut answers = Vec::new();
        for (body, _) in rows {
            let call = Call::new(method.clone(), path).raw(*body);
            let answer = call.key(&office.team.key).agent("alpha").to(&office.urls[0]).await;
            answers.push((*body, told(&answer)));
        }
        let expected: Vec<_> = rows.iter().map(|(body, told)| (*body, (*told).to_owned())).collect();
        assert_eq!(answers, expected, "{path}");
    }
}
