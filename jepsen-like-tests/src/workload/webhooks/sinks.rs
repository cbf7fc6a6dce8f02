//! The webhook servers of a mix, and how each answers.

use std::net::SocketAddr;
use std::time::Duration;

use agentpost_testkit::receiver::{Answer, Receiver};
use anyhow::{Context as _, Result};
use tokio::net::TcpSocket;

use super::crash_points::crash_point_agents;

/// Servers that refuse permanently: each message to one becomes a dead letter.
const REFUSING: usize = 4;
/// Rounds of messages to the other servers between two messages to a slow server.
const TARDY_ROUNDS: usize = 20;

/// The set of servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mix {
    /// Everything that ends within seconds; half of the messages become dead letters.
    Quick,
    /// In addition the whole retry schedule and the longest calls: deliveries take minutes.
    Ladder,
    /// One unreachable server, one that sends its response byte by byte without end, and 98 healthy ones.
    Crowd,
    /// Servers that fail and are deleted meanwhile.
    Leaving,
    /// Dead letters of a sender whose inbox is full.
    FullInbox,
    /// No senders: the script sends to one agent per crash point.
    Quiet,
}

impl Mix {
    pub fn name(self) -> &'static str {
        match self {
            Mix::Quick => "quick",
            Mix::Ladder => "ladder",
            Mix::Crowd => "crowd",
            Mix::Leaving => "leaving",
            Mix::FullInbox => "full",
            Mix::Quiet => "quiet",
        }
    }

    /// The number of concurrent senders.
    pub fn lanes(self) -> u64 {
        match self {
            Mix::Quiet => 0,
            // The inbox of this sender is the full one.
            Mix::FullInbox => 1,
            _ => 4,
        }
    }

    fn sinks(self) -> Vec<Sink> {
        use Sink::*;
        let quick = [Good, Slow, Shaky(1), HangsUp, Moved, Later, Gone];
        let refusing = [Refusing; REFUSING];
        match self {
            Mix::Quick => [&quick[..], &refusing].concat(),
            Mix::Ladder => [
                &quick[..],
                &[Shaky(2), Shaky(3), Shaky(9), Hanging, Dripping, Late],
                &refusing,
            ]
            .concat(),
            Mix::Crowd => [&[Dead, DripsOn][..], &[Healthy; 98]].concat(),
            Mix::Leaving => [&[Good][..], &[Leaving; 4]].concat(),
            Mix::FullInbox => [&[Good][..], &refusing].concat(),
            Mix::Quiet => Vec::new(),
        }
    }
}

/// The behaviour of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sink {
    /// Answers 200.
    Good,
    /// Answers 200, and nothing but another server could delay its calls.
    Healthy,
    /// Answers 200 after 150 ms.
    Slow,
    /// Answers 500 to the first calls of each delivery.
    Shaky(usize),
    /// Closes the connection at the first call of each delivery.
    HangsUp,
    /// Answers the first call of each delivery with a redirect.
    Moved,
    /// Asks at the first call of each delivery to be called later.
    Later,
    /// Answers 489: never call again.
    Refusing,
    /// Answers 410, and is registered again each time.
    Gone,
    /// Answers 500 until its webhook is deleted.
    Leaving,
    /// Never answers the first call of each delivery.
    Hanging,
    /// Answers the first call of each delivery byte by byte.
    Dripping,
    /// Answers the first call of each delivery after the time limit of calls.
    Late,
    /// No server listens.
    Dead,
    /// Answers every call byte by byte without end.
    DripsOn,
}

impl Sink {
    /// Whether its deliveries do not end while it has its webhook.
    pub fn is_endless(self) -> bool {
        matches!(self, Sink::Dead | Sink::DripsOn)
    }

    /// Whether its first call takes the 30 s that a call may take; 8 calls are made at a time.
    fn is_tardy(self) -> bool {
        matches!(self, Sink::Hanging | Sink::Dripping | Sink::Late)
    }

    /// Whether it has one webhook from the beginning to the end.
    pub fn is_kept(self) -> bool {
        !matches!(self, Sink::Gone | Sink::Leaving)
    }
}

/// An agent's server.
#[derive(Debug, Clone)]
pub struct AgentSink {
    pub agent: String,
    pub sink: Sink,
    name: String,
}

/// All servers of a workload, which end when the value is dropped.
pub struct Servers {
    /// One per agent.
    pub sinks: Vec<AgentSink>,
    receiver: Receiver,
    /// Bound but not listening, so connections are refused.
    closed: TcpSocket,
}

impl Servers {
    pub async fn start(mix: Mix, receiver: Receiver) -> Result<Self> {
        let named = |(number, sink): (usize, Sink)| {
            let kind = format!("{sink:?}").to_lowercase().replace(['(', ')'], "");
            AgentSink {
                agent: format!("{}-{kind}-{number}", mix.name()),
                sink,
                name: format!("/{kind}-{number}"),
            }
        };
        let mut sinks: Vec<AgentSink> = mix.sinks().into_iter().enumerate().map(named).collect();
        if mix == Mix::Quiet {
            sinks = crash_point_agents()
                .map(|agent| AgentSink {
                    name: format!("/{agent}"),
                    agent,
                    sink: Sink::Good,
                })
                .collect();
        }
        let url = receiver.url("");
        let host: SocketAddr = url.strip_prefix("http://").context("a receiver's URL")?.parse()?;
        let closed = TcpSocket::new_v4()?;
        closed.bind(SocketAddr::new(host.ip(), 0))?;
        let servers = Servers {
            sinks,
            receiver,
            closed,
        };
        servers.write_scripts();
        Ok(servers)
    }

    /// The path of a server; a webhook that was deleted is registered again under another path.
    pub fn path(&self, sink: &AgentSink, life: usize) -> String {
        match life {
            0 => sink.name.clone(),
            _ => format!("{}-{life}", sink.name),
        }
    }

    pub fn url(&self, sink: &AgentSink, life: usize) -> String {
        let path = self.path(sink, life);
        match (sink.sink, self.closed.local_addr()) {
            (Sink::Dead, Ok(closed)) => format!("http://{closed}{path}"),
            (Sink::Leaving, _) => {
                self.receiver.statuses(&path, &[500]);
                self.receiver.url(&path)
            }
            _ => self.receiver.url(&path),
        }
    }

    /// The agents in the order in which they get messages: every second message is for a refusing server, if there is
    /// one, and each slow server gets one message per cycle.
    pub fn cycle(&self) -> Vec<String> {
        let (tardy, quick): (Vec<_>, Vec<_>) = self.sinks.iter().partition(|s| s.sink.is_tardy());
        let (refusing, others): (Vec<_>, Vec<_>) = quick.into_iter().partition(|s| s.sink == Sink::Refusing);
        let mut cycle = Vec::new();
        for (number, other) in others.iter().enumerate() {
            cycle.push(other.agent.clone());
            cycle.extend(refusing.get(number % refusing.len().max(1)).map(|r| r.agent.clone()));
        }
        // Every refusing server gets its turn, however few other servers there are.
        let rest = refusing.iter().skip(others.len());
        cycle.extend(rest.map(|sink| sink.agent.clone()));
        if tardy.is_empty() {
            return cycle;
        }
        let rounds = std::iter::repeat_n(cycle, TARDY_ROUNDS).flatten();
        tardy.into_iter().map(|sink| sink.agent.clone()).chain(rounds).collect()
    }

    fn write_scripts(&self) {
        let receiver = &self.receiver;
        let good = || Answer::status(200);
        for AgentSink { sink, name, .. } in &self.sinks {
            let once = |answer: Answer| receiver.script_per_delivery(name, [answer, good()]);
            let always = |answer: Answer| receiver.script(name, [answer]);
            match sink {
                Sink::Good | Sink::Healthy | Sink::Dead => {}
                Sink::Slow => always(good().after(Duration::from_millis(150))),
                Sink::Shaky(failures) => receiver.statuses(name, &[&vec![500; *failures][..], &[200]].concat()),
                Sink::HangsUp => once(Answer::hang_up()),
                Sink::Moved => once(Answer::status(302).header("location", receiver.url("/elsewhere"))),
                Sink::Later => once(Answer::status(429).header("retry-after", "2")),
                Sink::Refusing => always(Answer::status(489).header("upstash-nonretryable-error", "true")),
                Sink::Gone => always(Answer::status(410)),
                Sink::Leaving => receiver.statuses(name, &[500]),
                Sink::Hanging => once(Answer::never()),
                Sink::Dripping => once(Answer::dripping(Duration::from_millis(500))),
                Sink::Late => once(good().after(Duration::from_millis(31_000))),
                Sink::DripsOn => always(Answer::dripping(Duration::from_millis(500))),
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn everybody_gets_mail_and_who_refuses_gets_much() {
        for mix in [
            Mix::Quick,
            Mix::Ladder,
            Mix::Crowd,
            Mix::Leaving,
            Mix::FullInbox,
            Mix::Quiet,
        ] {
            let servers = Servers::start(mix, Receiver::start().await.unwrap()).await.unwrap();
            let cycle = servers.cycle();
            let mail = |sink: &AgentSink| cycle.iter().filter(|agent| **agent == sink.agent).count();
            for sink in &servers.sinks {
                assert!(mail(sink) > 0, "{mix:?} has none for {}", sink.agent);
                assert!(!sink.sink.is_tardy() || mail(sink) == 1);
            }
            let refusing = servers.sinks.iter().filter(|sink| sink.sink == Sink::Refusing);
            let dead: usize = refusing.map(mail).sum();
            assert!(
                dead == 0 || 3 * dead > cycle.len(),
                "{mix:?} has {dead} dead letters in {}",
                cycle.len()
            );
        }
    }
}
