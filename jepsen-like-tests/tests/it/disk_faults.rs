//! The reaction of a node to disk faults: it ends and logs why, and everything that it acknowledged is kept.

use std::process::ExitStatus;
use std::time::Duration;

use anyhow::Result;
use jepsen_like_tests::cluster::{Cluster, Settings};
use tokio::time::sleep;

/// A single node whose disk can fail.
async fn alone() -> Result<Cluster> {
    Cluster::start_with(Settings {
        nodes: 1,
        disk_shim: true,
        config: "[storage]\nmin_free_bytes = 0\nmin_free_percent = 0\nballast_bytes = 1_048_576\n".to_owned(),
        ..Settings::default()
    })
    .await
}

/// Waits until node 1 has ended.
async fn end(cluster: &mut Cluster) -> Result<ExitStatus> {
    loop {
        if let Some((_, status)) = cluster.crashed()?.pop() {
            return Ok(status);
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// The error with which node 1 ended.
fn last_words(cluster: &Cluster) -> String {
    let log = cluster.log(1);
    let line = log.lines().rfind(|line| line.contains("agentpostd failed"));
    line.unwrap_or_else(|| panic!("it did not say why:\n{log}")).to_owned()
}

async fn send(
    cluster: &Cluster,
    team: &jepsen_like_tests::cluster::Team,
    text: &str,
) -> Result<String, agentpost::Error> {
    let message = jepsen_like_tests::workload::message::message("inbox", text).unwrap();
    let client = cluster.node_client(1, team, "sender").unwrap();
    Ok(client.draft(message).await?.id)
}

#[tokio::test]
async fn a_failed_flush_of_the_log_ends_the_node_and_nothing_acknowledged_is_lost() -> Result<()> {
    let mut cluster = alone().await?;
    let team = cluster.team("flush").await?;
    let before = send(&cluster, &team, "before").await.unwrap();
    for rules in [
        "fsync shards/0/log/ eio-once",
        "write shards/0/log/ eio-once",
        "write shards/0/log/ enospc",
    ] {
        cluster.set_disk_faults(1, rules).await?;
        let error = send(&cluster, &team, rules).await.unwrap_err();
        // The outcome is unknown, so the error must not be a refusal.
        assert!(!matches!(error, agentpost::Error::Refused(_)), "{error}");
        assert!(!end(&mut cluster).await?.success(), "{rules}");
        let said = last_words(&cluster);
        assert!(said.contains("shards/0/log/"), "{said}");
        cluster.set_disk_faults(1, "").await?;
        cluster.launch(&[1])?;
        cluster.await_ready(&[1]).await?;
    }
    let reader = cluster.client(&team, "inbox")?;
    let inbox = reader.inbox().await?;
    assert_eq!(inbox.mail.first().map(|m| m.id.clone()), Some(before));
    Ok(())
}

#[tokio::test]
async fn a_state_that_cannot_be_written_ends_the_node_although_nobody_writes() -> Result<()> {
    let mut cluster = alone().await?;
    let admin = cluster.admin()?;
    let team = cluster.team("state").await?;
    send(&cluster, &team, "before").await.unwrap();
    cluster.set_disk_faults(1, "fsync shards/0/state/ eio-once").await?;
    // A snapshot flushes the state.
    let _ = admin.snapshot().await;
    assert!(!end(&mut cluster).await?.success());
    assert!(
        last_words(&cluster).contains("state database"),
        "{}",
        last_words(&cluster)
    );
    cluster.set_disk_faults(1, "").await?;
    cluster.launch(&[1])?;
    cluster.await_ready(&[1]).await?;
    let inbox = cluster.client(&team, "inbox")?.inbox().await?;
    assert_eq!(inbox.mail.len(), 1);
    Ok(())
}

#[tokio::test]
async fn a_floor_that_cannot_be_written_ends_the_node_although_nobody_waits_for_it() -> Result<()> {
    let mut cluster = alone().await?;
    let team = cluster.team("floor").await?;
    cluster.set_disk_faults(1, "write shards/0/FLOOR eio-once").await?;
    // An acknowledged message is on disk, even if the floor is not; and nothing else is sent.
    let sent = send(&cluster, &team, "sent").await;
    assert!(!matches!(sent, Err(agentpost::Error::Refused(_))), "{sent:?}");
    assert!(!end(&mut cluster).await?.success());
    assert!(last_words(&cluster).contains("floor"), "{}", last_words(&cluster));
    cluster.set_disk_faults(1, "").await?;
    cluster.launch(&[1])?;
    cluster.await_ready(&[1]).await?;
    let inbox = cluster.client(&team, "inbox")?.inbox().await?;
    assert!(sent.is_err() || inbox.mail.len() == 1, "{sent:?}");
    Ok(())
}

#[tokio::test]
async fn a_flush_that_hangs_ends_the_node() -> Result<()> {
    let mut cluster = alone().await?;
    let team = cluster.team("hang").await?;
    cluster
        .set_disk_faults(1, "fsync shards/0/log/ delay-ms 600000")
        .await?;
    let error = send(&cluster, &team, "hanging").await.unwrap_err();
    assert!(!matches!(error, agentpost::Error::Refused(_)), "{error}");
    assert!(!end(&mut cluster).await?.success());
    assert!(last_words(&cluster).contains("hangs"), "{}", last_words(&cluster));
    Ok(())
}

#[tokio::test]
async fn a_start_on_a_disk_without_a_byte_says_so() -> Result<()> {
    let mut cluster = alone().await?;
    cluster.kill(1)?;
    cluster
        .set_disk_faults(1, "write shards/ enospc\nallocate shards/ enospc")
        .await?;
    cluster.launch(&[1])?;
    assert_eq!(end(&mut cluster).await?.code(), Some(1));
    assert!(
        last_words(&cluster).contains("No space left"),
        "{}",
        last_words(&cluster)
    );
    Ok(())
}
