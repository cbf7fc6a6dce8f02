//! Sending a message to an agent or to a topic.

use agentpost_proto::command::{
    BodyKind, ErrorCode, Face, Permission, Send, SendBatch, SendBatchReply, SendOutcome, SendReply, TeamLimits,
    WebhookEvent, send_outcome,
};
use agentpost_proto::id::{self, AgentId, MessageId, TeamId};
use agentpost_proto::limits;
use agentpost_proto::record::{Idempotency, Message, Team, TeamHead};
use bytes::Bytes;
use prost::Message as _;
use sha2::{Digest, Sha256};

use super::check::parsed;
use super::delivery::{self, Target};
use super::fanout::{self, Plan};
use super::principal::Caller;
use super::quota::{self, SendCounts};
use super::team::{self, default_limits};
use super::{Context, Stop, inbox, reject, retention, webhook};
use crate::core::effect::Effect;
use crate::core::keys;
use crate::core::kv::{Fatal, Lookup};
use crate::core::mutant::{self, Mutant};
use crate::core::query;
use crate::core::view::View;

/// The lifetime of an idempotency key, in cluster time.
pub(super) const IDEMPOTENCY_TTL_MS: u64 = 24 * 3600 * 1000;

/// Stores a message and appends it to the inboxes of its receivers. A send with an idempotency key or message id that
/// was used before returns the first result and stores nothing.
pub fn send(
    view: &mut View<'_>,
    context: &Context<'_>,
    op: Send,
    effects: &mut Vec<Effect>,
) -> Result<SendReply, Stop> {
    let mut batch = SendContext::open(view, context)?;
    let reply = batch.send(view, context, op, effects)?;
    batch.close(view);
    Ok(reply)
}

/// Stores many messages. Each is counted, and accepted or rejected, on its own.
pub fn send_batch(
    view: &mut View<'_>,
    context: &Context<'_>,
    op: SendBatch,
    effects: &mut Vec<Effect>,
) -> Result<SendBatchReply, Stop> {
    let mut batch = SendContext::open(view, context)?;
    if op.sends.len() > limits::BATCH_ITEMS_MAX {
        return reject(ErrorCode::Invalid, "too many messages in a batch");
    }
    let mut outcomes = Vec::with_capacity(op.sends.len());
    for item in op.sends {
        let (savepoint, effects_before) = (view.savepoint(), effects.len());
        let (head, fanout_rows) = (batch.head, batch.fanout_rows);
        let outcome = match batch.send(view, context, item, effects) {
            Ok(sent) => send_outcome::Outcome::Sent(sent),
            Err(Stop::Reject(rejection)) => {
                view.rollback(savepoint);
                (batch.head, batch.fanout_rows) = (head, fanout_rows);
                effects.truncate(effects_before);
                send_outcome::Outcome::Rejection(rejection)
            }
            Err(fatal) => return Err(fatal),
        };
        outcomes.push(SendOutcome { outcome: Some(outcome) });
        if view.is_decided() {
            return Ok(SendBatchReply::default());
        }
    }
    batch.close(view);
    Ok(SendBatchReply { outcomes })
}

/// The state that the sends of one command share: the caller, and the team's limits and counters. The counters are
/// written once, at the end of the command.
struct SendContext {
    caller: Caller,
    limits: TeamLimits,
    strict_recipients: bool,
    head: TeamHead,
    counts: SendCounts,
    /// Subscription rows that inline publishes of this command may still read.
    fanout_rows: usize,
    /// Whether any message was stored. If not, no counter changed.
    stored: bool,
}

impl SendContext {
    fn open(view: &View<'_>, context: &Context<'_>) -> Result<Self, Stop> {
        let caller = Caller::with(view, context, Permission::Write)?;
        let team = caller.team;
        let settings: Team = team::settings(view, team)?;
        Ok(SendContext {
            caller,
            limits: settings.limits.unwrap_or_else(default_limits),
            strict_recipients: settings.strict_recipients,
            head: view.load(&keys::team_head(team))?.unwrap_or_default(),
            counts: SendCounts::default(),
            fanout_rows: limits::FANOUT_CHUNK_ROWS,
            stored: false,
        })
    }

    fn close(self, view: &mut View<'_>) {
        if !self.stored {
            return;
        }
        view.store(keys::team_head(self.caller.team), &self.head);
        self.counts.close(view, self.caller.team);
    }

    /// Sends one message. Counting is the last step that may reject it, so a rejected message is never counted.
    fn send(
        &mut self,
        view: &mut View<'_>,
        context: &Context<'_>,
        op: Send,
        effects: &mut Vec<Effect>,
    ) -> Result<SendReply, Stop> {
        let message_id = parsed(MessageId::from_slice(&op.message_id))?;
        validate(&op)?;
        self.caller.acts_as(&op.from)?;
        let team = self.caller.team;
        if let Some(first) = repeated(view, context, team, &op)? {
            return Ok(first);
        }
        let direct = op.topic.is_empty();
        if direct && self.strict_recipients && view.get(&keys::agent(team, &op.to))?.is_none() {
            return reject(ErrorCode::NotFound, format!("nobody registered the agent {:?}", op.to));
        }
        if view.may_hold(team, message_id)?
            && let Some(seq) = view.get(&keys::message_id(team, message_id))?
        {
            return already_stored(view, team, &seq, &self.head, &self.limits);
        }
        let price = quota::count_event(&mut self.head, &self.limits, context)?;
        let counted = !self.caller.key.agent_id.is_empty() || op.face() == Face::Abbababa;
        let sends_used = if counted {
            self.counts.count(view, context, team, &op.from, &self.limits)?
        } else {
            0
        };

        self.stored = true;
        self.head.last_seq += 1;
        let seq = self.head.last_seq;
        let plan = match direct {
            true => None,
            false => Some(Plan::new(view, team, &op.topic, &mut self.fanout_rows)?),
        };
        let reply = SendReply {
            message_id: op.message_id.clone(),
            seq,
            created_at_ms: context.wall_ms,
            events_used: self.head.events_used,
            events_limit: self.limits.monthly_events,
            amount_charged_atomic: price,
            sends_used,
            sends_limit: self.limits.daily_sends,
            fanout_job: plan.as_ref().is_some_and(Plan::is_job),
        };
        view.put(keys::message_id(team, message_id), keys::number(seq));
        if !op.idempotency_key.is_empty() {
            remember(view, context, team, &op, &reply);
        }
        let message = store_message(view, context, team, &mut self.head, op);
        match plan {
            Some(plan) => fanout::publish(view, context, team, &mut self.head, &message, plan, effects)?,
            None => self.hand_over(view, context, message, effects)?,
        }
        Ok(reply)
    }

    /// Appends a direct message to its receiver's inbox, and schedules the delivery to its webhook.
    fn hand_over(
        &mut self,
        view: &mut View<'_>,
        context: &Context<'_>,
        message: Message,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Fatal> {
        let (team, seq) = (self.caller.team, message.seq);
        inbox::append(view, team, &mut self.head, &message.to, seq, &message)?;
        if let Some((url, generation)) = webhook::open(view, team, &message.to, WebhookEvent::MessageReceived)? {
            let target = Target {
                agent: &message.to,
                url: &url,
                generation,
                subscription_id: &[],
            };
            delivery::schedule(view, context, team, &mut self.head, &message, target, effects)?;
        }
        effects.push(Effect::InboxAppended {
            team,
            agent: message.to,
            seq,
        });
        Ok(())
    }
}

/// Checks a message. The server has made the same checks with better error texts; these protect the key space.
fn validate(op: &Send) -> Result<(), Stop> {
    parsed(op.from.parse::<AgentId>())?;
    match (op.to.as_str(), op.topic.as_str()) {
        (to, "") => drop(parsed(to.parse::<AgentId>())?),
        ("", topic) => parsed(id::validate_name("topic", topic))?,
        _ => {
            return reject(
                ErrorCode::Invalid,
                "a message goes to an agent or to a topic, not to both",
            );
        }
    }
    parsed(id::validate_name("type", &op.r#type))?;
    if op.from == AgentId::SYSTEM {
        return reject(ErrorCode::Forbidden, "nobody can send as the reserved agent \"system\"");
    }
    if op.to == AgentId::SYSTEM {
        return reject(ErrorCode::NotFound, "the reserved agent \"system\" has no inbox");
    }
    if !op.idempotency_key.is_empty() {
        parsed(id::validate_idempotency_key(&op.idempotency_key))?;
    }
    if op.body.len() > limits::BODY_BYTES_MAX || op.extras.len() > limits::EXTRAS_BYTES_MAX {
        return reject(ErrorCode::Invalid, "the message is too large");
    }
    if op.body_kind() == BodyKind::Unspecified {
        return reject(ErrorCode::Invalid, "a message has a body");
    }
    Ok(())
}

/// The first result with the same idempotency key, if it has not expired.
fn repeated(view: &View<'_>, context: &Context<'_>, team: TeamId, op: &Send) -> Result<Option<SendReply>, Stop> {
    if op.idempotency_key.is_empty() {
        return Ok(None);
    }
    let row: Option<Idempotency> = view.load(&keys::idempotency(team, &op.from, &op.idempotency_key))?;
    let Some(row) = row else { return Ok(None) };
    // An aged row counts as absent even before the sweep removes it.
    let forgotten = mutant::on(Mutant::KeyForgotten) && context.cluster_ms >= row.created_ct_ms + 500;
    if context.cluster_ms >= row.created_ct_ms + IDEMPOTENCY_TTL_MS || forgotten {
        return Ok(None);
    }
    if row.operation_hash != operation_hash(op) {
        return reject(
            ErrorCode::IdempotencyMismatch,
            "this Idempotency-Key was used for another message",
        );
    }
    Ok(Some(crate::core::view::decode(row.reply)?))
}

fn remember(view: &mut View<'_>, context: &Context<'_>, team: TeamId, op: &Send, reply: &SendReply) {
    let row = Idempotency {
        operation_hash: operation_hash(op),
        created_ct_ms: context.cluster_ms,
        reply: Bytes::from(reply.encode_to_vec()),
    };
    view.store(keys::idempotency(team, &op.from, &op.idempotency_key), &row);
    let expires = context.cluster_ms + IDEMPOTENCY_TTL_MS;
    view.put(
        keys::idempotency_expiry(expires, team, &op.from, &op.idempotency_key),
        Bytes::new(),
    );
}

/// A hash of the fields that make two sends the same operation, each prefixed with its length.
fn operation_hash(op: &Send) -> Bytes {
    let mut hash = Sha256::new();
    let fields = [
        op.to.as_bytes(),
        op.r#type.as_bytes(),
        &op.body,
        op.thread_id.as_bytes(),
        op.reply_to_id.as_bytes(),
    ];
    for field in fields {
        hash.update((field.len() as u64).to_be_bytes());
        hash.update(field);
    }
    hash.update(op.body_kind.to_be_bytes());
    hash.update(op.expires_at_ms.to_be_bytes());
    hash.update(op.topic.as_bytes());
    Bytes::copy_from_slice(&hash.finalize())
}

/// The reply to a send whose message id is already stored: that message, with the current counters.
fn already_stored(
    view: &View<'_>,
    team: TeamId,
    seq: &[u8],
    head: &TeamHead,
    limits: &TeamLimits,
) -> Result<SendReply, Stop> {
    let seq =
        keys::trailing_number(seq).ok_or_else(|| Fatal::Invariant("a message id row without a seq".to_owned()))?;
    let message: Message = view
        .load(&keys::message(team, seq))?
        .ok_or_else(|| Fatal::Invariant(format!("message id row of {team} leads to a missing seq {seq}")))?;
    let fanout_job = query::topic::fanout_pending(view, team, &message.topic, seq)?;
    Ok(SendReply {
        message_id: message.id,
        fanout_job,
        seq,
        created_at_ms: message.created_at_ms,
        events_used: head.events_used,
        events_limit: limits.monthly_events,
        ..SendReply::default()
    })
}

/// Stores a message at the newest seq of its team.
fn store_message(view: &mut View<'_>, context: &Context<'_>, team: TeamId, head: &mut TeamHead, op: Send) -> Message {
    let seq = head.last_seq;
    let message = Message {
        id: op.message_id,
        seq,
        from: op.from,
        to: op.to,
        r#type: op.r#type,
        body_kind: op.body_kind,
        body: op.body,
        thread_id: op.thread_id,
        reply_to_id: op.reply_to_id,
        created_at_ms: match mutant::on(Mutant::OwnState) {
            true => context.wall_ms + mutant::of_this_process(),
            false => context.wall_ms,
        },
        created_ct_ms: context.cluster_ms,
        expires_at_ms: op.expires_at_ms,
        extras: op.extras,
        topic: op.topic,
    };
    view.store(keys::message(team, seq), &message);
    retention::watch(view, context, team, head, &message);
    message
}
