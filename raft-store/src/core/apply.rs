//! The contract of the replicated state machine, and its dispatch.
//!
//! Every replica feeds the same entries in the same order into [`apply_command`] and must end with the same
//! bytes. So:
//!
//! - **Inputs** are the view, the command and the entry's log id, nothing else. There is no clock here, no
//!   randomness, no order of a hash map, no float and no `usize` in a stored value. Ids come in the command,
//!   minted where the request arrived; time comes in the command, stamped by the leader; sequence numbers
//!   come from the state. `clippy.toml` of this crate forbids the ambient ones.
//! - **Two times.** `wall_ms` is the highest wall clock that a leader ever stamped: calendar days and
//!   months, and what people read. `cluster_ms` counts only the time that leaders measured themselves,
//!   taken from the current epoch alone: ages (idempotency keys, retention) are measured in it, so that
//!   neither a clock jump nor a leader change ages anything early. Neither ever goes back.
//! - **Three outcomes.** A reply; a [`Rejection`], the same on every replica, after which not one write of
//!   its command is left (the savepoint sees to that); a [`Fatal`] (the disk failed, a value does not
//!   decode, an invariant is broken), after which the node stops, because answering differently from its
//!   peers is the one thing that it must never do.
//! - **Authority.** The principal of an operation is a claim. Each operation loads the key again and
//!   decides over the resource in the state; the team is always the key's team. The edge checks the same
//!   things first, only for speed.
//! - **Effects** say what became possible. They are hints, given when the writes are visible; work that
//!   must happen is a row.
//! - **Bounded work.** A command touches a number of rows that `limits.rs` bounds. Large jobs are many
//!   commands.
//! - **The state hash** is chained over every command's writes and stored with the applied row: equal
//!   indexes have equal hashes on all replicas, or something is broken.
//!
//! What is left out on purpose: reads (they are [`crate::core::query`]), and anything that waits.

pub mod agent;
mod check;
pub mod cursor;
pub mod delivery;
pub mod endpoint;
pub mod fanout;
pub mod inbox;
pub mod key;
pub mod lease;
pub mod login;
pub mod message;
pub mod principal;
pub mod quota;
pub mod sweep;
pub mod team;
pub mod topic;
pub mod webhook;

use std::collections::BTreeSet;

use agentpost_proto::command::operation::Op;
use agentpost_proto::command::{Command, Done, ErrorCode, Operation, Principal, Rejection, Reply, reply};
use agentpost_proto::record;
use bytes::Bytes;

use crate::core::effect::Effect;
use crate::core::keys;
use crate::core::kv::Fatal;
use crate::core::mutant::{self, Mutant};
use crate::core::view::{View, decode, load};

/// Why an operation did not happen.
#[derive(Debug)]
pub enum Stop {
    /// The caller's fault or limit; part of the replicated history.
    Reject(Rejection),
    /// Ours; the node stops.
    Fatal(Fatal),
}

impl From<Fatal> for Stop {
    fn from(fatal: Fatal) -> Self {
        Stop::Fatal(fatal)
    }
}

impl From<Rejection> for Stop {
    fn from(rejection: Rejection) -> Self {
        Stop::Reject(rejection)
    }
}

/// A refusal as an error value.
pub fn reject<T>(code: ErrorCode, message: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Reject(Rejection::new(code, message)))
}

/// What an operation may look at besides the view.
#[derive(Debug)]
pub struct Context<'a> {
    /// Log index of the entry.
    pub index: u64,
    /// Term of the entry.
    pub term: u64,
    /// Unix milliseconds, never going back.
    pub wall_ms: u64,
    /// Cluster time, never going back.
    pub cluster_ms: u64,
    /// Who asks; none for the cluster itself.
    pub principal: Option<&'a Principal>,
}

/// Applies one command. The view holds its writes afterwards, none of them if the reply is a rejection.
pub fn apply_command(
    view: &mut View<'_>,
    log_id: &record::LogId,
    command: &Bytes,
    effects: &mut Vec<Effect>,
) -> Result<Reply, Fatal> {
    let command: Command = decode(command.clone())?;
    let operation: Operation = decode(command.operation.clone())?;
    advance_time(&mut view.applied, &command);
    view.applied.last = Some(*log_id);
    let context = Context {
        index: log_id.index,
        term: log_id.term,
        wall_ms: view.applied.wall_ms,
        cluster_ms: view.applied.cluster_ms,
        principal: operation.principal.as_ref(),
    };
    let savepoint = view.savepoint();
    let effects_before = effects.len();
    let outcome = match operation.op {
        Some(op) => dispatch(view, &context, op, effects),
        None => reject(ErrorCode::Invalid, "an operation that this version does not know"),
    };
    let reply = match outcome {
        Ok(reply) => reply,
        Err(Stop::Reject(rejection)) => {
            view.rollback(savepoint);
            effects.truncate(effects_before);
            reply::Reply::Rejection(rejection)
        }
        Err(Stop::Fatal(fatal)) => return Err(fatal),
    };
    Ok(Reply { reply: Some(reply) })
}

/// A blank entry: only the place in the log moves.
pub fn apply_blank(view: &mut View<'_>, log_id: &record::LogId) {
    view.applied.last = Some(*log_id);
}

/// A membership entry: remembers the ids of its nodes for good, so that no other node ever gets one.
pub fn apply_membership(
    view: &mut View<'_>,
    log_id: &record::LogId,
    nodes: impl Iterator<Item = u64>,
) -> Result<(), Fatal> {
    view.applied.last = Some(*log_id);
    let before: record::NodeIds = load(view, &keys::node_ids())?.unwrap_or_default();
    let used: BTreeSet<u64> = before.used.iter().copied().chain(nodes).collect();
    if used.len() > before.used.len() {
        let used = used.into_iter().collect();
        view.store(keys::node_ids(), &record::NodeIds { used });
    }
    Ok(())
}

fn advance_time(applied: &mut record::Applied, command: &Command) {
    applied.wall_ms = applied.wall_ms.max(command.wall_ms);
    if command.ct_epoch != 0 && command.ct_epoch == applied.epoch {
        applied.cluster_ms = applied.cluster_ms.max(command.cluster_ms);
    }
}

fn dispatch(
    view: &mut View<'_>,
    context: &Context<'_>,
    op: Op,
    effects: &mut Vec<Effect>,
) -> Result<reply::Reply, Stop> {
    let done = || reply::Reply::Done(Done {});
    Ok(match op {
        Op::BeginEpoch(op) => {
            begin_epoch(view, context, op.node, op.term, effects)?;
            done()
        }
        Op::Tick(_) => done(),
        Op::BootstrapAdmin(op) => reply::Reply::Key(team::bootstrap_admin(view, context, op)?),
        Op::CreateTeam(op) => reply::Reply::Team(team::create_team(view, context, op)?),
        Op::UpdateTeam(op) => reply::Reply::Team(team::update_team(view, context, op)?),
        Op::CreateKey(op) => reply::Reply::Key(key::create(view, context, op)?),
        Op::RevokeKey(op) => {
            key::revoke(view, context, op, effects)?;
            done()
        }
        Op::RegisterAgent(op) => {
            agent::register(view, context, &op)?;
            done()
        }
        Op::StartLogin(op) => {
            login::start(view, context, op)?;
            done()
        }
        Op::DecideLogin(op) => {
            login::decide(view, context, &op)?;
            done()
        }
        Op::ClaimLogin(op) => reply::Reply::Login(login::claim(view, context, &op)?),
        Op::Send(op) => reply::Reply::Send(message::send(view, context, op, effects)?),
        Op::SendBatch(op) => reply::Reply::SendBatch(message::send_batch(view, context, op, effects)?),
        Op::MarkRead(op) => {
            inbox::mark_read(view, context, &op)?;
            done()
        }
        Op::AckCursors(op) => {
            cursor::ack(view, context, &op)?;
            done()
        }
        Op::Sweep(op) => reply::Reply::Sweep(sweep::sweep(view, context, &op)?),
        op => return dispatch_deliveries(view, context, op, effects),
    })
}

fn dispatch_deliveries(
    view: &mut View<'_>,
    context: &Context<'_>,
    op: Op,
    effects: &mut Vec<Effect>,
) -> Result<reply::Reply, Stop> {
    let done = || reply::Reply::Done(Done {});
    Ok(match op {
        Op::Subscribe(op) => reply::Reply::Subscription(topic::subscribe(view, context, &op, effects)?),
        Op::Unsubscribe(op) => {
            topic::unsubscribe(view, context, &op, effects)?;
            done()
        }
        Op::RegisterWebhook(op) => reply::Reply::Webhook(webhook::register(view, context, op, effects)?),
        Op::DeleteWebhook(op) => {
            webhook::delete(view, context, &op, effects)?;
            done()
        }
        Op::RotateSigningKeys(op) => reply::Reply::SigningKeys(team::rotate_signing_keys(view, context, &op)?),
        Op::CancelDelivery(op) => {
            delivery::cancel(view, context, &op)?;
            done()
        }
        Op::Redrive(op) => reply::Reply::Redrive(delivery::redrive(view, context, &op, effects)?),
        Op::Claim(op) => reply::Reply::Attempts(delivery::claim(view, context, &op)?),
        Op::Outcome(op) => reply::Reply::Attempts(delivery::outcome(view, context, op, effects)?),
        Op::Takeover(op) => reply::Reply::Attempts(delivery::takeover(view, context, &op, effects)?),
        Op::FanoutChunk(op) => reply::Reply::Fanout(fanout::chunk(view, context, &op, effects)?),
        Op::CloseEndpoint(op) => reply::Reply::Close(delivery::close_endpoint(view, context, &op, effects)?),
        Op::LeaseReads(op) => reply::Reply::Lease(lease::grant(view, context, &op)?),
        Op::ReturnLeases(op) => {
            lease::give_back(view, context, &op)?;
            done()
        }
        _ => return reject(ErrorCode::Invalid, "an operation that this version does not know"),
    })
}

/// A leadership may stamp cluster time from here on. Its id is this entry's index: it rises and is never
/// reused, so it fences a leader that was replaced without knowing.
fn begin_epoch(
    view: &mut View<'_>,
    context: &Context<'_>,
    node: u64,
    term: u64,
    effects: &mut Vec<Effect>,
) -> Result<(), Stop> {
    if context.term != term {
        return reject(ErrorCode::Stale, "the epoch was begun in another term");
    }
    view.applied.epoch = context.index;
    view.applied.epoch_node = node;
    effects.push(Effect::EpochBegan {
        epoch: context.index,
        node,
    });
    Ok(())
}

/// Only the newest epoch works for the cluster: a leader that was replaced without knowing is refused here.
fn check_epoch(view: &View<'_>, epoch: u64) -> Result<(), Stop> {
    if epoch == 0 || epoch != view.applied.epoch && !mutant::on(Mutant::EpochUnchecked) {
        return reject(ErrorCode::Stale, "another epoch has begun");
    }
    Ok(())
}
