use super::super::operation_builders::{did, evidence, items, name, refused, unknown};
use super::*;
use crate::record::history::Fields;

const TOPIC: &str = "t/news";

fn on(agent: &str, times: std::ops::Range<u64>) -> Operation {
    did(Op::Subscribe, TOPIC, name(agent), times, Fields::default())
}

fn off(agent: &str, times: std::ops::Range<u64>) -> Operation {
    did(Op::Unsubscribe, TOPIC, name(agent), times, Fields::default())
}

fn asked(key: &str) -> Fields {
    Fields {
        key: Some(key.to_owned()),
        ..name("t/publisher")
    }
}

fn publish(key: &str, times: std::ops::Range<u64>) -> Operation {
    did(Op::Publish, TOPIC, asked(key), times, Fields::id("msg_1"))
}

fn inbox(agent: &str, keys: &[&str]) -> Operation {
    did(
        Op::Inbox,
        agent,
        Fields::default(),
        900..910,
        Fields::items(items(keys, None)),
    )
}

fn violations(operations: Vec<Operation>) -> Vec<String> {
    check(&evidence(operations)).violations
}

fn only(operations: Vec<Operation>, word: &str) {
    let found = violations(operations);
    assert!(found.len() == 1 && found[0].contains(word), "{word}: {found:?}");
}

#[test]
fn a_certain_subscriber_gets_a_publish_once() {
    let history = |keys: &[&str]| vec![on("t/a", 1..2), publish("p", 3..4), inbox("t/a", keys)];
    assert!(violations(history(&["p"])).is_empty());
    only(history(&[]), "does not have it");
    only(history(&["p", "p"]), "2 times");
}

#[test]
fn an_agent_that_is_certainly_not_subscribed_gets_no_publish() {
    let before = |keys: &[&str]| vec![publish("p", 1..2), on("t/a", 3..4), inbox("t/a", keys)];
    assert!(violations(before(&[])).is_empty());
    only(before(&["p"]), "without a subscription");
    let after = |keys: &[&str]| {
        let operations = [
            on("t/a", 1..2),
            off("t/a", 3..4),
            publish("p", 5..6),
            inbox("t/a", keys),
        ];
        operations.to_vec()
    };
    assert!(violations(after(&[])).is_empty());
    only(after(&["p"]), "without a subscription");
    only(vec![publish("p", 1..2), inbox("t/a", &["p"])], "without a subscription");
}

#[test]
fn a_publish_during_a_change_may_or_may_not_arrive() {
    for keys in [&["p"][..], &[]] {
        assert!(violations(vec![on("t/a", 2..5), publish("p", 3..4), inbox("t/a", keys)]).is_empty());
        let ends = vec![
            on("t/a", 1..2),
            off("t/a", 4..7),
            publish("p", 3..5),
            inbox("t/a", keys),
        ];
        assert!(violations(ends).is_empty());
        // Either of the two may be the last change before the publish.
        let both = vec![
            on("t/a", 1..4),
            off("t/a", 2..3),
            publish("p", 5..6),
            inbox("t/a", keys),
        ];
        assert!(violations(both).is_empty());
    }
    only(
        vec![on("t/a", 2..5), publish("p", 3..4), inbox("t/a", &["p", "p"])],
        "2 times",
    );
}

#[test]
fn an_unknown_change_may_happen_later_and_a_refused_one_never() {
    let late = unknown(Op::Subscribe, TOPIC, name("t/a"), 1..2);
    for keys in [&["p"][..], &[]] {
        let history = vec![late.clone(), off("t/a", 3..4), publish("p", 5..6), inbox("t/a", keys)];
        assert!(violations(history).is_empty());
        let gone = unknown(Op::Unsubscribe, TOPIC, name("t/a"), 3..4);
        let history = vec![on("t/a", 1..2), gone, publish("p", 5..6), inbox("t/a", keys)];
        assert!(violations(history).is_empty());
    }
    let never = refused(Op::Subscribe, TOPIC, name("t/a"), 1..2, "503");
    only(
        vec![never, publish("p", 5..6), inbox("t/a", &["p"])],
        "without a subscription",
    );
    let stays = refused(Op::Unsubscribe, TOPIC, name("t/a"), 3..4, "503");
    let history = vec![on("t/a", 1..2), stays, publish("p", 5..6), inbox("t/a", &[])];
    only(history, "does not have it");
}

#[test]
fn a_subscription_that_was_ended_and_began_again_counts() {
    let history = |keys: &[&str]| {
        let changes = [on("t/a", 1..2), off("t/a", 3..4), on("t/a", 5..6)];
        [changes.to_vec(), vec![publish("p", 7..8), inbox("t/a", keys)]].concat()
    };
    assert!(violations(history(&["p"])).is_empty());
    only(history(&[]), "does not have it");
}

#[test]
fn a_publish_of_unknown_outcome_reaches_all_or_nobody() {
    let history = |a: &[&str], b: &[&str]| {
        let publish = unknown(Op::Publish, TOPIC, asked("p"), 5..6);
        vec![
            on("t/a", 1..2),
            on("t/b", 3..4),
            publish,
            inbox("t/a", a),
            inbox("t/b", b),
        ]
    };
    assert!(violations(history(&[], &[])).is_empty());
    assert!(violations(history(&["p"], &["p"])).is_empty());
    only(history(&["p"], &[]), "does not have it");
    let publish = refused(Op::Publish, TOPIC, asked("p"), 5..6, "400");
    only(vec![on("t/a", 1..2), publish, inbox("t/a", &["p"])], "was refused");
}

#[test]
fn a_repeat_under_the_same_key_is_the_same_publish() {
    let again = publish("p", 7..8);
    let history = |keys: &[&str]| {
        let first = unknown(Op::Publish, TOPIC, asked("p"), 3..4);
        vec![on("t/a", 1..2), first, again.clone(), inbox("t/a", keys)]
    };
    assert!(violations(history(&["p"])).is_empty());
    only(history(&["p", "p"]), "2 times");
}

#[test]
fn nobody_gets_what_it_published_itself() {
    let history = |keys: &[&str]| vec![on("t/publisher", 1..2), publish("p", 3..4), inbox("t/publisher", keys)];
    assert!(violations(history(&[])).is_empty());
    only(history(&["p"]), "published itself");
}

#[test]
fn all_subscribers_see_the_same_order() {
    let history = |keys: &[&str]| {
        let publishes = [publish("p", 5..9), publish("q", 6..8), publish("r", 7..9)];
        let subscribers = [on("t/a", 1..2), on("t/b", 1..2)];
        let inboxes = [inbox("t/a", &["p", "q", "r"]), inbox("t/b", keys)];
        [&publishes[..], &subscribers, &inboxes].concat()
    };
    assert!(violations(history(&["p", "q", "r"])).is_empty());
    only(history(&["q", "p", "r"]), "not in the order");
}

#[test]
fn publishes_that_do_not_overlap_keep_their_order() {
    let history = |keys: &[&str]| {
        vec![
            on("t/a", 1..2),
            publish("p", 3..4),
            publish("q", 5..6),
            inbox("t/a", keys),
        ]
    };
    assert!(violations(history(&["p", "q"])).is_empty());
    only(history(&["q", "p"]), "was acknowledged before");
}

#[test]
fn the_order_of_publishes_narrows_the_time_of_a_subscription() {
    // By its times alone, q may have come before b subscribed; but it follows p in the order, which was published
    // afterwards.
    let history = |b: &[&str]| {
        let publishes = [publish("q", 3..20), publish("p", 10..11)];
        let subscribers = [on("t/a", 1..2), on("t/b", 5..6)];
        let inboxes = [inbox("t/a", &["p", "q"]), inbox("t/b", b)];
        [&publishes[..], &subscribers, &inboxes].concat()
    };
    assert!(violations(history(&["p", "q"])).is_empty());
    only(history(&["p"]), "does not have it");
}

#[test]
fn an_inbox_that_no_node_shows_is_reported() {
    let audit = unknown(Op::Inbox, "t/a", Fields::default(), 900..910);
    only(vec![on("t/a", 1..2), publish("p", 3..4), audit], "does not show");
}
