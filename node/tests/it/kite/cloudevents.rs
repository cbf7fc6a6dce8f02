//! Our events, read with the vendor's own crate: its parser accepts every event as agent mail and finds the sent values
//! in it.

use agentpost_node::server::ws::frame;
use agentpost_proto::cloudevent::{self, CloudEvent, Data};
use agentpost_proto::command::BodyKind;
use agentpost_proto::record;
use agentpost_proto::time::{parse_rfc3339, rfc3339};
use kite_protocol::ServerMessage;
use kite_protocol::agent_message::AgentMessage;
use proptest::prelude::*;
use serde_json::{Value, json};

const PREFIX: &str = cloudevent::SOURCE_PREFIX;

fn message(body: &str, kind: BodyKind) -> record::Message {
    record::Message {
        id: uuid::Uuid::from_u128(0x0192_f0e1_0000_7000_8000_0000_0000_0001)
            .as_bytes()
            .to_vec()
            .into(),
        seq: 42,
        from: "agent-beta".to_owned(),
        to: "agent-alpha".to_owned(),
        r#type: "task.result".to_owned(),
        body_kind: kind as i32,
        body: body.to_owned().into(),
        thread_id: "thread-abc123".to_owned(),
        created_at_ms: 1_777_543_200_123,
        ..Default::default()
    }
}

/// The event of a frame: as JSON, and as their parser reads it.
fn sent(message: &record::Message, receiver: Option<&str>, seq: u64) -> (Value, AgentMessage) {
    let text = frame::event(message, receiver, seq, PREFIX);
    let ServerMessage::Event { seq: outer, event } = serde_json::from_str(&text).unwrap() else {
        panic!("not an event: {text}")
    };
    assert_eq!(outer, seq);
    let parsed = serde_json::from_value(event.clone()).unwrap_or_else(|e| panic!("{e}: {event}"));
    assert_eq!(kite_protocol::get_kiteseq(&parsed), Some(seq));
    assert_eq!(
        kite_protocol::get_kitesummary(&parsed).as_deref(),
        event["kitesummary"].as_str()
    );
    // `--json` of their command line prints the same values.
    let again: CloudEvent = serde_json::from_value(serde_json::to_value(&parsed).unwrap()).unwrap();
    let mut ours: CloudEvent = serde_json::from_value(event.clone()).unwrap();
    let time = |event: &CloudEvent| parse_rfc3339(&event.time).unwrap();
    assert_eq!(time(&again), time(&ours));
    ours.time = again.time.clone();
    assert_eq!(again, ours);
    let mail = AgentMessage::from_event(&parsed).unwrap_or_else(|| panic!("not agent mail: {event}"));
    (event, mail)
}

/// The attributes that CloudEvents defines; all others are extensions.
const ATTRIBUTES: [&str; 7] = ["specversion", "id", "type", "source", "datacontenttype", "time", "data"];

/// Asserts the rules of kite-wire.md 4 and 4.1, field by field.
fn assert_well_formed(event: &Value, message: &record::Message) {
    let text = |name: &str| event[name].as_str().unwrap_or_else(|| panic!("{name} in {event}"));
    assert_eq!((text("specversion"), text("type")), ("1.0", "com.kite.agent.message"));
    assert_eq!(text("source"), format!("https://getkite.sh/agents/{}", message.from));
    assert_eq!(text("datacontenttype"), "application/json");
    assert_eq!(uuid::Uuid::parse_str(text("id")).unwrap().as_bytes(), &message.id[..]);
    assert!(text("time").ends_with('Z'));
    assert_eq!(text("time"), rfc3339(message.created_at_ms));
    let object = event.as_object().unwrap();
    let extensions = object.iter().filter(|(name, _)| !ATTRIBUTES.contains(&name.as_str()));
    for (name, value) in extensions {
        let legal = name.len() <= 20 && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        assert!(legal, "the extension {name}");
        assert!(
            value.is_string() || value.is_boolean() || value.is_i64(),
            "{name}: {value}"
        );
    }
    assert!(event["kiteseq"].is_i64() && event["kitesummary"].is_string());
    let data = event["data"].as_object().unwrap();
    assert!(data.values().all(Value::is_string), "{event}");
    assert_eq!(data["body"].as_str().unwrap().as_bytes(), &message.body[..]);
}

#[test]
fn every_event_that_we_send_is_agent_mail_to_their_parser() {
    let long = "ä".repeat(500);
    for (body, kind) in [
        ("Here are the results you asked for.", BodyKind::Text),
        (r#"{"nested":{"list":[1,2.5,null]}}"#, BodyKind::Object),
        ("", BodyKind::Text),
        ("quotes \" and \u{1} control \n and 🦀", BodyKind::Text),
        (long.as_str(), BodyKind::Text),
        (r#"{"from":"x","to":"y","body":"not this one"}"#, BodyKind::Text),
    ] {
        let message = message(body, kind);
        let (event, mail) = sent(&message, None, 42);
        assert_well_formed(&event, &message);
        assert_eq!((mail.from.as_str(), mail.to.as_str()), ("agent-beta", "agent-alpha"));
        assert_eq!(mail.body, body);
        assert_eq!(mail.thread_id.as_deref(), Some("thread-abc123"));
        assert_eq!(mail.reply_to_id, None);
    }
}

#[test]
fn topic_mail_is_agent_mail_to_their_parser() {
    let message = record::Message {
        to: String::new(),
        topic: "news".to_owned(),
        ..message("hi", BodyKind::Text)
    };
    for (receiver, to) in [(None, "topic:news"), (Some("agent-alpha"), "agent-alpha")] {
        let (event, mail) = sent(&message, receiver, 42);
        assert_well_formed(&event, &message);
        assert_eq!(event["data"]["topic"], "news");
        assert_eq!((mail.to.as_str(), mail.body.as_str()), (to, "hi"));
        let expected = format!("[agent msg] agent-beta → {to}: hi");
        assert_eq!(event["kitesummary"], expected);
    }
}

#[test]
fn a_notice_is_agent_mail_from_system() {
    let message = record::Message {
        from: "system".to_owned(),
        r#type: "delivery.failed".to_owned(),
        ..message(r#"{"attempts":4,"lastStatus":null}"#, BodyKind::Object)
    };
    let (event, mail) = sent(&message, None, 7);
    assert_well_formed(&event, &message);
    assert_eq!(
        (mail.from.as_str(), &event["data"]["type"]),
        ("system", &json!("delivery.failed"))
    );
    assert_eq!(mail.body, r#"{"attempts":4,"lastStatus":null}"#);
}

#[test]
fn a_message_of_the_guide_has_only_the_fields_that_the_guide_shows() {
    let message = record::Message {
        r#type: cloudevent::EVENT_TYPE.to_owned(),
        thread_id: String::new(),
        ..message("hi", BodyKind::Text)
    };
    let (event, _) = sent(&message, None, 1);
    assert_eq!(
        event["data"],
        json!({"body": "hi", "from": "agent-beta", "to": "agent-alpha"})
    );
    assert_eq!(event.as_object().unwrap().len(), ATTRIBUTES.len() + 2);
}

/// Attributes, then `data` with its keys by name, then extensions.
#[test]
fn an_event_is_written_in_the_order_of_their_serializer() {
    let message = record::Message {
        topic: "news".to_owned(),
        reply_to_id: "r".to_owned(),
        ..message("x", BodyKind::Text)
    };
    let text = serde_json::to_string(&CloudEvent::of(&message, 42, PREFIX)).unwrap();
    let (attributes, rest) = text.split_once(r#","data":{"#).unwrap();
    let (data, extensions) = rest.split_once("},").unwrap();
    for (part, names) in [
        (
            attributes,
            &["specversion", "id", "type", "source", "datacontenttype", "time"][..],
        ),
        (
            data,
            &["body", "from", "reply_to_id", "thread_id", "to", "topic", "type"],
        ),
        (extensions, &["kiteseq", "kitesummary"]),
    ] {
        let place = |name: &&str| {
            part.find(&format!("\"{name}\":"))
                .unwrap_or_else(|| panic!("{name} in {part}"))
        };
        assert!(names.iter().map(place).is_sorted(), "{part}");
        assert_eq!(part.matches("\":").count(), names.len(), "{part}");
    }
}

/// The vendor's parser reads integers up to `i64::MAX`, which no seq of a team ever reaches. Up to there a seq keeps
/// its value.
#[test]
fn every_seq_up_to_their_largest_integer_is_kept() {
    for seq in [1, u64::from(u32::MAX), 1 << 53, i64::MAX as u64] {
        let (event, _) = sent(&message("x", BodyKind::Text), None, seq);
        assert_eq!(event["kiteseq"].as_i64(), i64::try_from(seq).ok());
    }
}

#[test]
fn summaries_equal_the_vendors_unless_its_code_panics() {
    for body in [
        "short",
        &"x".repeat(80),
        &"x".repeat(81),
        &"ä".repeat(60),
        &format!("{}🦀", "x".repeat(80)),
    ] {
        let theirs = AgentMessage::new("a", "b", body).summary();
        assert_eq!(cloudevent::summary("a", "b", body), theirs);
    }
    // Byte 80 is inside a character, where their code panics.
    let odd = format!("{}🦀 and more", "x".repeat(78));
    assert!(std::panic::catch_unwind(|| AgentMessage::new("a", "b", odd.as_str()).summary()).is_err());
    let expected = format!("[agent msg] a → b: {}…", "x".repeat(78));
    assert_eq!(cloudevent::summary("a", "b", &odd), expected);
}

/// Any text that may be sent, often with a wide character where the summary is cut.
fn body() -> impl Strategy<Value = String> {
    let around = (70..90usize, any::<String>()).prop_map(|(length, rest)| "x".repeat(length) + &rest);
    prop_oneof![
        any::<String>(),
        around,
        "[ä🦀→\u{301}x]{20,40}",
        "\\PC{0,300}",
        Just("\u{0}\u{7f}\u{2028}\\\"".to_owned())
    ]
}

fn opaque() -> impl Strategy<Value = String> {
    prop_oneof![Just(String::new()), "\\PC{1,128}"]
}

fn any_message() -> impl Strategy<Value = record::Message> {
    let agent = "[A-Za-z0-9._:-]{1,128}";
    let name = "[A-Za-z0-9._:/-]{1,128}";
    let texts = (agent, agent, name, opaque(), opaque(), body());
    let kind = prop_oneof![Just(BodyKind::Text), Just(BodyKind::Object)];
    // Times up to the year 9999.
    let rest = (
        any::<u128>(),
        0..=253_402_300_799_999u64,
        any::<bool>(),
        any::<bool>(),
        kind,
    );
    (texts, rest).prop_map(
        |((from, to, name, thread_id, reply_to_id, body), (id, created_at_ms, to_topic, of_kite, kind))| {
            record::Message {
                id: uuid::Builder::from_random_bytes(id.to_be_bytes())
                    .into_uuid()
                    .as_bytes()
                    .to_vec()
                    .into(),
                from,
                to: if to_topic { String::new() } else { to },
                topic: if to_topic { name.clone() } else { String::new() },
                r#type: if of_kite {
                    cloudevent::EVENT_TYPE.to_owned()
                } else {
                    name
                },
                body_kind: kind as i32,
                body: body.into(),
                thread_id,
                reply_to_id,
                created_at_ms,
                ..Default::default()
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn the_vendors_parser_finds_every_sent_value(
        message in any_message(),
        seq in 1..=i64::MAX as u64,
        receiver in prop::option::of("[A-Za-z0-9._:-]{1,128}"),
    ) {
        let (event, mail) = sent(&message, receiver.as_deref(), seq);
        assert_well_formed(&event, &message);
        let as_sent = if message.topic.is_empty() { message.to.clone() } else { format!("topic:{}", message.topic) };
        let to = receiver.unwrap_or(as_sent);
        let some = |text: &String| (!text.is_empty()).then(|| text.clone());
        prop_assert_eq!((&mail.from, &mail.to), (&message.from, &to));
        prop_assert_eq!(mail.body.as_bytes(), &message.body[..]);
        prop_assert_eq!((mail.thread_id, mail.reply_to_id), (some(&message.thread_id), some(&message.reply_to_id)));
        let data: Data = serde_json::from_value(event["data"].clone()).unwrap();
        prop_assert_eq!(data.topic, some(&message.topic));
        let own_type = Some(message.r#type.clone()).filter(|name| name != cloudevent::EVENT_TYPE);
        prop_assert_eq!(data.kind, own_type);
    }

    #[test]
    fn a_summary_is_as_long_as_80_bytes_allow(body in body()) {
        let summary = cloudevent::summary("a", "b", &body);
        if body.len() <= 80 || body.is_char_boundary(80) {
            prop_assert_eq!(summary, AgentMessage::new("a", "b", body).summary());
        } else {
            let shown = summary.strip_prefix("[agent msg] a → b: ").unwrap().strip_suffix('…').unwrap();
            prop_assert!(body.starts_with(shown));
            prop_assert!((77..80).contains(&shown.len()));
        }
    }
}
