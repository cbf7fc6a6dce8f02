//! A run with webhooks and WebSocket sessions but without faults: it is valid, it can be checked again without its
//! cluster, and the checkers detect manipulated records. The scenarios X1 to X10 and W2 to W6 test the same with
//! faults.

use std::path::Path;
use std::time::Duration;

use jepsen_like_tests::checker;
use jepsen_like_tests::checker::evidence::Evidence;
use jepsen_like_tests::record::deliveries::{CALLS, DELIVERIES};
use jepsen_like_tests::record::history::HISTORY;
use jepsen_like_tests::record::verdict::Validity;
use jepsen_like_tests::run::{self, Options};
use jepsen_like_tests::scenario;
use jepsen_like_tests::workload::{Workload, stream, webhooks};
use serde_json::Value;

/// Changes lines of a file, checks the run again, restores the file, and returns all violations.
fn forged(dir: &Path, file: &str, forge: impl FnOnce(&mut Vec<Value>)) -> Vec<String> {
    let path = dir.join(file);
    let honest = std::fs::read_to_string(&path).unwrap();
    let mut lines: Vec<Value> = honest.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    forge(&mut lines);
    let lines: String = lines.iter().map(|line| format!("{line}\n")).collect();
    std::fs::write(&path, lines).unwrap();
    let verdict = checker::check(&Evidence::load(dir).unwrap());
    std::fs::write(&path, honest).unwrap();
    verdict.checks.into_iter().flat_map(|check| check.violations).collect()
}

fn position(lines: &[Value], is_wanted: impl Fn(&Value) -> bool) -> usize {
    lines.iter().position(is_wanted).unwrap()
}

fn has(violations: &[String], rule: &str) {
    let found = violations.iter().any(|violation| violation.starts_with(rule));
    assert!(found, "no {rule} in {violations:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_is_valid_can_be_checked_again_and_not_be_forged() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("run");
    let peace = scenario::named("H1").unwrap();
    let options = Options {
        seed: rand::random(),
        length: Duration::from_secs(1),
        loads: Some(vec![
            Workload::Webhooks(webhooks::Mix::Quick),
            Workload::Stream(stream::Mix::Tails),
        ]),
        rate: Some(50),
        env: Vec::new(),
        dir: dir.clone(),
    };
    println!("seed {}", options.seed);
    let verdict = run::run(&peace, &options).await.unwrap();
    assert_eq!(
        (verdict.validity, verdict.reason.as_str()),
        (Validity::Valid, ""),
        "{:?}",
        verdict.checks
    );
    assert!(verdict.figures["dead letters"] >= 3.0 && verdict.figures["frames"] >= 3.0);
    assert_eq!(checker::check(&Evidence::load(&dir).unwrap()), verdict);

    has(&forged(&dir, CALLS, |calls| calls.push(calls[0].clone())), "D1");
    has(&forged(&dir, CALLS, |calls| drop(calls.remove(0))), "D2");
    let no_notice = forged(&dir, DELIVERIES, |records| {
        records.remove(position(records, |record| record["notice"].is_object()));
    });
    has(&no_notice, "D7");
    let open = forged(&dir, DELIVERIES, |records| {
        let place = position(records, |record| record["delivery"]["state"] == "delivered");
        records[place]["delivery"]["state"] = "scheduled".into();
    });
    has(&open, "D10");
    let unknown = forged(&dir, DELIVERIES, |records| {
        let place = position(records, |record| record["delivery"]["attempts"][0]["end"] == "failed");
        records[place]["delivery"]["attempts"][0]["end"] = "unknown".into();
    });
    has(&unknown, "D12");
    let vanished = forged(&dir, DELIVERIES, |records| {
        let kept = position(records, |record| record["delivery"]["state"] == "delivered");
        records.remove(kept);
    });
    has(&vanished, "G4");
    let unseen = forged(&dir, HISTORY, |events| {
        let many = |event: &Value| event["op"] == "frame" && event["v"]["items"][2].is_object();
        let place = position(events, many);
        events[place]["v"]["items"].as_array_mut().unwrap().remove(1);
    });
    has(&unseen, "gap");
}
