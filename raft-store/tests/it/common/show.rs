//! Shows replies and effects as lines of a script.

use std::fmt::Write as _;

use agentpost_proto::command::{Principal, Reply, SendReply, reply::Reply as R, send_outcome::Outcome};
use agentpost_proto::id::DeliveryId;
use agentpost_raft_store::core::effect::Effect;
use agentpost_testkit::commands::principal;

fn sent_line(sent: &SendReply) -> String {
    let id = name(&sent.message_id);
    let job = if sent.fanout_job { " as a job" } else { "" };
    format!(
        "sent {id} seq={} events={}/{} sends={}/{} charged={}{job}",
        sent.seq, sent.events_used, sent.events_limit, sent.sends_used, sent.sends_limit, sent.amount_charged_atomic
    )
}

/// The name from which an id was made. Notice ids are hashes and have no name.
pub fn name(id: &[u8]) -> String {
    match std::str::from_utf8(id) {
        Ok(name) if name.bytes().all(|byte| byte.is_ascii_graphic()) => name.trim_end_matches('.').to_owned(),
        _ => "(a hash)".to_owned(),
    }
}

/// Whether this is the new entry of such an agent, which a script does not show.
fn is_of_the_crowd(effect: &Effect) -> bool {
    matches!(effect, Effect::InboxAppended { agent, .. } if is_crowd(agent))
}

/// Whether this is one of the agents x0, x1 and so on, which a script creates in large numbers.
pub fn is_crowd(agent: &str) -> bool {
    agent.strip_prefix('x').is_some_and(|n| n.parse::<u32>().is_ok())
}

pub fn reply(reply: Reply, effects: Vec<Effect>) -> String {
    let mut out = String::new();
    match reply.reply.unwrap() {
        R::Rejection(r) => writeln!(
            out,
            "rejected {}: {} (retry after {} s)",
            r.code().as_str(),
            r.message,
            r.retry_after_s
        ),
        R::Send(sent) => writeln!(out, "{}", sent_line(&sent)),
        R::SendBatch(batch) => {
            for outcome in batch.outcomes {
                match outcome.outcome.unwrap() {
                    Outcome::Sent(sent) => writeln!(out, "{}", sent_line(&sent)).unwrap(),
                    Outcome::Rejection(r) => writeln!(out, "rejected {}: {}", r.code().as_str(), r.message).unwrap(),
                }
            }
            Ok(())
        }
        R::Sweep(sweep) => writeln!(out, "swept {} rows", sweep.rows),
        R::Attempts(reply) => writeln!(out, "attempts {:?}", reply.done),
        R::Fanout(reply) => writeln!(out, "chunk finished={} stale={}", reply.finished, reply.stale),
        R::Close(reply) => writeln!(out, "closed {} finished={}", reply.closed, reply.finished),
        R::SigningKeys(keys) => writeln!(out, "signing keys {}", keys.generation),
        R::Redrive(reply) => writeln!(
            out,
            "redriven as {}",
            DeliveryId::from_slice(&reply.delivery_id).unwrap()
        ),
        R::Lease(lease) => writeln!(
            out,
            "leased {} of day {}: {}/{}",
            lease.units, lease.day, lease.used, lease.limit
        ),
        R::Subscription(s) => writeln!(
            out,
            "subscribed url={:?} generation={} registrations={}/{}",
            s.url, s.generation, s.registrations_used, s.registrations_limit
        ),
        R::Webhook(w) => writeln!(
            out,
            "webhook generation={} registrations={}/{}",
            w.generation, w.registrations_used, w.registrations_limit
        ),
        R::Login(login) => writeln!(out, "key {} of team {}", name(&login.key_id), name(&login.team_id)),
        R::Done(_) | R::Team(_) | R::Key(_) => writeln!(out, "done"),
    }
    .unwrap();
    let (crowd, effects): (Vec<Effect>, Vec<Effect>) = effects.into_iter().partition(is_of_the_crowd);
    if let Some(Effect::InboxAppended { seq, .. }) = crowd.last() {
        writeln!(out, "effect: {} inboxes of the crowd grew to seq {seq}", crowd.len()).unwrap();
    }
    for effect in effects {
        match effect {
            Effect::InboxAppended { agent, seq, .. } => writeln!(out, "effect: inbox {agent} grew to seq {seq}"),
            Effect::Published { seq, .. } => writeln!(out, "effect: published at seq {seq}"),
            Effect::FanoutQueued { topic, .. } => writeln!(out, "effect: topic {topic} has a job"),
            Effect::FanoutFinished { seq, .. } => {
                writeln!(out, "effect: the publish at seq {seq} has all its receivers")
            }
            Effect::DeliveryDue { generation, .. } => writeln!(out, "effect: endpoint {generation} has work"),
            Effect::EndpointClosing { generation, .. } => writeln!(out, "effect: endpoint {generation} closes"),
            Effect::KeyRevoked(_) => writeln!(out, "effect: key revoked"),
            Effect::EpochBegan { epoch, node } => writeln!(out, "effect: epoch {epoch} of node {node}"),
        }
        .unwrap();
    }
    out
}

/// The principal that a script writes as `team/key`.
pub fn caller(by: &str) -> Option<Principal> {
    let (team, key) = by.split_once('/').expect("by=team/key");
    Some(principal(team, key))
}
