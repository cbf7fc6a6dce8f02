//! T: wrong wall clocks. The cluster confirms that a jump reached the process: every node reports how far it finds
//! each voter's clock off.

use std::ops::Range;
use std::time::Duration;

use anyhow::Result;
use rand::RngExt as _;
use tokio::time::Instant;

use super::definition::{Cover, InSoak, Need, Scenario, three};
use crate::cluster::Settings;
use crate::cluster::clock;
use crate::record::faults::FaultState;
use crate::record::leaders;
use crate::scenario::nemesis::Nemesis;
use crate::workload;

const LOADS: &[workload::Workload] = &[workload::Workload::Send, workload::Workload::Read];
const HOUR_S: f64 = 3_600.0;
const DAY_S: i64 = 86_400;
/// Nodes read each other's clocks once a second; a shorter fault would not be observed.
const SEEN_MS: Range<u64> = 2_500..4_000;

pub fn scenarios() -> Vec<Scenario> {
    let t1 = Scenario {
        name: "T1",
        title: "the leader's clock jumps by an hour, forward or back",
        cluster: || Settings {
            clock: clock::ClockKind::Steered,
            ..three()
        },
        loads: LOADS,
        rate: 1_000,
        length: Duration::from_secs(60),
        smoke: None,
        in_soak: InSoak::Varied,
        steady_leader: false,
        needs: &[Need::Clocks],
        cover: Cover {
            faults: &[("clock", 3)],
            operations_inside: 500,
            leader_changes: 0,
        },
        script: |nemesis| Box::pin(jump(nemesis)),
    };
    vec![
        t1.clone(),
        Scenario {
            name: "T2",
            title: "three clocks that are one minute apart",
            script: |nemesis| Box::pin(skew(nemesis)),
            ..t1.clone()
        },
        Scenario {
            name: "T3",
            title: "the leader's clock jumps back and forth many times a second",
            script: |nemesis| Box::pin(strobe(nemesis)),
            ..t1.clone()
        },
        Scenario {
            name: "T4",
            title: "midnight comes for one node before the others, and for all",
            cover: Cover {
                faults: &[("clock", 2)],
                ..t1.cover
            },
            script: |nemesis| Box::pin(midnight(nemesis)),
            ..t1.clone()
        },
        Scenario {
            name: "T5",
            title: "clocks that run 5 % too fast or too slow",
            cover: Cover {
                faults: &[("clock", 2)],
                ..t1.cover
            },
            script: |nemesis| Box::pin(drift(nemesis)),
            ..t1
        },
    ]
}

/// A wrong clock: ahead by a constant, plus a drift per second.
#[derive(Debug, Clone, Copy)]
struct Wrong {
    node: usize,
    ahead_s: f64,
    drift: f64,
}

impl Wrong {
    fn ahead(node: usize, ahead_s: f64) -> Self {
        Wrong {
            node,
            ahead_s,
            drift: 0.0,
        }
    }

    /// The offset that the others must at least observe, in either direction.
    fn visible_s(&self) -> f64 {
        match self.drift == 0.0 {
            true => self.ahead_s.abs() / 2.0,
            // Clocks of one machine differ by the error of reading them.
            false => 0.1,
        }
    }
}

async fn jump(nemesis: &mut Nemesis) -> Result<()> {
    while !nemesis.over() {
        nemesis.pause(300..1_000).await;
        let leader = nemesis.leader().await?;
        let ahead_s = if nemesis.random.random_bool(0.5) {
            HOUR_S
        } else {
            -HOUR_S
        };
        set_wrong_for(nemesis, &[Wrong::ahead(leader, ahead_s)], SEEN_MS).await?;
    }
    Ok(())
}

async fn skew(nemesis: &mut Nemesis) -> Result<()> {
    while !nemesis.over() {
        nemesis.pause(300..1_000).await;
        let nodes = nemesis.shuffled();
        let wrong = [Wrong::ahead(nodes[0], -60.0), Wrong::ahead(nodes[1], 60.0)];
        set_wrong_for(nemesis, &wrong, SEEN_MS).await?;
    }
    Ok(())
}

async fn strobe(nemesis: &mut Nemesis) -> Result<()> {
    while !nemesis.over() {
        nemesis.pause(300..1_000).await;
        let leader = nemesis.leader().await?;
        let fault = nemesis.faults.begin("clock", &[leader], "strobe of 10 minutes");
        let until = Instant::now() + Duration::from_millis(nemesis.random.random_range(SEEN_MS));
        let mut seen = false;
        while Instant::now() < until {
            let ahead_s = nemesis.random.random_range(-600.0..600.0);
            nemesis.cluster.clocks().set(leader, ahead_s)?;
            nemesis.pause(20..200).await;
            seen |= sees(nemesis, leader, 1.0).await;
        }
        nemesis.cluster.clocks().heal()?;
        nemesis.faults.end(fault, state(seen))?;
    }
    Ok(())
}

/// Sets all clocks to shortly before the next midnight, then one past it. Each turn uses another day, because
/// replicated time never goes back.
async fn midnight(nemesis: &mut Nemesis) -> Result<()> {
    let mut days = 0;
    while !nemesis.over() {
        nemesis.pause(300..1_000).await;
        let now_s = jiff::Timestamp::now().as_second();
        let left_s = DAY_S - now_s.rem_euclid(DAY_S) + days * DAY_S;
        nemesis.cluster.clocks().move_all((left_s - 4) as f64)?;
        days += 1;
        let first = match nemesis.random.random_bool(0.5) {
            true => nemesis.leader().await?,
            false => nemesis.shuffled()[0],
        };
        // The others pass midnight 4 s later, while the first is still a minute ahead.
        set_wrong_for(nemesis, &[Wrong::ahead(first, 60.0)], 5_000..6_000).await?;
    }
    Ok(())
}

async fn drift(nemesis: &mut Nemesis) -> Result<()> {
    while !nemesis.over() {
        nemesis.pause(300..1_000).await;
        let nodes = nemesis.shuffled();
        let wrong = [(nodes[0], 0.05), (nodes[1], -0.05)].map(|(node, drift)| Wrong {
            node,
            ahead_s: 0.0,
            drift,
        });
        set_wrong_for(nemesis, &wrong, 4_000..6_000).await?;
    }
    Ok(())
}

/// Sets clocks wrong for a random number of milliseconds. The fault is indeterminate if another node did not observe
/// every wrong clock.
async fn set_wrong_for(nemesis: &mut Nemesis, wrong: &[Wrong], ms: Range<u64>) -> Result<()> {
    let nodes: Vec<usize> = wrong.iter().map(|w| w.node).collect();
    let fault = nemesis.faults.begin("clock", &nodes, note(wrong));
    let began = Instant::now();
    let until = began + Duration::from_millis(nemesis.random.random_range(ms));
    let mut seen = vec![false; wrong.len()];
    while Instant::now() < until {
        for wrong in wrong {
            let ahead_s = wrong.ahead_s + wrong.drift * began.elapsed().as_secs_f64();
            nemesis.cluster.clocks().set(wrong.node, ahead_s)?;
        }
        nemesis.pause(50..51).await;
        for (seen, wrong) in seen.iter_mut().zip(wrong) {
            *seen = *seen || sees(nemesis, wrong.node, wrong.visible_s()).await;
        }
    }
    nemesis.cluster.clocks().heal()?;
    nemesis.faults.end(fault, state(!seen.contains(&false)))
}

fn note(wrong: &[Wrong]) -> String {
    let one = |w: &Wrong| match w.drift == 0.0 {
        true => format!("{} by {:+} s", w.node, w.ahead_s),
        false => format!("{} by {:+} s a second", w.node, w.drift),
    };
    wrong.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn state(seen: bool) -> FaultState {
    if seen {
        FaultState::Installed
    } else {
        FaultState::Indeterminate
    }
}

/// Whether another node finds this node's clock off by at least `off_s`.
async fn sees(nemesis: &mut Nemesis, node: usize, off_s: f64) -> bool {
    let other = nemesis.others(node)[0];
    let name = format!("agentpost_clock_divergence_seconds{{node=\"{node}\"}}");
    let metrics = leaders::metrics(&nemesis.cluster.url(other)).await;
    let seen: Option<f64> = metrics
        .ok()
        .and_then(|text| leaders::metric(&text, &name)?.parse().ok());
    seen.is_some_and(|seen| seen.abs() >= off_s)
}
