//! Waiting for a large publish: its receivers follow in chunks, and its sender is answered when the last
//! inbox has it, or is told that this is still going on.

use std::time::Duration;

use agentpost_proto::command::SendReply;
use agentpost_proto::id::TeamId;
use agentpost_proto::limits;
use agentpost_raft_store::kv::{Fatal, Kv};
use agentpost_raft_store::query;

use crate::http::Doors;
use crate::http::error::Result;

/// How the answer says it.
pub const PENDING: &str = "pending";

/// Whether inboxes still follow when the time to wait for them is over. A repeat of a publish waits like the
/// first.
pub async fn pending(doors: &Doors, team: TeamId, topic: &str, reply: &SendReply) -> Result<bool> {
    if !reply.fanout_job {
        return Ok(false);
    }
    let services = &doors.services;
    let deadline = services.clock.now() + Duration::from_millis(limits::FANOUT_WAIT_MS);
    // Registered before the state is looked at, so nothing falls between the two.
    let mut listener = services.wakeups.team(team);
    while pending_in(&*services.reader.local(), team, topic, reply)? {
        tokio::select! {
            () = listener.woken() => {}
            () = tokio::time::sleep_until(deadline) => return Ok(true),
            () = services.cluster.shutdown.cancelled() => return Ok(true),
        }
    }
    Ok(false)
}

/// Whether inboxes still follow as far as this state knows: the publish is not applied here yet, or its job
/// is not done. The team's counter tells the former also when the message is gone again.
pub fn pending_in(kv: &impl Kv, team: TeamId, topic: &str, reply: &SendReply) -> Result<bool, Fatal> {
    if !reply.fanout_job {
        return Ok(false);
    }
    Ok(query::team_head(kv, team)?.last_seq < reply.seq || query::topic::fanout_pending(kv, team, topic, reply.seq)?)
}
