//! X: leaders die, are stopped or hand over leadership while webhook calls are in progress, and webhook servers fail
//! or are gone.

use std::time::{Duration, Instant};

use agentpost::api::admin::CreateKey;
use anyhow::{Context as _, Result, ensure};
use rand::RngExt as _;
use rand::seq::SliceRandom as _;

use super::{Cover, Need, Scenario, Script, three};
use crate::checker::dispatch::PLACES;
use crate::cluster::Settings;
use crate::deliveries::{CALLS, all_over};
use crate::faults::State;
use crate::stage::Stage;
use crate::workload::post::Post;
use crate::workload::send::message;
use crate::workload::webhooks::{self, Mix};
use crate::workload::{Kind, Stop};
use crate::world::Team;

/// Time limit for a webhook call after a leader change.
const PATIENCE: Duration = Duration::from_secs(60);
/// Crash points that follow each other before the attempts with an unknown outcome are closed, which is after 33 s …
const PLACES_AT_A_TIME: usize = 3;
/// … provided each takes only a few seconds; after this time no other one begins.
const CLOSING_SOON: Duration = Duration::from_secs(20);
/// The time after which such attempts are closed and called again.
const CLOSED_AFTER: Duration = Duration::from_secs(35);
/// Longer than the time from a claim to the begin of its call.
const STOP_MS: std::ops::Range<u64> = 15_000..20_000;
/// Longer than the time that the other nodes wait for a call of a stopped leader.
const LONG_STOP_MS: std::ops::Range<u64> = 34_000..40_000;

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario {
            needs: &[Need::Failpoints],
            smoke: Some(Duration::from_secs(8)),
            ..row(
                ("X1", "leaders die at each crash point of the dispatcher"),
                &[Kind::Webhooks(Mix::Quiet)],
                &[("failpoint", 3)],
                |stage| Box::pin(die_at_places(stage)),
            )
        },
        row(
            (
                "X2",
                "leaders are stopped (SIGSTOP) while webhook calls are in progress",
            ),
            &[Kind::Webhooks(Mix::Quick)],
            &[("pause", 1)],
            |stage| Box::pin(stop_leaders(stage)),
        ),
        Scenario {
            smoke: Some(Duration::from_secs(8)),
            ..row(
                ("X3", "leadership is handed over again and again"),
                &[Kind::Webhooks(Mix::Quick)],
                &[("transfer", 3)],
                |stage| Box::pin(hand_over(stage)),
            )
        },
        row(
            ("X4", "a new leader every 2 s, by kill -9 or by hand-over"),
            &[Kind::Webhooks(Mix::Quick)],
            &[("transfer", 2), ("kill", 2)],
            |stage| Box::pin(change_every_2_s(stage)),
        ),
        Scenario {
            rate: 200,
            ..row(
                (
                    "X5",
                    "one unreachable and one dripping webhook server among 98 healthy ones",
                ),
                &[Kind::Webhooks(Mix::Crowd)],
                &[],
                |stage| Box::pin(async move { stage.rest().await }),
            )
        },
        row(
            ("X6", "failing webhooks are deleted while leaders are killed"),
            &[Kind::Webhooks(Mix::Leaving)],
            &[("kill", 2)],
            |stage| Box::pin(stage.kill_leaders_now_and_then()),
        ),
        row(
            (
                "X7",
                "dead letters of a sender whose inbox is full, while leaders are killed",
            ),
            &[Kind::Webhooks(Mix::FullInbox)],
            &[("kill", 2)],
            |stage| Box::pin(stage.kill_leaders_now_and_then()),
        ),
        Scenario {
            cluster: || Settings {
                // Fast elections, so that there are many of them.
                config: "[raft]\nheartbeat_ms = 50\nelection_min_ms = 150\nelection_max_ms = 250\n".to_owned(),
                ..three()
            },
            rate: 300,
            ..row(
                ("X8", "kill -9 of the leader as often as there is one"),
                &[Kind::Webhooks(Mix::Quick)],
                &[("kill", 3)],
                |stage| Box::pin(kill_as_often_as_possible(stage)),
            )
        },
        row(
            (
                "X9",
                "the whole retry schedule, with servers that hang, drip and answer too late",
            ),
            &[Kind::Webhooks(Mix::Ladder)],
            &[("kill", 2)],
            |stage| Box::pin(stage.kill_leaders_now_and_then()),
        ),
    ]
}

/// The defaults of these scenarios.
fn row(
    (name, title): (&'static str, &'static str),
    loads: &'static [Kind],
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
async fn die_at_places(stage: &mut Stage) -> Result<()> {
    let mut sender = Sender::of_quiet_team(stage).await?;
    let operator = stage.world.operator()?;
    let mut places = PLACES.map(|(place, _, _)| place);
    places.shuffle(&mut stage.random);
    for round in 0..webhooks::ROUNDS {
        for places in places.chunks(PLACES_AT_A_TIME) {
            let began = Instant::now();
            for place in places {
                if began.elapsed() < CLOSING_SOON {
                    die_at(stage, place, round, &mut sender).await?;
                }
            }
            // Attempts with an unknown outcome are called again, which must not overlap with the next crash point.
            if stage.until.saturating_duration_since(Instant::now()) < CLOSED_AFTER {
                return stage.rest().await;
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

async fn die_at(stage: &mut Stage, place: &str, round: usize, sender: &mut Sender) -> Result<()> {
    let leader = stage.cluster.leader().await?;
    let doomed = leader % stage.cluster.nodes() + 1;
    let fault = stage.faults.begin("failpoint", &[doomed], place);
    stage.cluster.arm(doomed, place).await?;
    stage.cluster.transfer(doomed).await?;
    sender.send(&webhooks::agent_at(place, round)).await?;
    stage.cluster.ended(doomed).await?;
    stage.cluster.restart(doomed).await?;
    stage.cluster.leader().await?;
    stage.faults.end(fault, State::Installed)
}

/// The sender of X1.
struct Sender {
    team: Team,
    post: Post,
}

impl Sender {
    async fn of_quiet_team(stage: &Stage) -> Result<Self> {
        let operator = stage.world.operator()?;
        let name = webhooks::team_name(Mix::Quiet);
        let teams = operator.teams().await?;
        let team = teams.into_iter().find(|team| team.name == name);
        let id = team.context("the workload webhooks-quiet is not running")?.id;
        let key = CreateKey {
            name: "script".to_owned(),
            permissions: vec!["write".to_owned()],
            agent_id: None,
            scopes: None,
            expires_at: None,
        };
        let key = operator.create_key(&id, &key).await?.api_key.into();
        let team = Team { id, key };
        let mut post = Post::new(&stage.world, &team);
        post.rename("script")?;
        Ok(Sender { team, post })
    }

    /// Sends one message; an error if it is not stored.
    async fn send(&mut self, to: &str) -> Result<()> {
        let key = format!("script-{to}");
        let stored = self.post.send(&key, message(to, &key)?, &Stop::default()).await;
        ensure!(stored, "the message to {to} was not stored");
        Ok(())
    }
}

/// Stops leaders for longer than the time from a claim to its call, and every third time for longer than any call may
/// take.
async fn stop_leaders(stage: &mut Stage) -> Result<()> {
    for count in 1_u32.. {
        stage.pause(500..2_000).await;
        if stage.over() {
            break;
        }
        let leader = stage.leader().await?;
        let left = stage.until.saturating_duration_since(Instant::now());
        let range = if count.is_multiple_of(3) { LONG_STOP_MS } else { STOP_MS };
        // Even a short run has one stop that is long enough for an election.
        let wanted = stage.random.random_range(range).min(left.as_millis() as u64).max(4_000);
        stage.pause_for(&[leader], wanted..wanted + 1).await?;
    }
    Ok(())
}

async fn hand_over(stage: &mut Stage) -> Result<()> {
    while !stage.over() {
        transfer(stage).await?;
        stage.pause(50..400).await;
    }
    Ok(())
}

async fn transfer(stage: &mut Stage) -> Result<()> {
    let leader = stage.cluster.leader().await?;
    let next = leader % stage.cluster.nodes() + 1;
    let fault = stage.faults.begin("transfer", &[leader, next], "");
    stage.cluster.transfer(next).await?;
    stage.faults.end(fault, State::Installed)
}

async fn change_every_2_s(stage: &mut Stage) -> Result<()> {
    for count in 0_u32.. {
        if stage.over() {
            break;
        }
        let next = Instant::now() + Duration::from_secs(2);
        if count.is_multiple_of(2) {
            let leader = stage.leader().await?;
            stage.kill_for(&[leader], 0..500).await?;
        } else {
            transfer(stage).await?;
        }
        tokio::time::sleep_until(next.into()).await;
    }
    Ok(())
}

/// Kills the leader as soon as the cluster is ready, has a leader, and that leader has called a webhook.
async fn kill_as_often_as_possible(stage: &mut Stage) -> Result<()> {
    while !stage.over() {
        let leader = stage.cluster.leader().await?;
        let fault = stage.faults.begin("kill", &[leader], "");
        stage.cluster.kill(leader)?;
        let calls = calls_written(stage)?;
        stage.cluster.launch(&[leader])?;
        stage.cluster.await_ready(&[leader]).await?;
        stage.faults.end(fault, State::Installed)?;
        let deadline = Instant::now() + PATIENCE;
        while calls_written(stage)? == calls {
            ensure!(Instant::now() < deadline, "no webhook was called for {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // So that leaders die at different moments of their work.
        stage.pause(0..300).await;
    }
    Ok(())
}

fn calls_written(stage: &Stage) -> Result<u64> {
    let path = stage.world.recorder.dir().join(CALLS);
    Ok(path.metadata().with_context(|| path.display().to_string())?.len())
}
