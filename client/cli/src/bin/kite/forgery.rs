//! Property tests: text of strangers in any field of an event or an error stays on one line and cannot control the
//! terminal.

use std::time::Duration;

use agentpost::kite::{Event, Notice};
use proptest::prelude::*;
use serde_json::json;

use crate::listening::Notes;
use crate::{listen, stream};

/// Characters that end lines, begin escape sequences or turn the direction of text, among any others.
fn text() -> impl Strategy<Value = String> {
    let special = "\0\u{7}\u{8}\t\n\u{b}\u{c}\r\u{1b}[]\\#\u{7f}\u{85}\u{9b}\u{9d}\u{61c}\u{200e}\u{200f}\u{2028}\u{2029}\
                   \u{202a}\u{202e}\u{2066}\u{2069}\u{feff}\u{e0041}";
    let special: Vec<char> = special.chars().collect();
    let character = prop_oneof![any::<char>(), prop::sample::select(special)];
    prop::collection::vec(character, 0..30).prop_map(String::from_iter)
}

/// An event with arbitrary text in every field.
fn event() -> impl Strategy<Value = Event> {
    (prop::collection::vec(text(), 8), any::<bool>()).prop_map(|(texts, is_mail)| {
        let [id, kind, source, time, from, body, thread, summary] = &texts[..] else {
            unreachable!("eight texts")
        };
        let kind = if is_mail { "com.kite.agent.message" } else { kind };
        let data = json!({"from": from, "to": source, "body": body, "thread_id": thread, "reply_to_id": id});
        let event =
            json!({"id": id, "type": kind, "source": source, "time": time, "data": data, "kitesummary": summary});
        Event::new(7, event).expect("it has an id and a type")
    })
}

fn is_harmless(line: &str) -> bool {
    let turns =
        |c| matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    !line.contains(|c: char| c.is_control() || turns(c))
}

proptest! {
    #[test]
    fn no_event_forges_a_line_or_drives_the_terminal(event in event()) {
        for line in [stream::line(&event), stream::compact_line(&event), listen::mail_line(&event)] {
            prop_assert!(is_harmless(&line), "{line:?}");
        }
        // As JSON it is one line, too.
        let json = event.to_string();
        prop_assert!(!json.contains(['\n', '\r']));
        prop_assert_eq!(&Event::new(7, serde_json::from_str(&json).expect("JSON")).expect("an event"), &event);
    }

    #[test]
    fn no_server_forges_a_note_or_drives_the_terminal(reason in text(), url in text()) {
        for notice in [
            Notice::Connecting { url },
            Notice::BillingBlock { reason: reason.clone() },
            Notice::Disconnected { reason: reason.clone() },
            Notice::ConnectionFailed { reason },
            Notice::Reconnecting { after: Duration::from_secs(1) },
        ] {
            let line = Notes::default().line(&notice).unwrap_or_default();
            prop_assert!(is_harmless(&line), "{line:?}");
        }
    }
}
