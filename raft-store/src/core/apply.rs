//! The contract of the replicated state machine, and its dispatch.
//!
//! Every replica feeds the same entries in the same order into [`apply_command`] and must end with the same
//! bytes. Therefore:
//!
//! - **Inputs** are the view, the command and the entry's log id, nothing else. `apply` reads no clock, draws no random
//!   number, iterates over no hash map, and stores no float and no `usize`. The node that received the request put the
//!   ids into the command, the leader stamped the time, and sequence numbers come from the state. `clippy.toml` of this
//!   crate forbids the ambient sources.
//! - **Two times.** `wall_ms` is the highest wall clock time that a leader ever stamped. Calendar days, calendar months
//!   and all times that people read come from it. `cluster_ms` counts only time that leaders measured with their
//!   monotonic clocks, and only the leader of the current epoch adds to it. Ages (idempotency keys, retention) are
//!   measured in it, so that neither a clock jump nor a change of leader ages anything early. Neither time ever goes
//!   back.
//! - **Three outcomes.** A command ends with a reply; with a [`Rejection`], which is the same on every replica and
//!   leaves none of the command's writes (it is rolled back to a savepoint); or with a [`Fatal`] (the disk failed, a
//!   value does not decode, an invariant is broken), after which the node stops, because it must never answer
//!   differently from its peers.
//! - **Authority.** The principal of an operation is only a claim. Each operation loads the key again and checks it
//!   against the resource in the state; the team is always the key's team. The server makes the same checks earlier,
//!   but only to refuse faster.
//! - **Effects** say what became possible. They are hints, sent when the writes are visible. Work that must happen is a
//!   row.
//! - **Bounded work.** A constant beside each command bounds the rows that it touches. A large job is many commands.
//! - **The state hash** is chained over the writes of every command and stored in the applied row. All replicas have
//!   the same hash at the same index, or something is broken.
//!
//! Two things are not here: reads, which are in [`crate::core::query`], and anything that waits.

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
pub mod preview;
pub mod principal;
mod queue;
pub mod quota;
mod retention;
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
    /// The caller made a mistake or reached a limit. The rejection is part of the replicated history.
    Reject(Rejection),
    /// The node must stop.
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

/// A rejection as an `Err`.
pub fn reject<T>(code: ErrorCode, message: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Reject(Rejection::new(code, message)))
}

/// The inputs of an operation besides the view.
#[derive(Debug)]
pub struct Context<'a> {
    /// The log index of the entry.
    pub index: u64,
    /// The term of the entry.
    pub term: u64,
    /// Wall clock time in Unix milliseconds. It never goes back.
    pub wall_ms: u64,
    /// Cluster time in milliseconds. It never goes back.
    pub cluster_ms: u64,
    /// The key that the caller presented; `None` when a node proposed the operation itself.
    pub principal: Option<&'a Principal>,
}

/// Applies one command. Afterwards the view holds its writes, or none if the reply is a rejection.
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
    let savepoint = view.begin_command();
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

/// Applies a blank entry, which only moves the last applied log id.
pub fn apply_blank(view: &mut View<'_>, log_id: &record::LogId) {
    view.applied.last = Some(*log_id);
}

/// Applies a membership entry. It records the ids of the nodes for ever, so that no id is given to another node later.
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
        Op::Sweep(_) => reply::Reply::Sweep(sweep::sweep(view, context)?),
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
        Op::Claim(op) => reply::Reply::Attempts(delivery::claim(view, context, &op, effects)?),
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

/// Begins the epoch of a leader, who stamps cluster time from now on. The epoch's id is the index of this entry: it
/// rises and is never reused, so it fences off a former leader that does not know yet that it was replaced.
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

/// Rejects a command of a past epoch, which comes from a former leader that does not know yet that it was replaced.
fn check_epoch(view: &View<'_>, epoch: u64) -> Result<(), Stop> {
    if epoch == 0 || epoch != view.applied.epoch && !mutant::on(Mutant::EpochUnchecked) {
        return reject(ErrorCode::Stale, "another epoch has begun");
    }
    Ok(())
}
