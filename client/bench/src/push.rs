//! The mode `ws-push`: the latency from the start of a send on one node to the event on a WebSocket of another node, at
//! low load.

use std::sync::Arc;
use std::time::Duration;

use agentpost::Agentpost;
use agentpost::kite::{Notice, Session};
use anyhow::{Context, bail};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::Bench;
use crate::args::Target;
use crate::lane::{Lane, Template};
use crate::report::{Latency, Row};
use crate::traffic::{SENDER, Shape, Source, made_at, nanoseconds};

const MESSAGES: usize = 600;
const GAP: Duration = Duration::from_millis(5);
/// The first samples do not count: connections and caches are cold.
const COLD: usize = 50;
/// The time for the handshake, and for each event.
const PATIENCE: Duration = Duration::from_secs(10);

/// Sends to the target and listens on the other node. The leader applies a message first, so it also pushes it first.
pub async fn measure(bench: &Bench<'_>, target: Target, run: u32) -> anyhow::Result<Row> {
    let nodes = bench.nodes().await?;
    let (leader, follower) = (nodes.leader(), nodes.follower()?);
    let (sender, listener) = if target == Target::Follower {
        (follower, leader)
    } else {
        (leader, follower)
    };
    // Every run has its own receiver, so that the session resumes nothing older.
    let receiver = format!("push-{run}{}", target.suffix());
    let post = Agentpost::builder(&listener.base).key(bench.key).team(&bench.team.id);
    let mut session = post.build()?.kite().session([format!("agent_to:{receiver}")], None)?;
    let started = std::time::Instant::now();
    timeout(PATIENCE, connected(&mut session))
        .await
        .context("no WebSocket session in time")??;
    let (arrived, mut arrivals) = mpsc::channel(MESSAGES);
    let listening = tokio::spawn(async move {
        while let Ok(notice) = session.next().await {
            let Notice::Event(event) = notice else { continue };
            let at = nanoseconds(started);
            let made = event.mail().and_then(|mail| made_at(mail.body));
            session.ack(event.seq).await;
            if let Some(made) = made
                && arrived.send(at.saturating_sub(made)).await.is_err()
            {
                return;
            }
        }
    });
    send(bench, &sender.address, &receiver, started).await?;
    let mut samples = Vec::with_capacity(MESSAGES);
    while samples.len() < MESSAGES {
        match timeout(PATIENCE, arrivals.recv()).await {
            Ok(Some(sample)) => samples.push(sample),
            _ => break,
        }
    }
    listening.abort();
    if samples.len() < MESSAGES {
        bail!("only {} of {MESSAGES} events arrived", samples.len());
    }
    let counted = &samples[COLD..];
    Ok(Row {
        peer: format!("agentpost-ws{}", target.suffix()),
        metric: "push-websocket",
        in_flight: 1,
        run,
        value: counted.len() as f64,
        unit: "samples",
        latency: Latency::of(counted),
        note: format!(
            "sent on node {}, received on node {}, every event acknowledged",
            sender.id, listener.id
        ),
    })
}

async fn connected(session: &mut Session) -> anyhow::Result<()> {
    loop {
        match session.next().await? {
            Notice::Connected { .. } => return Ok(()),
            Notice::ConnectionFailed { reason } => bail!("{reason}"),
            _ => {}
        }
    }
}

async fn send(bench: &Bench<'_>, address: &str, receiver: &str, started: std::time::Instant) -> anyhow::Result<()> {
    let template = Arc::new(Template::new(Shape::Single.path(), bench.key, SENDER)?);
    let mut lane = Lane::dial(address, &template).await?;
    let mut source = Source::new(Shape::Single, bench.args.seed(), 0, started);
    let mut ticks = interval(GAP);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for _ in 0..MESSAGES {
        ticks.tick().await;
        lane.post(source.for_agent(receiver)).await?;
    }
    Ok(())
}
