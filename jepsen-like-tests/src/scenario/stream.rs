//! W: WebSocket sessions that are cut, are too slow, resume on nodes that are behind, or send wrong acks and cursors.
//!
//! W1, resuming exactly at the edge of removed messages, needs messages of 30 days or an inbox of 100,000 messages.
//! The node's tests cover it with a simulated clock: `ws_resume.rs`, `ws_cursors.rs` and the model in `resume_model`.

use std::time::Duration;

use anyhow::Result;

use super::definition::{Cover, InSoak, Scenario, three};
use crate::record::faults::FaultState;
use crate::scenario::nemesis::Nemesis;
use crate::workload::Workload;
use crate::workload::stream::Mix;

/// How long a follower is stopped; the handshake of a client that connects meanwhile waits for it.
const STOP_MS: std::ops::Range<u64> = 1_000..4_000;

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario {
            script: |nemesis| Box::pin(nemesis.kill_leaders_repeatedly()),
            ..row(
                "W2",
                "clients that acknowledge seqs that do not exist yet",
                AHEAD,
                &[("kill", 1)],
            )
        },
        Scenario {
            rate: 200,
            script: |nemesis| Box::pin(async move { nemesis.rest().await }),
            ..row("W3", "slow readers, and readers that stop reading", SLOW, &[])
        },
        Scenario {
            script: |nemesis| Box::pin(stop_followers(nemesis)),
            ..row(
                "W4",
                "sessions resumed on a node that is behind",
                TAILS,
                &[("pause", 2)],
            )
        },
        Scenario {
            smoke: Some(Duration::from_secs(8)),
            script: |nemesis| Box::pin(change_leaders(nemesis)),
            ..row(
                "W5",
                "a new leader during sessions, by hand-over or by kill -9",
                TAILS,
                &[("kill", 1), ("transfer", 1)],
            )
        },
        Scenario {
            script: |nemesis| Box::pin(nemesis.kill_leaders_repeatedly()),
            ..row("W6", "cursors in which a letter is wrong", SPOILT, &[("kill", 1)])
        },
    ]
}

const TAILS: &[Workload] = &[Workload::Stream(Mix::Tails)];
const SLOW: &[Workload] = &[Workload::Stream(Mix::Slow)];
const AHEAD: &[Workload] = &[Workload::Stream(Mix::Ahead)];
const SPOILT: &[Workload] = &[Workload::Stream(Mix::InvalidCursors)];

/// The defaults of these scenarios.
fn row(
    name: &'static str,
    title: &'static str,
    loads: &'static [Workload],
    faults: &'static [(&'static str, u64)],
) -> Scenario {
    Scenario {
        name,
        title,
        cluster: three,
        loads,
        rate: 400,
        length: Duration::from_secs(60),
        smoke: None,
        in_soak: InSoak::Varied,
        steady_leader: false,
        needs: &[],
        cover: Cover {
            faults,
            operations_inside: 0,
            leader_changes: 0,
        },
        script: |nemesis| Box::pin(async move { nemesis.rest().await }),
    }
}

/// Stops followers. A client that connects to a stopped node gets its greeting when the node continues, after the
/// others.
async fn stop_followers(nemesis: &mut Nemesis) -> Result<()> {
    while !nemesis.over() {
        nemesis.pause(200..1_000).await;
        let leader = nemesis.leader().await?;
        let follower = leader % nemesis.cluster.nodes() + 1;
        nemesis.pause_for(&[follower], STOP_MS).await?;
    }
    Ok(())
}

async fn change_leaders(nemesis: &mut Nemesis) -> Result<()> {
    for count in 0_u32.. {
        if nemesis.over() {
            break;
        }
        nemesis.pause(300..1_500).await;
        let leader = nemesis.leader().await?;
        if count.is_multiple_of(2) {
            let next = leader % nemesis.cluster.nodes() + 1;
            let fault = nemesis.faults.begin("transfer", &[leader, next], "");
            nemesis.cluster.transfer(next).await?;
            nemesis.faults.end(fault, FaultState::Installed)?;
        } else {
            nemesis.kill_for(&[leader], 200..1_500).await?;
        }
    }
    Ok(())
}
