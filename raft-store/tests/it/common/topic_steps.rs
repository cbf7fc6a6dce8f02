//! The script commands about topics, webhooks and deliveries.

use std::fmt::Write as _;

use agentpost_proto::command::operation::Op;
use agentpost_proto::command::{
    AttemptOutcome, AttemptRef, AttemptResult, Claim, CloseEndpoint, DeleteWebhook, FanoutChunk, Grant, Outcome,
    RegisterWebhook, SendBatch, Subscribe, Unsubscribe, UpdateTeam,
};
use agentpost_raft_store::core::kv::Order;
use agentpost_raft_store::core::query;
use agentpost_raft_store::core::query::delivery::DeliveryQuery;
use agentpost_testkit::commands::{id_of, publish, subscribe, team_id};
use bytes::Bytes;

use crate::common::core::Core;
use crate::common::show::{self, is_crowd};

#[derive(goldenscript::Command)]
pub enum TopicStep {
    Subscribe {
        agent: String,
        topic: String,
        #[arg(key)]
        by: String,
        #[arg(key)]
        url: Option<String>,
    },
    Unsubscribe {
        agent: String,
        topic: String,
        #[arg(key)]
        by: String,
    },
    /// Subscribes x0, x1 and so on.
    Crowd {
        topic: String,
        count: usize,
        #[arg(key)]
        by: String,
    },
    /// Events are `received`, `topic` or both with a comma.
    Webhook {
        agent: String,
        url: String,
        #[arg(key)]
        by: String,
        #[arg(key)]
        events: Option<String>,
    },
    Unhook {
        agent: String,
        #[arg(key)]
        by: String,
    },
    /// Sets the daily limit of webhook registrations.
    Registrations {
        team: String,
        limit: u64,
        #[arg(key)]
        by: String,
    },
    Publish {
        id: String,
        #[arg(key)]
        by: String,
        #[arg(key)]
        from: String,
        #[arg(key)]
        topic: String,
        #[arg(key)]
        to: Option<String>,
        #[arg(key)]
        idem: Option<String>,
        #[arg(key)]
        expires: Option<u64>,
    },
    /// Sends a batch. Items are id:from:topic.
    Publishes {
        #[arg(many)]
        items: Vec<String>,
        #[arg(key)]
        by: String,
    },
    Chunk {
        team: String,
        topic: String,
        #[arg(key)]
        seq: u64,
        #[arg(key)]
        from: u64,
        #[arg(key)]
        epoch: Option<u64>,
    },
    /// Claims the next attempt of a delivery and records its status.
    Attempt {
        team: String,
        number: u64,
        status: u32,
    },
    Close {
        team: String,
        generation: u64,
    },
    Deliveries {
        team: String,
    },
    /// Shows the unfinished fan-out jobs.
    Jobs,
    Receivers {
        team: String,
        seq: u64,
    },
    Subscriptions {
        team: String,
        agent: String,
    },
    /// Shows the counters of a team.
    Counters {
        team: String,
    },
}

/// Whether this is one of the commands above.
pub fn knows(word: &str) -> bool {
    const WORDS: [&str; 16] = [
        "subscribe",
        "unsubscribe",
        "crowd",
        "webhook",
        "unhook",
        "registrations",
        "publish",
        "publishes",
        "chunk",
        "attempt",
        "close",
        "deliveries",
        "jobs",
        "receivers",
        "subscriptions",
        "counters",
    ];
    WORDS.contains(&word)
}

pub fn run(core: &mut Core, step: &TopicStep) -> String {
    if let Some((by, op)) = operation(step) {
        return apply(core, by, op);
    }
    match step {
        TopicStep::Crowd { topic, count, by } => {
            for n in 0..*count {
                let shown = apply(core, Some(by), Op::Subscribe(subscribe(&format!("x{n}"), topic)));
                assert!(shown.starts_with("subscribed"), "{shown}");
            }
            format!("{count} subscribed\n")
        }
        TopicStep::Chunk {
            team,
            topic,
            seq,
            from,
            epoch,
        } => {
            let op = FanoutChunk {
                epoch: epoch.unwrap_or(core.epoch),
                team_id: team_id(team).to_bytes(),
                topic: topic.clone(),
                seq: *seq,
                from_serial: *from,
            };
            apply(core, None, Op::FanoutChunk(op))
        }
        TopicStep::Close { team, generation } => {
            let op = CloseEndpoint {
                epoch: core.epoch,
                team_id: team_id(team).to_bytes(),
                generation: *generation,
            };
            apply(core, None, Op::CloseEndpoint(op))
        }
        TopicStep::Attempt { team, number, status } => attempt(core, team, *number, *status),
        question => ask(core, question),
    }
}

fn apply(core: &mut Core, by: Option<&String>, op: Op) -> String {
    let (reply, effects) = core.apply(by.and_then(|by| show::caller(by)), op);
    show::reply(reply, effects)
}

/// The operation of a command that a key authorizes.
fn operation(step: &TopicStep) -> Option<(Option<&String>, Op)> {
    let (by, op) = match step {
        TopicStep::Subscribe { agent, topic, by, url } => {
            let op = Subscribe {
                url: url.clone(),
                ..subscribe(agent, topic)
            };
            (by, Op::Subscribe(op))
        }
        TopicStep::Unsubscribe { agent, topic, by } => {
            let (agent, topic) = (agent.clone(), topic.clone());
            (by, Op::Unsubscribe(Unsubscribe { agent, topic }))
        }
        TopicStep::Webhook { agent, url, by, events } => {
            let named = events.as_deref().unwrap_or("received,topic").split(',');
            let op = RegisterWebhook {
                agent: agent.clone(),
                webhook_id: Bytes::copy_from_slice(&id_of(agent)),
                url: url.clone(),
                events: named.filter(|e| !e.is_empty()).map(event).collect(),
            };
            (by, Op::RegisterWebhook(op))
        }
        TopicStep::Unhook { agent, by } => (by, Op::DeleteWebhook(DeleteWebhook { agent: agent.clone() })),
        TopicStep::Registrations { team, limit, by } => {
            let op = UpdateTeam {
                team_id: team_id(team).to_bytes(),
                daily_webhook_registrations: Some(*limit),
                ..UpdateTeam::default()
            };
            (by, Op::UpdateTeam(op))
        }
        TopicStep::Publish {
            id,
            by,
            from,
            topic,
            to,
            idem,
            expires,
        } => {
            let mut op = publish(id, from, topic);
            op.to = to.clone().unwrap_or_default();
            op.idempotency_key = idem.clone().unwrap_or_default();
            op.expires_at_ms = expires.unwrap_or(0);
            (by, Op::Send(op))
        }
        TopicStep::Publishes { items, by } => {
            let sends = items.iter().map(|item| {
                let parts: Vec<&str> = item.split(':').collect();
                publish(parts[0], parts[1], parts[2])
            });
            (by, Op::SendBatch(SendBatch { sends: sends.collect() }))
        }
        _ => return None,
    };
    Some((Some(by), op))
}

fn event(name: &str) -> i32 {
    match name {
        "received" => 1,
        "topic" => 2,
        _ => 99,
    }
}

fn attempt(core: &mut Core, team: &str, number: u64, status: u32) -> String {
    let delivery = query::delivery::by_number(&core.memory, team_id(team), number).unwrap();
    let attempt = AttemptRef {
        team_id: team_id(team).to_bytes(),
        number,
        attempt_no: delivery.unwrap_or_default().attempt_no + 1,
    };
    let epoch = core.epoch;
    let grants = vec![Grant {
        attempt: Some(attempt.clone()),
        node: 1,
    }];
    let claimed = apply(core, None, Op::Claim(Claim { epoch, grants }));
    let result = AttemptResult {
        status,
        ..AttemptResult::default()
    };
    let outcome = AttemptOutcome {
        attempt: Some(attempt),
        epoch,
        result: Some(result),
    };
    let outcomes = vec![outcome];
    claimed + &apply(core, None, Op::Outcome(Outcome { outcomes }))
}

fn ask(core: &Core, question: &TopicStep) -> String {
    let kv = &core.memory;
    let mut out = String::new();
    match question {
        TopicStep::Deliveries { team } => out = deliveries(core, team),
        TopicStep::Jobs => {
            for (_, topic, seq, job) in query::delivery::fanout_jobs(kv).unwrap() {
                writeln!(
                    out,
                    "publish at seq {seq} to {topic}: serials {} to {}",
                    job.next_serial, job.last_serial
                )
                .unwrap();
            }
        }
        TopicStep::Receivers { team, seq } => {
            let agents = query::topic::receivers(kv, team_id(team), *seq, usize::MAX).unwrap();
            let (crowd, named): (Vec<String>, Vec<String>) = agents.into_iter().partition(|a| is_crowd(a));
            let crowd = match crowd.len() {
                0 => String::new(),
                n => format!(" and {n} of the crowd"),
            };
            writeln!(out, "{named:?}{crowd}").unwrap();
        }
        TopicStep::Subscriptions { team, agent } => {
            for (topic, row) in query::topic::subscriptions(kv, team_id(team), agent).unwrap() {
                writeln!(
                    out,
                    "{topic}: {} url={:?} updated={}",
                    show::name(&row.id),
                    row.url,
                    row.updated_at_ms
                )
                .unwrap();
            }
        }
        TopicStep::Counters { team } => {
            let head = query::team::head(kv, team_id(team)).unwrap();
            writeln!(
                out,
                "topics={} subscriptions={} endpoints={} deliveries={} swept={} removed={}",
                head.topics,
                head.subscriptions,
                head.endpoints,
                head.last_delivery,
                head.swept_seq,
                head.max_removed_seq
            )
            .unwrap();
        }
        _ => unreachable!("no question"),
    }
    match out.is_empty() {
        true => "none\n".to_owned(),
        false => out,
    }
}

fn deliveries(core: &Core, team: &str) -> String {
    let every = DeliveryQuery {
        after: None,
        order: Order::Ascending,
        limit: 100,
        state: None,
        agent: None,
    };
    let mut out = String::new();
    for d in query::delivery::page(&core.memory, team_id(team), &every)
        .unwrap()
        .deliveries
    {
        let own = match &d.subscription_id[..] {
            [] => String::new(),
            id => format!(" for {}", show::name(id)),
        };
        let state = d
            .state()
            .as_str_name()
            .trim_start_matches("DELIVERY_STATE_")
            .to_lowercase();
        writeln!(
            out,
            "#{} of {} to {} at {} (endpoint {}){own}: {state}",
            d.number,
            show::name(&d.message_id),
            d.agent,
            d.url,
            d.generation,
        )
        .unwrap();
    }
    out
}
