//! L: what only shows after a long time: full load for an hour, a large state, old age.

use std::time::{Duration, Instant};

use agentpost::Role;
use anyhow::Result;
use tokio::task::JoinHandle;

use super::definition::{Cover, InSoak, Need, Scenario, three};
use crate::cluster::Settings;
use crate::record::faults::FaultState;
use crate::record::leaders;
use crate::record::members::{self, ObservedMembers};
use crate::record::run::SWEPT_ROWS;
use crate::scenario::nemesis::Nemesis;
use crate::workload::Workload;
use crate::workload::flood::Flood;

/// Fewer acknowledged messages per second of a flood are no full load, even on a slow machine.
const FULL_LOAD: u64 = 500;
/// The messages of a large state; its transfer takes some ten seconds.
const LARGE: u64 = 300_000;
/// Time limit for the flood to send them.
const LARGE_PATIENCE: Duration = Duration::from_secs(300);
/// Time limit for a node to join a large state.
const JOIN_PATIENCE: Duration = Duration::from_secs(120);
/// The time between two rounds of snapshots.
const SNAPSHOT_PERIOD: Duration = Duration::from_millis(500);
/// Rows that must be swept in an aged cluster.
const SWEPT: u64 = 1_000;
/// How much longer than planned leaders are killed until enough is swept: a day, and rounds of the sweeper.
const SWEPT_OVERTIME: Duration = Duration::from_secs(120);
/// Messages are kept for 30 days, which take 30 minutes at the speed of L3. Retention would look like a loss.
const AGED_MAX: Duration = Duration::from_secs(20 * 60);

pub fn scenarios() -> Vec<Scenario> {
    let l1 = Scenario {
        name: "L1",
        title: "an hour of full load, in which no election begins",
        cluster: three,
        loads: &[Workload::Send, Workload::Read],
        rate: 100,
        length: Duration::from_secs(3_600),
        smoke: None,
        in_soak: InSoak::AsItIs(Duration::from_secs(180)),
        steady_leader: true,
        needs: &[],
        cover: Cover {
            faults: &[("full load", 1)],
            operations_inside: 50,
            leader_changes: 0,
        },
        script: |nemesis| Box::pin(full_load(nemesis)),
    };
    vec![
        l1.clone(),
        Scenario {
            name: "L2",
            title: "a node joins a large state under load, while all nodes purge their logs",
            cluster: || Settings {
                config: "[raft]\nlog_bytes_kept = 50_000\nsnapshot_send_bytes_per_s = 20_000_000\n".to_owned(),
                ..three()
            },
            length: Duration::from_secs(60),
            in_soak: InSoak::AsItIs(Duration::from_secs(60)),
            steady_leader: false,
            cover: Cover {
                faults: &[("join large", 1)],
                ..l1.cover
            },
            script: |nemesis| Box::pin(join_large(nemesis)),
            ..l1.clone()
        },
        Scenario {
            name: "L3",
            title: "kill -9 of the leader while the rows of the day before are swept",
            // A day of cluster time takes a minute.
            cluster: || Settings {
                env: vec![("AGENTPOST_CLUSTER_TIME_SPEED".to_owned(), "1440".to_owned())],
                ..three()
            },
            rate: 1_000,
            length: Duration::from_secs(120),
            // Other workloads rely on times that would pass too fast.
            in_soak: InSoak::AsItIs(Duration::from_secs(120)),
            steady_leader: false,
            needs: &[Need::Failpoints],
            cover: Cover {
                faults: &[("kill", 3), (SWEPT_ROWS, SWEPT)],
                operations_inside: 100,
                leader_changes: 3,
            },
            script: |nemesis| Box::pin(kill_aged_leaders(nemesis)),
            ..l1
        },
    ]
}

async fn full_load(nemesis: &mut Nemesis) -> Result<()> {
    let mut fault = nemesis.faults.begin("full load", &[], "");
    let (began, flood) = (Instant::now(), Flood::start(&nemesis.ctx).await?);
    nemesis.rest().await?;
    let sent = flood.stop().await?;
    let elapsed = began.elapsed();
    fault.note(&format!("{sent} messages in {elapsed:.1?}"));
    nemesis.faults.end(fault, loaded(sent, elapsed))
}

/// Whether a flood was a full load.
fn loaded(sent: u64, elapsed: Duration) -> FaultState {
    match sent >= FULL_LOAD * elapsed.as_secs() && sent > 0 {
        true => FaultState::Installed,
        false => FaultState::Indeterminate,
    }
}

/// A fourth node joins and leaves again. All nodes take snapshots and purge their logs all the time, so that a node
/// whose snapshot has arrived finds the entries after it only if its leader kept them.
async fn join_large(nemesis: &mut Nemesis) -> Result<()> {
    let fourth = nemesis.cluster.grow()?;
    let flood = Flood::start(&nemesis.ctx).await?;
    let large = flood.has_sent(LARGE, LARGE_PATIENCE).await;
    let purging = purge_again_and_again(nemesis);
    loop {
        let mut fault = nemesis.faults.begin("join large", &[fourth], "");
        let joined = nemesis.cluster.join_within(fourth, JOIN_PATIENCE).await;
        let by_snapshot = joined.is_ok() && received_snapshots(&nemesis.cluster.url(fourth)).await > 0;
        if let Err(error) = &joined {
            fault.note(&format!("{error:#}"));
        }
        let state = match large && by_snapshot {
            true => FaultState::Installed,
            false => FaultState::Indeterminate,
        };
        nemesis.faults.end(fault, state)?;
        observe_voters(nemesis, fourth, joined.is_ok()).await?;
        nemesis.cluster.leave(fourth).await?;
        if joined.is_err() || nemesis.over() {
            break;
        }
        nemesis.pause(100..800).await;
    }
    purging.abort();
    flood.stop().await?;
    Ok(())
}

fn purge_again_and_again(nemesis: &Nemesis) -> JoinHandle<()> {
    let ctx = nemesis.ctx.clone();
    tokio::spawn(async move {
        loop {
            for node in 1..=ctx.nodes() {
                // Refused while another snapshot is taken.
                if let Ok(operator) = ctx.node_operator(node) {
                    let _ = operator.snapshot().await;
                }
            }
            tokio::time::sleep(SNAPSHOT_PERIOD).await;
        }
    })
}

/// The snapshots that a node has received from others since its start.
async fn received_snapshots(url: &str) -> u64 {
    let text = leaders::metrics(url).await.unwrap_or_default();
    let received = leaders::metric(&text, "agentpost_snapshots_received_total");
    received.and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Records the voters. The node that joined must be one of them and ready: a node that never catches up is no member.
async fn observe_voters(nemesis: &mut Nemesis, joined: usize, is_ready: bool) -> Result<()> {
    let status = nemesis.cluster.operator()?.cluster().await?;
    let id = nemesis.cluster.id(joined);
    let votes = |role: &Role| *role != Role::Learner;
    let voters = status.nodes.iter().filter(|node| node.role.as_ref().is_some_and(votes));
    let voters = voters.map(|node| node.id).filter(|voter| is_ready || *voter != id);
    let others = (1..joined).map(|node| nemesis.cluster.id(node));
    let seen = ObservedMembers {
        observed: voters.collect(),
        expected: others.chain([id]).collect(),
        assigned: vec![id],
    };
    let mut observation = nemesis.faults.begin(members::KIND, &[], "");
    observation.set_members(seen);
    nemesis.faults.end(observation, FaultState::Installed)
}

async fn kill_aged_leaders(nemesis: &mut Nemesis) -> Result<()> {
    nemesis.until = nemesis.until.min(Instant::now() + AGED_MAX);
    let last = nemesis.until + SWEPT_OVERTIME;
    let mut swept = 0;
    while !nemesis.over() || (swept < SWEPT && Instant::now() < last) {
        // The sweeper runs when a node begins to lead, and every ten seconds.
        nemesis.pause(2_000..12_000).await;
        let leader = nemesis.leader().await?;
        swept += nemesis.monitor.sample(leader).map_or(0, |sample| sample.swept);
        nemesis.kill_for(&[leader], 200..1_500).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_that_was_hardly_acknowledged_is_no_full_load() {
        let minute = Duration::from_secs(60);
        assert_eq!(loaded(FULL_LOAD * 60, minute), FaultState::Installed);
        assert_eq!(loaded(FULL_LOAD * 60 - 1, minute), FaultState::Indeterminate);
        assert_eq!(loaded(0, Duration::ZERO), FaultState::Indeterminate);
    }

    #[test]
    fn a_long_run_requires_that_its_fault_happened() {
        for scenario in scenarios() {
            let required = scenario.required();
            assert!(
                !required.faults.is_empty() && required.operations_inside > 0,
                "{}",
                scenario.name
            );
            assert_eq!(required.steady_leader, scenario.name == "L1");
        }
    }
}
