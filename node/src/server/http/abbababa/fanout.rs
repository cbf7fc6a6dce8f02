//! Waits for a large publish, whose receivers follow in chunks: the sender is answered when the last inbox has the
//! message, or is told that inboxes are still pending.

use std::time::Duration;

use agentpost_proto::command::SendReply;
use agentpost_proto::id::TeamId;
use agentpost_raft_store::core::kv::{Fatal, Lookup};
use agentpost_raft_store::core::query;

use crate::server::error::Result;
use crate::server::http::app_state::AppState;

/// How long a publish waits for its last chunk before it is answered `fanout: "pending"`.
const FANOUT_WAIT_MS: u64 = 5_000;
/// The value of `fanout` in the answer.
pub const PENDING: &str = "pending";

/// Waits for the inboxes. Returns whether some are still pending at the deadline. A repeated publish waits like the
/// first.
pub async fn pending(app: &AppState, team: TeamId, topic: &str, reply: &SendReply) -> Result<bool> {
    if !reply.fanout_job {
        return Ok(false);
    }
    let services = &app.services;
    let deadline = services.wall_time.clock().now() + Duration::from_millis(FANOUT_WAIT_MS);
    // The listener is registered before the state is read, so nothing is missed in between.
    let mut listener = services.replica.wakeups.team(team);
    while pending_in(&services.replica.reader.local(), team, topic, reply)? {
        tokio::select! {
            () = listener.woken() => {}
            () = tokio::time::sleep_until(deadline) => return Ok(true),
            () = app.http.lifetime.shutdown.cancelled() => return Ok(true),
        }
    }
    Ok(false)
}

/// Whether inboxes are pending in this state: the publish is not applied here yet, or its job is not done. The team's
/// counter shows the former even if the message has been removed again.
pub fn pending_in(kv: &impl Lookup, team: TeamId, topic: &str, reply: &SendReply) -> Result<bool, Fatal> {
    if !reply.fanout_job {
        return Ok(false);
    }
    Ok(query::team::head(kv, team)?.last_seq < reply.seq || query::topic::fanout_pending(kv, team, topic, reply.seq)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use agentpost_proto::record::{FanoutJob, TeamHead};
    use agentpost_raft_store::core::keys;
    use agentpost_raft_store::core::kv::Memory;
    use prost::Message as _;

    const TEAM: TeamId = TeamId([1; 16]);

    #[test]
    fn a_publish_is_pending_until_it_is_applied_and_its_job_is_done() {
        let reply = |fanout_job| SendReply {
            seq: 7,
            fanout_job,
            ..SendReply::default()
        };
        let pending = |kv: &Memory, job| pending_in(kv, TEAM, "news", &reply(job)).unwrap();
        let head = |last_seq| {
            let head = TeamHead {
                last_seq,
                ..TeamHead::default()
            };
            (keys::team_head(TEAM), Some(head.encode_to_vec().into()))
        };
        let job = keys::fanout_job(TEAM, "news", 7);
        let mut kv = Memory::default();
        assert!(!pending(&kv, false));
        // This node has not applied the publish.
        kv.write(vec![head(6)]);
        assert!(pending(&kv, true));
        kv.write(vec![
            head(7),
            (job.clone(), Some(FanoutJob::default().encode_to_vec().into())),
        ]);
        assert!(pending(&kv, true));
        // The job is done; the message may have expired since.
        kv.write(vec![(job, None), head(9)]);
        assert!(!pending(&kv, true));
    }
}
