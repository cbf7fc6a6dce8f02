//! Measures the time and the memory that the checkers need: `checker_speed 10000000` generates a valid run with this
//! many operations and checks it.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use jepsen_like_tests::checker;
use jepsen_like_tests::checker::evidence::Evidence;
use jepsen_like_tests::record::faults::FAULTS;
use jepsen_like_tests::record::history::HISTORY;
use jepsen_like_tests::record::run::{self, REPLICAS, RUN, Replicas, RequiredCoverage, Run};
use jepsen_like_tests::record::verdict::Validity;

const NODES: u64 = 3;
const INBOXES: u64 = 1_000;
const LANES: u64 = 16;
/// Time between two operations.
const STEP_NS: u64 = 1_000;
/// The number of sends before each page.
const SENDS: u64 = 3;

fn main() -> Result<()> {
    let operations = std::env::args().nth(1).context("how many operations?")?.parse()?;
    let dir = tempfile::tempdir()?;
    make_up(dir.path(), operations)?;
    let size = std::fs::metadata(dir.path().join(HISTORY))?.len();
    println!("{operations} operations, {} MB", size / 1_000_000);
    let began = Instant::now();
    let evidence = Evidence::load(dir.path())?;
    println!("loaded after {:.1} s", began.elapsed().as_secs_f64());
    let verdict = checker::check(&evidence);
    println!(
        "checked after {:.1} s, {}",
        began.elapsed().as_secs_f64(),
        most_memory()?
    );
    ensure!(verdict.validity == Validity::Valid, "{verdict:#?}");
    Ok(())
}

/// Sends to inboxes in turns; now and then a client reads the newest messages of one.
fn make_up(dir: &Path, operations: u64) -> Result<()> {
    let mut file = BufWriter::new(File::create(dir.join(HISTORY))?);
    let mut sent = vec![0; INBOXES as usize];
    for number in 0..operations {
        let (lane, inbox) = (number % LANES, (number * 7919) % INBOXES);
        let count = &mut sent[inbox as usize];
        if number % (SENDS + 1) < SENDS {
            let asked = format!(r#""items":[{{"key":"{inbox}-{count}"}}]"#);
            let answered = format!(r#""items":[{}]"#, item(inbox, *count, true));
            operation(&mut file, number, lane, "send", inbox, &asked, &answered)?;
            *count += 1;
        } else {
            let items: Vec<String> = (0..*count).rev().take(5).map(|n| item(inbox, n, false)).collect();
            let answered = format!(r#""items":[{}]"#, items.join(","));
            let asked = r#""n":5,"name":"newest""#;
            operation(&mut file, number, lane, "read", inbox, asked, &answered)?;
        }
    }
    for number in 0..NODES * INBOXES {
        let (lane, inbox) = (LANES + number % NODES, number / NODES);
        let items: Vec<String> = (0..sent[inbox as usize]).map(|n| item(inbox, n, true)).collect();
        let answered = format!(r#""items":[{}]"#, items.join(","));
        operation(&mut file, operations + number, lane, "audit", inbox, "", &answered)?;
    }
    file.flush()?;
    describe(dir, operations * STEP_NS)
}

fn operation(
    file: &mut impl Write,
    number: u64,
    lane: u64,
    op: &str,
    inbox: u64,
    asked: &str,
    answered: &str,
) -> Result<()> {
    let (t, node) = (number * STEP_NS, 1 + lane % NODES);
    let head =
        |t: u64, ph: &str| format!(r#"{{"t":{t},"p":{lane},"node":{node},"ph":"{ph}","op":"{op}","k":"mail-{inbox}""#);
    writeln!(file, r#"{},"v":{{{asked}}}}}"#, head(t, "invoke"))?;
    writeln!(file, r#"{},"v":{{{answered}}}}}"#, head(t + STEP_NS / 2, "ok"))?;
    Ok(())
}

/// A message of an inbox; its id is as long as the server's.
fn item(inbox: u64, number: u64, with_key: bool) -> String {
    let id = format!("msg_{:032x}", (u128::from(inbox) << 64) + u128::from(number));
    let key = if with_key {
        format!(r#","key":"{inbox}-{number}""#)
    } else {
        String::new()
    };
    format!(r#"{{"id":"{id}"{key}}}"#)
}

fn describe(dir: &Path, healed: u64) -> Result<()> {
    File::create(dir.join(FAULTS))?;
    let replicas = Replicas {
        same: true,
        difference: String::new(),
    };
    run::write(&dir.join(REPLICAS), &replicas)?;
    let run = Run {
        scenario: "none".to_owned(),
        title: String::new(),
        required: RequiredCoverage::default(),
        seed: 1,
        length_s: 1.0,
        nodes: NODES as usize,
        command: String::new(),
        git: String::new(),
        wall_ms: 0,
        faults_began: 0,
        healed,
        crashes: Vec::new(),
    };
    run::write(&dir.join(RUN), &run)
}

/// The peak memory of this process.
fn most_memory() -> Result<String> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmHWM"));
    Ok(line.context("no VmHWM")?.to_owned())
}
