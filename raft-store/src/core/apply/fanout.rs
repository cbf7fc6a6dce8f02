//! Fan-out: a topic message reaches every agent that was subscribed at the log index of the publish, except the
//! publisher.
//!
//! For a small topic the publish itself appends to the inboxes. For a large one it creates a fan-out job, which later
//! commands carry out in chunks of subscription rows. While a topic has an unfinished job, each later publish to it
//! becomes a job too, and only the oldest job proceeds, so that every inbox has the messages of a topic in the order of
//! their publishes. The entries of a chunk get a new seq, because other mail may have reached an inbox since the
//! publish.
//!
//! Each publish has `rc` rows that list its receivers, for retention and for finding an entry. The row at the publish's
//! own seq always exists: it stands for the reference that the publish itself holds to its message.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use agentpost_proto::command::{FanoutChunk, FanoutReply, WebhookEvent};
use agentpost_proto::id::{self, TeamId};
use agentpost_proto::limits;
use agentpost_proto::record::{FanoutJob, Message, Receivers, Subscription, TeamHead, Topic};
use bytes::Bytes;

use super::check::parsed;
use super::delivery::{self, Target};
use super::{Context, Stop, check_epoch, endpoint, inbox, retention, topic, webhook};
use crate::core::effect::Effect;
use crate::core::keys;
use crate::core::kv::{Fatal, Kv, Order};
use crate::core::mutant::{self, Mutant};
use crate::core::query::delivery::first_fanout_job;
use crate::core::view::{View, decode};

/// How a publish reaches its receivers.
#[derive(Debug)]
pub(super) enum Plan {
    /// Nobody is subscribed.
    Nobody,
    /// The publish appends to the inboxes.
    Inline(Topic),
    /// The publish becomes a fan-out job.
    Job(Topic),
}

impl Plan {
    /// Plans a publish. An inline one subtracts its subscription rows from `rows_left`, which bounds the whole command.
    pub fn new(view: &View<'_>, team: TeamId, name: &str, rows_left: &mut usize) -> Result<Self, Fatal> {
        let Some(topic) = view.load::<Topic>(&keys::topic(team, name))? else {
            return Ok(Plan::Nobody);
        };
        match rows_left.checked_sub(topic.rows as usize) {
            Some(left) if topic.jobs == 0 => {
                *rows_left = left;
                Ok(Plan::Inline(topic))
            }
            _ => Ok(Plan::Job(topic)),
        }
    }

    pub fn is_job(&self) -> bool {
        matches!(self, Plan::Job(_))
    }
}

/// Appends a message that was just stored to the inboxes of its receivers, or creates the job that will.
pub(super) fn publish(
    view: &mut View<'_>,
    context: &Context<'_>,
    team: TeamId,
    head: &mut TeamHead,
    message: &Message,
    plan: Plan,
    effects: &mut Vec<Effect>,
) -> Result<(), Fatal> {
    let seq = message.seq;
    let own = keys::receivers(team, seq, seq);
    effects.push(Effect::Published { team, seq });
    let mut topic = match plan {
        Plan::Nobody => {
            view.put(own, Bytes::new());
            return Ok(());
        }
        Plan::Job(mut topic) => {
            view.put(own, Bytes::new());
            if topic.jobs == 0 {
                topic.first_job_seq = seq;
            }
            topic.jobs += 1;
            view.store(keys::topic(team, &message.topic), &topic);
            let job = FanoutJob {
                publish_index: context.index,
                next_serial: 1,
                last_serial: topic.rows,
            };
            view.store(keys::fanout_job(team, &message.topic, seq), &job);
            effects.push(Effect::FanoutQueued {
                team,
                topic: message.topic.clone(),
            });
            return Ok(());
        }
        Plan::Inline(topic) => topic,
    };
    let walk = Walk {
        team,
        message,
        publish_index: context.index,
        entry_seq: seq,
    };
    let rows_before = topic.rows;
    let all = 1..=rows_before;
    let (receivers, _) = walk.give(view, context, head, &mut topic, all, effects)?;
    view.store(own, &receivers);
    if topic.rows != rows_before {
        topic::keep(view, team, head, &message.topic, &topic);
    }
    Ok(())
}

/// Carries out the next chunk of a fan-out job.
pub fn chunk(
    view: &mut View<'_>,
    context: &Context<'_>,
    op: &FanoutChunk,
    effects: &mut Vec<Effect>,
) -> Result<FanoutReply, Stop> {
    check_epoch(view, op.epoch)?;
    let team = parsed(TeamId::from_slice(&op.team_id))?;
    parsed(id::validate_name("topic", &op.topic))?;
    let Some(mut job) = first_fanout_job(view, team, &op.topic)?
        .filter(|(seq, job)| *seq == op.seq && job.next_serial == op.from_serial)
        .map(|(_, job)| job)
    else {
        return Ok(FanoutReply {
            finished: false,
            stale: true,
        });
    };
    let mut head: TeamHead = view.load(&keys::team_head(team))?.unwrap_or_default();
    let mut topic: Topic = topic::load(view, team, &op.topic)?;
    let message: Message = view
        .load(&keys::message(team, op.seq))?
        .ok_or_else(|| Fatal::Invariant(format!("a fan-out of {team} without its message {}", op.seq)))?;
    let walk = Walk {
        team,
        message: &message,
        publish_index: job.publish_index,
        entry_seq: head.last_seq + 1,
    };
    let rest = job.next_serial..=job.last_serial;
    let (receivers, next_serial) = walk.give(view, context, &mut head, &mut topic, rest, effects)?;
    let finished = next_serial > job.last_serial.min(topic.rows);
    if !receivers.agents.is_empty() {
        head.last_seq = head.last_seq.max(walk.entry_seq);
        view.store(keys::receivers(team, op.seq, walk.entry_seq), &receivers);
    }
    let key = keys::fanout_job(team, &op.topic, op.seq);
    if finished {
        topic.jobs = topic.jobs.saturating_sub(1);
        topic.first_job_seq = next_job_seq(view, team, &op.topic, op.seq)?;
        view.delete(key);
        // The message may have expired while the job ran. The sweep then left it to the last chunk: restore its row.
        retention::watch_expiry(view, context, team, &message);
        effects.push(Effect::FanoutFinished { team, seq: op.seq });
    } else {
        job.next_serial = next_serial;
        view.store(key, &job);
    }
    topic::keep(view, team, &mut head, &op.topic, &topic);
    view.store(keys::team_head(team), &head);
    Ok(FanoutReply { finished, stale: false })
}

/// The seq of the job of a topic after that of `seq`, or 0 if it is the last one.
fn next_job_seq(view: &View<'_>, team: TeamId, topic: &str, seq: u64) -> Result<u64, Fatal> {
    let later = keys::fanout_jobs_from(team, topic, seq + 1);
    let next = view.range(later, Order::Ascending).next().transpose()?;
    Ok(next.and_then(|(key, _)| keys::trailing_number(&key)).unwrap_or(0))
}

/// A walk over the subscription rows of one publish.
struct Walk<'a> {
    team: TeamId,
    message: &'a Message,
    publish_index: u64,
    /// The seq of the entries that this walk appends.
    entry_seq: u64,
}

impl Walk<'_> {
    /// Appends the message to the inboxes of the agents in the rows of `serials` that were subscribed at the publish,
    /// and removes rows that no publish needs any more. It looks at `limits::FANOUT_CHUNK_ROWS` rows at most. Returns the
    /// receivers, and the serial at which it stopped.
    fn give(
        &self,
        view: &mut View<'_>,
        context: &Context<'_>,
        head: &mut TeamHead,
        topic: &mut Topic,
        serials: RangeInclusive<u64>,
        effects: &mut Vec<Effect>,
    ) -> Result<(Receivers, u64), Fatal> {
        let team = self.team;
        let mut serial = *serials.start();
        let mut rows = self.rows(view, serials)?;
        let mut receivers = Receivers::default();
        for _ in 0..limits::FANOUT_CHUNK_ROWS {
            let Some(row) = rows.pop_front() else { break };
            let ended = row.until_index <= self.publish_index || mutant::on(Mutant::FanoutNow);
            if row.until_index != 0 && ended {
                if topic.rows == serial + rows.len() as u64 {
                    rows.pop_back();
                }
                let moved = topic::remove_row(view, team, &self.message.topic, topic, serial)?;
                moved.into_iter().for_each(|row| rows.push_front(row));
                continue;
            }
            serial += 1;
            if row.since_index >= self.publish_index || row.agent == self.message.from {
                continue;
            }
            inbox::append(view, team, head, &row.agent, self.entry_seq, self.message)?;
            self.deliver(view, context, head, &row, effects)?;
            effects.push(Effect::InboxAppended {
                team,
                agent: row.agent.clone(),
                seq: self.entry_seq,
            });
            receivers.agents.push(row.agent);
        }
        let entries = receivers.agents.len() as u64;
        if entries > 0 {
            inbox::retain_message(view, team, self.message.seq, entries)?;
        }
        Ok((receivers, serial))
    }

    /// The first rows of these serials.
    fn rows(&self, view: &View<'_>, serials: RangeInclusive<u64>) -> Result<VecDeque<Subscription>, Fatal> {
        let range = keys::subscriptions_between(self.team, &self.message.topic, *serials.start(), *serials.end());
        let rows = view.range(range, Order::Ascending).take(limits::FANOUT_CHUNK_ROWS);
        rows.map(|row| decode(row?.1)).collect()
    }

    /// Schedules a delivery to the subscription's own URL and one to the agent's webhook, or only one if both have the
    /// same URL.
    fn deliver(
        &self,
        view: &mut View<'_>,
        context: &Context<'_>,
        head: &mut TeamHead,
        row: &Subscription,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Fatal> {
        let (team, agent) = (self.team, row.agent.as_str());
        if !row.url.is_empty()
            && let Some(generation) = endpoint::open_generation(view, team, agent, &row.url)?
        {
            let target = Target {
                agent,
                url: &row.url,
                generation,
                subscription_id: &row.id,
            };
            delivery::schedule(view, context, team, head, self.message, target, effects)?;
        }
        if let Some((url, generation)) = webhook::open(view, team, agent, WebhookEvent::MessageTopic)?
            && url != row.url
        {
            let target = Target {
                agent,
                url: &url,
                generation,
                subscription_id: &[],
            };
            delivery::schedule(view, context, team, head, self.message, target, effects)?;
        }
        Ok(())
    }
}
