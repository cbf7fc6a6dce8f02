//! A daemon with lost or damaged files: its quarantine after a start, and its end when the scrub finds damage.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tokio::net::TcpStream;

use crate::common::eventually;
use crate::common::web::{Call, metrics};
use agentpost_testkit::ports;

struct Daemon {
    process: Child,
    url: String,
}

impl Daemon {
    /// Starts `agentpostd dev` in `dir` and waits until its port is open.
    async fn start(dir: &Path) -> Self {
        let port = ports::free(1).unwrap()[0];
        let mut process = Command::new(env!("CARGO_BIN_EXE_agentpostd"))
            .args(["dev", "--port", &port.to_string(), "--data-dir"])
            .arg(dir)
            .env("AGENTPOST_NODE__PEER_ADDR", "127.0.0.1:0")
            .env("AGENTPOST_STORAGE__BALLAST_BYTES", "0")
            .env("AGENTPOST_STORAGE__MIN_FREE_BYTES", "0")
            .env("AGENTPOST_STORAGE__MIN_FREE_PERCENT", "0")
            .env("AGENTPOST_STORAGE__SCRUB_INTERVAL_S", "1")
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        eventually("an open port", async || {
            assert!(process.try_wait().unwrap().is_none(), "it ended");
            TcpStream::connect(("127.0.0.1", port)).await.ok()
        })
        .await;
        let url = format!("http://127.0.0.1:{port}");
        Daemon { process, url }
    }

    async fn ready(&self) {
        eventually("a node that is ready", async || {
            (Call::get("/readyz").to(&self.url).await.status == 200).then_some(())
        })
        .await;
    }

    fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn shard(dir: &Path) -> PathBuf {
    dir.join("data/shards/0")
}

#[tokio::test]
async fn a_quarantined_node_says_so_and_serves_nothing_else() {
    for lost in ["log", "FLOOR", ""] {
        let dir = tempfile::tempdir().unwrap();
        let healthy = Daemon::start(dir.path()).await;
        healthy.ready().await;
        healthy.kill();
        let lost = shard(dir.path()).join(lost);
        if lost.is_dir() {
            fs::remove_dir_all(&lost).unwrap();
        } else {
            fs::remove_file(&lost).unwrap();
        }
        for _restart in 0..2 {
            let daemon = Daemon::start(dir.path()).await;
            let health = eventually("a node in quarantine", async || {
                let health = Call::get("/health").to(&daemon.url).await.ok();
                (health["status"] == "quarantined").then_some(health)
            })
            .await;
            let reason = health["reason"].as_str().unwrap();
            assert!(reason.contains("shards/0"), "{reason}");
            for path in ["/readyz", "/v1/messages", "/admin/v1/cluster"] {
                let refusal = Call::get(path).to(&daemon.url).await.error(503);
                assert!(refusal.contains(reason) && refusal.contains("backup"), "{refusal}");
            }
            assert!(metrics(&daemon.url).await.contains("agentpost_quarantined 1\n"));
            assert!(
                fs::read_to_string(dir.path().join("data/QUARANTINE"))
                    .unwrap()
                    .contains(reason)
            );
            let id = daemon.process.id().to_string();
            assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
            let mut daemon = daemon;
            assert_eq!(daemon.process.wait().unwrap().code(), Some(0));
        }
    }
}

/// The scrub finds the damage, the process exits with 1, and the next start rebuilds the state from the log.
#[tokio::test]
async fn a_bit_that_flips_while_the_node_runs_ends_it_and_is_repaired() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path()).await;
    daemon.ready().await;
    // The scrub's checkpoint has flushed the state.
    let state = shard(dir.path()).join("state/db-1");
    let table = eventually("a file of the state", async || {
        let mut files = fs::read_dir(&state).unwrap().map(|item| item.unwrap().path());
        files.find(|path| path.extension().is_some_and(|extension| extension == "sst"))
    })
    .await;
    let flipped = fs::read(&table).unwrap()[10] ^ 1;
    let file = fs::File::options().write(true).open(&table).unwrap();
    file.write_all_at(&[flipped], 10).unwrap();
    let mut daemon = daemon;
    // `None` when RocksDB's threads delayed the exit and the process killed itself.
    assert!(matches!(daemon.process.wait().unwrap().code(), Some(1) | None));
    let daemon = Daemon::start(dir.path()).await;
    daemon.ready().await;
    assert!(shard(dir.path()).join("damaged").is_dir(), "the old state is kept");
}
