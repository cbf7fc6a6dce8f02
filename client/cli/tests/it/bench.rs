//! The modes of `agentpost bench` about age, size and failures, each with a tiny load on three nodes.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use agentpost_testkit::PATIENCE;

use crate::common::cluster::Cluster;
use crate::common::parts;

/// Runs the modes and returns the rows, each of nine columns.
async fn rows(cluster: &Cluster, args: &[&str]) -> Vec<Vec<String>> {
    let args = [&["bench", "--warm-up", "0", "--in-flight", "2", "--tsv"], args].concat();
    let (code, stdout, stderr) = parts(&cluster.agentpost_within(10 * PATIENCE, &args).await);
    assert_eq!((code, stderr.as_str()), (Some(0), ""), "{stdout}");
    let rows = stdout
        .lines()
        .map(|line| line.split('\t').map(str::to_owned).collect::<Vec<_>>());
    let rows: Vec<Vec<String>> = rows.collect();
    for row in &rows {
        // On a busy machine a second may pass without an answer; a ratio is no number then.
        assert!(row.len() == 9 && row[4].parse::<f64>().is_ok(), "{stdout}");
    }
    rows
}

fn kinds(rows: &[Vec<String>]) -> Vec<(&str, &str, &str)> {
    rows.iter().map(|row| (&*row[0], &*row[1], &*row[5])).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_load_generator_fills_a_cluster_and_watches_it() {
    let cluster = Cluster::start().await;
    let data = tempfile::tempdir().unwrap();
    let data = format!("1={}", data.path().display());
    let args = [
        "--mode",
        "sustain,keyed,keyed-batch",
        "--preload",
        "250",
        "--seconds",
        "4",
        "--data",
        &data,
    ];
    let rows = rows(&cluster, &args).await;
    let expected = [
        ("agentpost-preload", "acked-writes", "msg/s"),
        ("agentpost-sustain-0001s", "acked-writes", "msg/s"),
        ("agentpost-sustain-0002s", "acked-writes", "msg/s"),
        ("agentpost-sustain-0003s", "acked-writes", "msg/s"),
        ("agentpost-sustain-0004s", "acked-writes", "msg/s"),
        ("agentpost-sustain", "acked-writes", "msg/s"),
        ("agentpost-sustain", "sustained-rate", "%"),
        ("agentpost-sustain", "sustained-p99", "%"),
        ("agentpost-sustain", "leader-changes", "changes"),
        ("agentpost-sustain", "memory", "MiB"),
        ("agentpost-sustain", "disk", "MiB"),
        ("agentpost-keyed", "acked-writes", "msg/s"),
        ("agentpost-keyed-batch", "acked-writes", "msg/s"),
    ];
    assert_eq!(kinds(&rows), expected);
    assert!(
        rows[0][8].starts_with("250 messages to 1000 inboxes of each of 10 teams"),
        "{rows:?}"
    );
    let step = &rows[1][8];
    let told = ["leader-changes=", " memory-MiB=1:", ",3:", " disk-MiB=1:"];
    assert!(told.iter().all(|part| step.contains(part)), "{step}");
    assert!(rows[11][8].starts_with("swept-rows/s=0 "), "{rows:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_load_generator_compares_an_old_cluster_with_a_young_one() {
    let cluster = Cluster::start().await;
    let args = [
        "--mode",
        "full-inbox,busy-teams,agents,idle-teams",
        "--sizes",
        "full-inbox=200,busy-teams=4,agents=300,idle-teams=5",
        "--seconds",
        "1",
    ];
    let rows = rows(&cluster, &args).await;
    let compared = |base, other| {
        [
            (base, "acked-writes", "msg/s"),
            (other, "acked-writes", "msg/s"),
            (other, "rate", "%"),
            (other, "p99", "%"),
        ]
    };
    let mut expected = compared("agentpost-inbox-empty", "agentpost-inbox-full").to_vec();
    expected.extend([
        ("agentpost-beside-inbox-empty", "acked-writes", "msg/s"),
        ("agentpost-beside-inbox-full", "acked-writes", "msg/s"),
    ]);
    expected.extend(compared("agentpost-teams-2", "agentpost-teams-4"));
    expected.extend(compared("agentpost-agents-150", "agentpost-agents-300"));
    expected.extend([
        ("agentpost-teams-idle", "elections", "elections"),
        ("agentpost-teams-idle", "idle-cpu", "%"),
        ("agentpost-teams-none", "acked-writes", "msg/s"),
        ("agentpost-teams-idle", "acked-writes", "msg/s"),
        ("agentpost-teams-idle", "p99", "%"),
    ]);
    assert_eq!(kinds(&rows), expected);
}

/// A program that starts nodes. Dropping it ends those that it has started.
struct Starter {
    dir: tempfile::TempDir,
}

impl Starter {
    fn of(cluster: &Cluster) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cases: String = (1..=3)
            .map(|n| format!("  {n}) exec {} ;;\n", cluster.start_command(n)))
            .collect();
        let pids = dir.path().join("pids");
        let text = format!(
            "#!/bin/sh\n(case $1 in\n{cases}esac) >/dev/null 2>&1 &\necho $! >>{}\necho $!\n",
            pids.display()
        );
        let starter = Starter { dir };
        std::fs::write(starter.program(), text).unwrap();
        std::fs::set_permissions(starter.program(), std::fs::Permissions::from_mode(0o700)).unwrap();
        starter
    }

    fn program(&self) -> PathBuf {
        self.path("start")
    }

    fn path(&self, name: &str) -> PathBuf {
        Path::join(self.dir.path(), name)
    }
}

impl Drop for Starter {
    fn drop(&mut self) {
        let pids = std::fs::read_to_string(self.path("pids")).unwrap_or_default();
        for pid in pids.lines() {
            let _ = Command::new("kill").args(["-KILL", pid]).status();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_load_generator_kills_nodes_and_starts_them_again() {
    let cluster = Cluster::start().await;
    let starter = Starter::of(&cluster);
    let (program, pids) = (starter.program(), cluster.pids());
    let control = ["--kill", &pids, "--start", program.to_str().unwrap()];
    let failover = rows(
        &cluster,
        &[&["--mode", "failover", "--kills", "2"], &control[..]].concat(),
    )
    .await;
    assert_eq!(kinds(&failover), [("agentpost-http", "failover-no-ack-window", "ms")]);
    let note = &failover[0][8];
    assert!(
        note.starts_with("median of 2 kills ") && note.contains(" lost=0 doubled=0 "),
        "{note}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_load_generator_times_the_restart_of_a_follower() {
    let cluster = Cluster::start().await;
    let starter = Starter::of(&cluster);
    let (program, pids) = (starter.program(), cluster.pids());
    let args = [
        "--mode",
        "restart",
        "--kill",
        &pids,
        "--start",
        program.to_str().unwrap(),
    ];
    let rows = rows(&cluster, &args).await;
    let expected = [
        ("agentpost", "restart-to-health", "ms"),
        ("agentpost", "restart-to-ready", "ms"),
    ];
    assert_eq!(kinds(&rows), expected);
    assert!(
        rows[1][4].parse::<f64>().unwrap() >= rows[0][4].parse::<f64>().unwrap(),
        "{rows:?}"
    );
}
