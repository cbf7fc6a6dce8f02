//! X: leaders and the nodes that call for them die, are stopped or hand over leadership while webhook calls are in
//! progress, and webhook servers fail or are gone.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rand::RngExt as _;
use rand::seq::SliceRandom as _;

use super::definition::{Cover, InSoak, Need, Scenario, Script, three};
use crate::cluster::Settings;
use crate::cluster::Team;
use crate::record::deliveries::{CALLS, CRASH_POINTS};
use crate::record::faults::FaultState;
use crate::scenario::nemesis::Nemesis;
use crate::workload::Workload;
use crate::workload::load::StopFlag;
use crate::workload::message::message;
use crate::workload::sender::MessageSender;
use crate::workload::webhooks::collect::all_over;
use crate::workload::webhooks::crash_points::{ROUNDS, agent_at};
use crate::workload::webhooks::{self, Mix};

/// Time limit for a webhook call after a leader change.
const PATIENCE: Duration = Duration::from_secs(60);
/// Crash points that follow each other before the attempts with an unknown outcome are closed, which is after 33 s …
const CRASH_POINTS_AT_A_TIME: usize = 3;
/// … provided each takes only a few seconds; after this time no other one begins.
const CLOSING_SOON: Duration = Duration::from_secs(20);
/// The time after which such attempts are closed and called again.
const CLOSED_AFTER: Duration = Duration::from_secs(35);
/// Longer than the time from a claim to the begin of its call.
const STOP_MS: std::ops::Range<u64> = 15_000..20_000;
/// Longer than the time that the other nodes wait for a call of a stopped leader.
const LONG_STOP_MS: std::ops::Range<u64> = 34_000..40_000;

pub fn scenarios() -> Vec<Scenario> {
    [leader_changes(), webhook_servers()].concat()
}

fn leader_changes() -> Vec<Scenario> {
    vec![
        Scenario {
            needs: &[Need::Failpoints],
            smoke: Some(Duration::from_secs(8)),
            ..row(
                "X1",
                "leaders die at each crash point of the dispatcher",
                &[Workload::Webhooks(Mix::Quiet)],
                &[("failpoint", 3)],
                |nemesis| Box::pin(die_at_crash_points(nemesis)),
            )
        },
        row(
            "X2",
            "leaders are stopped (SIGSTOP) while webhook calls are in progress",
            &[Workload::Webhooks(Mix::Quick)],
            &[("pause", 1)],
            |nemesis| Box::pin(stop_leaders(nemesis)),
        ),
        Scenario {
            smoke: Some(Duration::from_secs(8)),
            ..row(
                "X3",
                "leadership is handed over again and again",
                &[Workload::Webhooks(Mix::Quick)],
                &[("transfer", 3)],
                |nemesis| Box::pin(hand_over(nemesis)),
            )
        },
        row(
            "X4",
            "a new leader every 2 s, by kill -9 or by hand-over",
            &[Workload::Webhooks(Mix::Quick)],
            &[("transfer", 2), ("kill", 2)],
            |nemesis| Box::pin(change_every_2_s(nemesis)),
        ),
    ]
}

fn webhook_servers() -> Vec<Scenario> {
    vec![
        Scenario {
            rate: 200,
            ..row(
                "X5",
                "one unreachable and one dripping webhook server among 98 healthy ones",
                &[Workload::Webhooks(Mix::Crowd)],
                &[],
                |nemesis| Box::pin(async move { nemesis.rest().await }),
            )
        },
        row(
            "X6",
            "failing webhooks are deleted while leaders are killed",
            &[Workload::Webhooks(Mix::Leaving)],
            &[("kill", 2)],
            |nemesis| Box::pin(nemesis.kill_leaders_repeatedly()),
        ),
        row(
            "X7",
            "dead letters of a sender whose inbox is full, while leaders are killed",
            &[Workload::Webhooks(Mix::FullInbox)],
            &[("kill", 2)],
            |nemesis| Box::pin(nemesis.kill_leaders_repeatedly()),
        ),
        Scenario {
            cluster: || Settings {
                // Fast elections, so that there are many of them.
                config: "[raft]\nheartbeat_ms = 50\nelection_min_ms = 150\nelection_max_ms = 250\n".to_owned(),
                ..three()
            },
            rate: 300,
            ..row(
                "X8",
                "kill -9 of the leader as often as there is one",
                &[Workload::Webhooks(Mix::Quick)],
                &[("kill", 3)],
                |nemesis| Box::pin(kill_as_often_as_possible(nemesis)),
            )
        },
        row(
            "X9",
            "the whole retry schedule, with servers that hang, drip and answer too late",
            &[Workload::Webhooks(Mix::Ladder)],
            &[("kill", 2)],
            |nemesis| Box::pin(nemesis.kill_leaders_repeatedly()),
        ),
        Scenario {
            cover: Cover {
                faults: &[("kill", 1), ("pause", 1), ("restart", 1)],
                operations_inside: 0,
                leader_changes: 0,
            },
            ..row(
                "X10",
                "nodes that call webhooks for the leader are killed, stopped (SIGSTOP) and restarted",
                // Calls that hang keep the leader from making all calls itself.
                &[Workload::Webhooks(Mix::Ladder)],
                &[],
                |nemesis| Box::pin(disturb_callers(nemesis)),
            )
        },
    ]
}

/// The defaults of these scenarios.
fn row(
    name: &'static str,
    title: &'static str,
    loads: &'static [Workload],
    faults: &'static [(&'static str, u64)],
    script: Script,
) -> Scenario {
    Scenario {
        name,
        title,
        cluster: three,
        loads,
        rate: 100,
        length: Duration::from_secs(60),
        smoke: None,
        in_soak: InSoak::Varied,
        steady_leader: false,
        needs: &[],
        cover: Cover {
            faults,
            operations_inside: 0,
            // Each of these faults changes the leader.
            leader_changes: faults.iter().map(|(_, count)| count).sum(),
        },
        script,
    }
}

/// Kills one leader after the other while it works on one delivery.
async fn die_at_crash_points(nemesis: &mut Nemesis) -> Result<()> {
    let mut sender = Sender::of_quiet_team(nemesis).await?;
    let operator = nemesis.ctx.operator()?;
    let mut places = CRASH_POINTS.map(|(place, _, _)| place);
    places.shuffle(&mut nemesis.random);
    for round in 0..ROUNDS {
        for places in places.chunks(CRASH_POINTS_AT_A_TIME) {
            let began = Instant::now();
            for place in places {
                if began.elapsed() < CLOSING_SOON {
                    die_at(nemesis, place, round, &mut sender).await?;
                }
            }
            // Attempts with an unknown outcome are called again, which must not overlap with the next crash point.
            if nemesis.left() < CLOSED_AFTER && !nemesis.lacks_faults() {
                return nemesis.rest().await;
            }
            let deadline = Instant::now() + 2 * PATIENCE;
            while !all_over(&operator, &sender.team).await? {
                ensure!(
                    Instant::now() < deadline,
                    "deliveries are still open after {:?}",
                    2 * PATIENCE
                );
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    }
    Ok(())
}

async fn die_at(nemesis: &mut Nemesis, place: &str, round: usize, sender: &mut Sender) -> Result<()> {
    let leader = nemesis.cluster.leader().await?;
    let doomed = leader % nemesis.cluster.nodes() + 1;
    let fault = nemesis.faults.begin("failpoint", &[doomed], place);
    nemesis.cluster.arm(doomed, place).await?;
    nemesis.cluster.transfer(doomed).await?;
    sender.send(&agent_at(place, round)).await?;
    nemesis.cluster.ended(doomed).await?;
    nemesis.cluster.restart(doomed).await?;
    nemesis.cluster.leader().await?;
    nemesis.faults.end(fault, FaultState::Installed)
}

/// The sender of X1.
struct Sender {
    team: Team,
    sender: MessageSender,
}

impl Sender {
    async fn of_quiet_team(nemesis: &Nemesis) -> Result<Self> {
        let operator = nemesis.ctx.operator()?;
        let name = webhooks::team_name(Mix::Quiet);
        let teams = operator.teams().await?;
        let team = teams.into_iter().find(|team| team.name == name);
        let id = team.context("the workload webhooks-quiet is not running")?.id;
        let key = operator.create_key(&id, "script").await?.api_key.into();
        let team = Team { id, key };
        let mut sender = MessageSender::new(&nemesis.ctx, &team);
        sender.rename("script")?;
        Ok(Sender { team, sender })
    }

    /// Sends one message; an error if it is not stored.
    async fn send(&mut self, to: &str) -> Result<()> {
        let key = format!("script-{to}");
        let stored = self.sender.send(&key, message(to, &key)?, &StopFlag::default()).await;
        ensure!(stored, "the message to {to} was not stored");
        Ok(())
    }
}

/// Stops leaders for longer than the time from a claim to its call, and every third time for longer than any call may
/// take.
async fn stop_leaders(nemesis: &mut Nemesis) -> Result<()> {
    for count in 1_u32.. {
        nemesis.pause(500..2_000).await;
        if nemesis.over() {
            break;
        }
        let leader = nemesis.leader().await?;
        let left = nemesis.left();
        let range = if count.is_multiple_of(3) { LONG_STOP_MS } else { STOP_MS };
        // Even a short run has one stop that is long enough for an election.
        let wanted = nemesis
            .random
            .random_range(range)
            .min(left.as_millis() as u64)
            .max(4_000);
        nemesis.pause_for(&[leader], wanted..wanted + 1).await?;
    }
    Ok(())
}

/// Kills, stops and restarts nodes that do not lead, one at a time.
async fn disturb_callers(nemesis: &mut Nemesis) -> Result<()> {
    for count in 0_u32.. {
        nemesis.pause(1_000..4_000).await;
        if nemesis.over() {
            break;
        }
        let leader = nemesis.leader().await?;
        let caller = nemesis.others(leader)[0];
        match count % 3 {
            0 => nemesis.kill_for(&[caller], 200..1_500).await?,
            1 => nemesis.pause_for(&[caller], STOP_MS).await?,
            _ => nemesis.restart(caller).await?,
        }
    }
    Ok(())
}

async fn hand_over(nemesis: &mut Nemesis) -> Result<()> {
    while !nemesis.over() {
        transfer(nemesis).await?;
        nemesis.pause(50..400).await;
    }
    Ok(())
}

async fn transfer(nemesis: &mut Nemesis) -> Result<()> {
    let leader = nemesis.cluster.leader().await?;
    let next = leader % nemesis.cluster.nodes() + 1;
    let fault = nemesis.faults.begin("transfer", &[leader, next], "");
    nemesis.cluster.transfer(next).await?;
    nemesis.faults.end(fault, FaultState::Installed)
}

async fn change_every_2_s(nemesis: &mut Nemesis) -> Result<()> {
    for count in 0_u32.. {
        if nemesis.over() {
            break;
        }
        let next = Instant::now() + Duration::from_secs(2);
        if count.is_multiple_of(2) {
            let leader = nemesis.leader().await?;
            nemesis.kill_for(&[leader], 0..500).await?;
        } else {
            transfer(nemesis).await?;
        }
        tokio::time::sleep_until(next.into()).await;
    }
    Ok(())
}

/// Kills the leader as soon as the cluster is ready, has a leader, and that leader has called a webhook.
async fn kill_as_often_as_possible(nemesis: &mut Nemesis) -> Result<()> {
    while !nemesis.over() {
        let leader = nemesis.cluster.leader().await?;
        let fault = nemesis.faults.begin("kill", &[leader], "");
        nemesis.cluster.kill(leader)?;
        let calls = calls_written(nemesis)?;
        nemesis.cluster.launch(&[leader])?;
        nemesis.cluster.await_ready(&[leader]).await?;
        nemesis.faults.end(fault, FaultState::Installed)?;
        let deadline = Instant::now() + PATIENCE;
        while calls_written(nemesis)? == calls {
            ensure!(Instant::now() < deadline, "no webhook was called for {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // So that leaders die at different moments of their work.
        nemesis.pause(0..300).await;
    }
    Ok(())
}

fn calls_written(nemesis: &Nemesis) -> Result<u64> {
    let path = nemesis.ctx.recorder.dir().join(CALLS);
    Ok(path.metadata().with_context(|| path.display().to_string())?.len())
}
