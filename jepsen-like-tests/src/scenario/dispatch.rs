//! X: leaders that die, stand still or hand over with webhooks in their hands, and servers that are bad or gone.

use std::time::{Duration, Instant};

use agentpost::Client;
use agentpost::api::admin::CreateKey;
use anyhow::{Context as _, Result, ensure};
use rand::RngExt as _;
use rand::seq::SliceRandom as _;

use super::{Cover, Need, Scenario};
use crate::checker::dispatch::PLACES;
use crate::cluster::Settings;
use crate::deliveries::{CALLS, all_over};
use crate::faults::State;
use crate::history::{Fields, Item, Lane, Op, Outcome};
use crate::stage::Stage;
use crate::workload::Kind;
use crate::workload::send::message;
use crate::workload::webhooks::{self, Mix};
use crate::world::Team;

/// A call after a leader change comes within this, or nobody dispatches any more.
const PATIENCE: Duration = Duration::from_secs(60);
/// Places that follow each other before their attempts of unknown outcome are closed, which is after 33 s.
const PLACES_AT_A_TIME: usize = 3;
/// Longer than a claimed call may take to begin.
const STOP_MS: std::ops::Range<u64> = 15_000..20_000;
/// Longer than any call of a stopped leader is waited for.
const LONG_STOP_MS: std::ops::Range<u64> = 34_000..40_000;

/// X1 to X8.
pub fn scenarios() -> Vec<Scenario> {
    let x1 = Scenario {
        needs: &[Need::Failpoints],
        smoke: Some(Duration::from_secs(8)),
        ..row(
            "X1",
            "leaders that die at each place of the dispatcher",
            &[Kind::Webhooks(Mix::Quiet)],
        )
    };
    let x2 = row("X2", "leaders that stand still with webhooks in their hands", QUICK);
    let x3 = Scenario {
        smoke: Some(Duration::from_secs(8)),
        ..row("X3", "leadership handed over, again and again", QUICK)
    };
    let x4 = row(
        "X4",
        "another leader every 2 s, by death or by hand-over",
        &[Kind::Webhooks(Mix::Ladder)],
    );
    let x5 = row(
        "X5",
        "one dead and one dripping server among 98 good ones",
        &[Kind::Webhooks(Mix::Crowd)],
    );
    let x6 = row(
        "X6",
        "servers given up while they fail, and leaders killed",
        &[Kind::Webhooks(Mix::Leaving)],
    );
    let x7 = row(
        "X7",
        "dead letters of a sender whose inbox is full",
        &[Kind::Webhooks(Mix::FullInbox)],
    );
    let x8 = row("X8", "kill -9 of the leader as often as there is one", QUICK);
    let fault = |kind: &'static [(&'static str, u64)], leader_changes| Cover {
        faults: kind,
        operations_inside: 0,
        leader_changes,
    };
    vec![
        Scenario {
            cover: fault(&[("failpoint", 3)], 3),
            script: |stage| Box::pin(die_at_places(stage)),
            ..x1
        },
        Scenario {
            cover: fault(&[("pause", 1)], 1),
            script: |stage| Box::pin(stop_leaders(stage)),
            ..x2
        },
        Scenario {
            cover: fault(&[("transfer", 3)], 3),
            script: |stage| Box::pin(hand_over(stage)),
            ..x3
        },
        Scenario {
            cover: fault(&[("transfer", 2), ("kill", 2)], 4),
            script: |stage| Box::pin(change_every_2_s(stage)),
            ..x4
        },
        Scenario {
            rate: 200,
            length: Duration::from_secs(30),
            script: |stage| Box::pin(async move { stage.rest().await }),
            ..x5
        },
        Scenario {
            cover: fault(&[("kill", 2)], 2),
            script: |stage| Box::pin(kill_now_and_then(stage)),
            ..x6
        },
        Scenario {
            cover: fault(&[("kill", 2)], 2),
            script: |stage| Box::pin(kill_now_and_then(stage)),
            ..x7
        },
        Scenario {
            cluster: || Settings {
                nodes: 3,
                config: "[raft]\nheartbeat_ms = 50\nelection_min_ms = 150\nelection_max_ms = 250\n".to_owned(),
                ..Settings::default()
            },
            cover: fault(&[("kill", 3)], 3),
            script: |stage| Box::pin(kill_as_often_as_possible(stage)),
            ..x8
        },
    ]
}

const QUICK: &[Kind] = &[Kind::Webhooks(Mix::Quick)];

/// What most of them have.
fn row(name: &'static str, title: &'static str, loads: &'static [Kind]) -> Scenario {
    Scenario {
        name,
        title,
        cluster: || Settings {
            nodes: 3,
            ..Settings::default()
        },
        loads,
        rate: 100,
        length: Duration::from_secs(60),
        smoke: None,
        needs: &[],
        cover: Cover {
            faults: &[],
            operations_inside: 0,
            leader_changes: 0,
        },
        script: |stage| Box::pin(async move { stage.rest().await }),
    }
}

/// One leader after the other dies with one delivery in its hands.
async fn die_at_places(stage: &mut Stage) -> Result<()> {
    let mut sender = Sender::of_quiet_team(stage).await?;
    let operator = stage.world.operator()?;
    let mut places = PLACES.map(|(place, _, _)| place);
    places.shuffle(&mut stage.random);
    for round in 0..webhooks::ROUNDS {
        for places in places.chunks(PLACES_AT_A_TIME) {
            for place in places {
                die_at(stage, place, round, &mut sender).await?;
            }
            if stage.over() {
                return Ok(());
            }
            // What is unknown is called again, and must not meet the next place.
            let deadline = Instant::now() + 2 * PATIENCE;
            while !all_over(&operator, &sender.team).await? {
                ensure!(
                    Instant::now() < deadline,
                    "deliveries are open after {:?}",
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

/// Who sends in X1.
struct Sender {
    team: Team,
    client: Client,
    lane: Lane,
}

impl Sender {
    async fn of_quiet_team(stage: &Stage) -> Result<Self> {
        let operator = stage.world.operator()?;
        let name = webhooks::team_name(Mix::Quiet);
        let teams = operator.teams().await?;
        let team = teams.into_iter().find(|team| team.name == name);
        let id = team.context("the quiet load does not run")?.id;
        let key = CreateKey {
            name: "script".to_owned(),
            permissions: vec!["write".to_owned()],
            agent_id: None,
            scopes: None,
            expires_at: None,
        };
        let key: String = operator.create_key(&id, &key).await?.api_key.into();
        let client = Client::builder(stage.world.urls.join(" ")).api_key(&key);
        Ok(Sender {
            team: Team { id, key },
            client: client.agent("script").build()?,
            lane: stage.world.recorder.lane(),
        })
    }

    /// Sends one message; an error if it is not stored.
    async fn send(&mut self, to: &str) -> Result<()> {
        let key = format!("script-{to}");
        let item = |id: String| Item {
            id,
            key: key.clone(),
            seq: None,
        };
        let asked = Fields::items(vec![item(String::new())]);
        self.lane.invoke(None, Op::Send, to, asked);
        match self.client.send(message(to, &key)?).await {
            Ok(answer) => self.lane.end(Outcome::Ok(Fields::items(vec![item(answer.message_id)]))),
            Err(error) => {
                self.lane.end(Outcome::Info(error.to_string()));
                return Err(error).context("the message of a place");
            }
        }
        Ok(())
    }
}

/// SIGSTOP for longer than a claimed call may take to begin; every third time for longer than a call may take at all.
async fn stop_leaders(stage: &mut Stage) -> Result<()> {
    for count in 1_u32.. {
        stage.pause(500..2_000).await;
        if stage.over() {
            break;
        }
        let leader = stage.cluster.leader().await?;
        let left = stage.until.saturating_duration_since(Instant::now());
        let range = if count.is_multiple_of(3) { LONG_STOP_MS } else { STOP_MS };
        let wanted = Duration::from_millis(stage.random.random_range(range));
        let fault = stage.faults.begin("pause", &[leader], "");
        stage.cluster.pause(leader)?;
        // A short run still has one that costs the leader its office.
        tokio::time::sleep(wanted.min(left).max(Duration::from_secs(4))).await;
        stage.cluster.resume(leader)?;
        stage.faults.end(fault, State::Installed)?;
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
            let leader = stage.cluster.leader().await?;
            stage.kill_for(&[leader], 0..500).await?;
        } else {
            transfer(stage).await?;
        }
        tokio::time::sleep_until(next.into()).await;
    }
    Ok(())
}

async fn kill_now_and_then(stage: &mut Stage) -> Result<()> {
    while !stage.over() {
        stage.pause(1_000..4_000).await;
        let leader = stage.cluster.leader().await?;
        stage.kill_for(&[leader], 200..1_500).await?;
    }
    Ok(())
}

/// The next kill comes as soon as the cluster is whole, has a leader, and that one has called somebody.
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
        // A leader dies with other things in its hands each time.
        stage.pause(0..300).await;
    }
    Ok(())
}

fn calls_written(stage: &Stage) -> Result<u64> {
    let path = stage.world.recorder.dir().join(CALLS);
    Ok(path.metadata().with_context(|| path.display().to_string())?.len())
}
