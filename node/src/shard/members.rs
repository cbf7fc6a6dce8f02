//! Changes of the membership: one change at a time, on the leader, through Raft.
//!
//! - **Add** adds a learner. It receives the log and has no vote, so a wrong address does no harm. Its id must be new.
//! - **Promote** turns a learner that has caught up into a voter.
//! - **Remove** removes a learner or a voter. A leader hands leadership over first, so that it never leads a cluster
//!   that it does not belong to. Removal is refused if the voters that answer would not be a majority of the remaining
//!   ones.
//!
//! A change of voters takes two entries: a joint configuration, then the new one. Changes cannot interleave. On one
//! leader a lock lets one change run, both entries included; across leaders each change names the membership that it
//! was decided on, and openraft refuses it if the membership has changed since.
//!
//! A leader that dies between the two entries leaves a joint configuration behind. No data is lost, but every decision
//! needs both majorities. So every leader finishes it: [`Members::finisher`] proposes the second entry when it sees a
//! joint configuration that no change on this node is about to finish. Changes requested meanwhile are refused.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use agentpost_proto::peer::{self, Refusal, change_members_reply, change_members_request};
use agentpost_raft_store::core::query;
use agentpost_raft_store::disk::types::{Member, StoredMembership, TypeConfig};
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::{ChangeMembers, Instant as _, LogIdOptionExt as _, Precondition};
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use url::Url;

use super::leadership::Worker;
use super::reader::Reader;
use super::this_node::ThisNode;
use super::{Lead, Leader, Raft};

/// Time limit for a change: two rounds of a quorum.
pub const CHANGE_DEADLINE: Duration = Duration::from_secs(10);
/// A learner that lags by more entries is not promoted, because the cluster would have to wait for it.
const LAG_MAX: u64 = 1_000;
/// A node that has been silent for longer counts as not answering.
const SILENCE_MAX: Duration = Duration::from_secs(1);
/// Pause before the finisher tries again.
const RETRY: Duration = Duration::from_millis(100);
/// Longest peer address, in bytes.
const ADDRESS_BYTES_MAX: usize = 300;

/// A change of the membership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Add {
        /// Its id; `None` takes the next id that was never used.
        id: Option<u64>,
        member: Member,
    },
    /// Turns a learner into a voter.
    Promote(u64),
    /// Removes a member. Its id is never used again.
    Remove(u64),
}

/// Why a change was not made, or may not have been made.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The request is malformed (400).
    #[error("{0}")]
    Invalid(String),
    /// There is no such member (404).
    #[error("{0}")]
    NotFound(String),
    /// The cluster cannot make this change now (409).
    #[error("{0}")]
    Conflict(String),
    /// This node does not lead, or has no quorum; nothing was changed (503).
    #[error("not ready: {0}")]
    NotReady(String),
    /// The change may still happen (504).
    #[error("outcome unknown: {0}")]
    OutcomeUnknown(String),
}

type Changed = Result<(u64, Member), ChangeError>;
type Changing = OwnedMutexGuard<()>;

fn refused<T>(why: impl Into<String>) -> Result<T, ChangeError> {
    Err(ChangeError::Conflict(why.into()))
}

/// Changes the membership while this node leads. Clones are cheap.
#[derive(Clone)]
pub struct Members {
    shared: Arc<Shared>,
}

struct Shared {
    raft: Raft,
    this_node: ThisNode,
    reader: Reader,
    /// Locked while a change runs.
    changing: Arc<Mutex<()>>,
}

impl Members {
    /// Changes of the group that `this_node` belongs to.
    pub fn new(raft: Raft, this_node: ThisNode, reader: Reader) -> Self {
        let shared = Shared {
            raft,
            this_node,
            reader,
            changing: Arc::default(),
        };
        Members {
            shared: Arc::new(shared),
        }
    }

    /// Carries a change out on the leader. Returns when the membership is as requested.
    pub async fn change(&self, change: Change) -> Changed {
        let Ok(changing) = Arc::clone(&self.shared.changing).try_lock_owned() else {
            return refused("another change of the members is under way");
        };
        if Lead::new(&self.shared.raft).now() != Leader::Here {
            return Err(ChangeError::NotReady("this node does not lead".to_owned()));
        }
        // After this barrier this node knows, and has applied, every change of earlier leaders.
        let state = self.shared.reader.linearizable().await;
        let state = state.map_err(|error| ChangeError::NotReady(error.to_string()))?;
        let used = query::node_ids(&state).map_err(|error| ChangeError::NotReady(error.to_string()))?;
        let before = self.membership();
        if before.membership().get_joint_config().len() > 1 {
            return refused("an earlier change of the members is being finished");
        }
        match change {
            Change::Add { id, member } => self.add(changing, &before, &used, id, member).await,
            Change::Promote(id) => self.promote(changing, &before, id).await,
            Change::Remove(id) => self.remove(changing, &before, &used, id).await,
        }
    }

    async fn add(
        &self,
        changing: Changing,
        before: &StoredMembership,
        used: &[u64],
        id: Option<u64>,
        member: Member,
    ) -> Changed {
        check_addresses(&member)?;
        let nodes = || before.membership().nodes();
        let highest = nodes().map(|(id, _)| *id).chain(used.iter().copied()).max();
        let id = match id {
            Some(0) => return Err(ChangeError::Invalid("id must be an integer from 1".to_owned())),
            Some(id) if nodes().any(|(other, _)| *other == id) || used.contains(&id) => {
                return refused(format!("id {id} was used already; ids are never given to another node"));
            }
            Some(id) => id,
            None => highest.unwrap_or(0) + 1,
        };
        let clash = nodes().find(|(_, other)| other.peer_addr == member.peer_addr || other.url == member.url);
        if let Some((other, _)) = clash {
            return refused(format!(
                "node {other} has that peer address or URL; remove it first: agentpost cluster remove {other}"
            ));
        }
        let change = ChangeMembers::AddNodes(BTreeMap::from([(id, member.clone())]));
        self.propose(changing, before, change).await?;
        tracing::info!(node = id, peer = member.peer_addr, "node added as a learner");
        Ok((id, member))
    }

    async fn promote(&self, changing: Changing, before: &StoredMembership, id: u64) -> Changed {
        let Some(member) = before.membership().get_node(&id).cloned() else {
            return Err(ChangeError::NotFound(format!("node {id} is not a member")));
        };
        if before.membership().voter_ids().any(|voter| voter == id) {
            return Ok((id, member));
        }
        let lag = self.lag(id);
        if lag > LAG_MAX {
            return refused(format!("node {id} lags by {lag} entries"));
        }
        if !self.answers(id) {
            return refused(format!("node {id} does not answer"));
        }
        let change = ChangeMembers::AddVoterIds(BTreeSet::from([id]));
        self.propose(changing, before, change).await?;
        tracing::info!(node = id, "node is a voter");
        Ok((id, member))
    }

    async fn remove(&self, changing: Changing, before: &StoredMembership, used: &[u64], id: u64) -> Changed {
        let membership = before.membership();
        let Some(member) = membership.get_node(&id).cloned() else {
            return match used.contains(&id) {
                true => Ok((id, Member::default())),
                false => Err(ChangeError::NotFound(format!("node {id} was never a member"))),
            };
        };
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        let change = if voters.contains(&id) {
            self.check_rest(&voters, id)?;
            if id == self.shared.this_node.id() {
                return self.step_aside().await;
            }
            ChangeMembers::RemoveVoters(BTreeSet::from([id]))
        } else {
            ChangeMembers::RemoveNodes(BTreeSet::from([id]))
        };
        self.propose(changing, before, change).await?;
        tracing::info!(node = id, "node removed");
        Ok((id, member))
    }

    /// Checks that the voters without `id` still have a majority that answers.
    fn check_rest(&self, voters: &BTreeSet<u64>, id: u64) -> Result<(), ChangeError> {
        let rest: Vec<u64> = voters.iter().copied().filter(|voter| *voter != id).collect();
        if rest.is_empty() {
            return refused(format!("node {id} is the last voter"));
        }
        let silent: Vec<u64> = rest.iter().copied().filter(|voter| !self.answers(*voter)).collect();
        if (rest.len() - silent.len()) * 2 <= rest.len() {
            return refused(format!(
                "without node {id} there would be no majority: of the voters {rest:?} these do not answer: {silent:?}"
            ));
        }
        Ok(())
    }

    /// Hands leadership over, because a leader does not remove itself.
    async fn step_aside(&self) -> Changed {
        match self.shared.this_node.hand_over_to_furthest().await {
            Ok(to) => Err(ChangeError::NotReady(format!("node {to} leads now"))),
            Err(error) => refused(format!("this node leads and cannot hand over: {error}")),
        }
    }

    /// How many entries a node lags behind.
    fn lag(&self, id: u64) -> u64 {
        let metrics = self.shared.raft.metrics();
        let metrics = metrics.borrow_watched();
        let matched = metrics
            .replication
            .as_ref()
            .and_then(|nodes| nodes.get(&id).copied().flatten());
        let last = metrics.last_log_index.map_or(0, |last| last + 1);
        last.saturating_sub(matched.index().map_or(0, |matched| matched + 1))
    }

    /// Whether a node has answered recently.
    fn answers(&self, id: u64) -> bool {
        let metrics = self.shared.raft.metrics();
        let metrics = metrics.borrow_watched();
        let heard = metrics
            .heartbeat
            .as_ref()
            .and_then(|nodes| nodes.get(&id).copied().flatten());
        id == metrics.id || heard.is_some_and(|at| at.elapsed() <= SILENCE_MAX)
    }

    fn membership(&self) -> Arc<StoredMembership> {
        let metrics = self.shared.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        Arc::clone(&metrics.membership_config)
    }

    /// Proposes a change of the membership that was read. The change continues if its caller goes away: a caller must
    /// not leave a joint configuration behind by disconnecting.
    async fn propose(
        &self,
        changing: Changing,
        before: &StoredMembership,
        change: ChangeMembers<u64, Member>,
    ) -> Result<(), ChangeError> {
        let (raft, seen) = (self.shared.raft.clone(), *before.log_id());
        let running = tokio::spawn(async move {
            let _changing = changing;
            let unchanged = Precondition::LastMembershipLogId {
                last_membership_log_id: seen,
            };
            raft.change_membership_if(change, false, [unchanged]).await
        });
        let unknown = |why: String| Err(ChangeError::OutcomeUnknown(why));
        match timeout(CHANGE_DEADLINE, running).await {
            Ok(Ok(Ok(_))) => Ok(()),
            Ok(Ok(Err(error))) if *self.membership().log_id() != seen => unknown(error.to_string()),
            Ok(Ok(Err(error))) => Err(not_proposed(error)),
            Ok(Err(panic)) => unknown(panic.to_string()),
            Err(_) => unknown("a majority does not answer".to_owned()),
        }
    }

    /// Finishes a joint configuration that an earlier leader, or a refused change on this node, left behind.
    pub fn finisher(&self) -> Worker {
        let members = self.clone();
        Worker::new("finisher of membership changes", move |stop: CancellationToken| {
            let members = members.clone();
            async move {
                stop.run_until_cancelled(members.finish()).await;
            }
        })
    }

    async fn finish(&self) {
        let mut lead = Lead::new(&self.shared.raft);
        loop {
            if !self.is_joint() {
                match lead.changed().await {
                    Ok(()) => continue,
                    // Raft has ended, and so does the leadership.
                    Err(_) => return std::future::pending().await,
                }
            }
            // The holder of the lock is about to finish it. Waiting for the lock would make the next change fail.
            if let Ok(changing) = Arc::clone(&self.shared.changing).try_lock_owned() {
                self.finish_once(changing).await;
            }
            sleep(RETRY).await;
        }
    }

    async fn finish_once(&self, changing: Changing) {
        let before = self.membership();
        if !self.is_joint() {
            return;
        }
        // Adding nothing turns a joint configuration into its target configuration.
        let change = ChangeMembers::AddVoterIds(BTreeSet::new());
        match self.propose(changing, &before, change).await {
            Ok(()) => tracing::info!("an unfinished change of the members was completed"),
            Err(error) => {
                tracing::info!(%error, "an unfinished change of the members could not be completed; trying again")
            }
        }
    }

    /// Whether a change of voters is between its two entries.
    pub fn is_joint(&self) -> bool {
        self.membership().membership().get_joint_config().len() > 1
    }
}

/// Translates the error of a proposal that changed nothing.
fn not_proposed(error: RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> ChangeError {
    match error {
        RaftError::APIError(ClientWriteError::PreconditionFailed(_)) => {
            ChangeError::Conflict("another change of the members came first".to_owned())
        }
        RaftError::APIError(ClientWriteError::ChangeMembershipError(error)) => match error {
            ChangeMembershipError::InProgress(_) => {
                ChangeError::Conflict("another change of the members is under way".to_owned())
            }
            error => ChangeError::Invalid(error.to_string()),
        },
        RaftError::APIError(ClientWriteError::LogEntryDiscarded(error)) => {
            ChangeError::OutcomeUnknown(error.to_string())
        }
        RaftError::APIError(ClientWriteError::ForwardToLeader(error)) => ChangeError::NotReady(error.to_string()),
        RaftError::Fatal(error) => ChangeError::NotReady(error.to_string()),
    }
}

/// Checks that the peer address is `host:port` and that the URL has only a scheme, a host and a port.
fn check_addresses(member: &Member) -> Result<(), ChangeError> {
    let invalid = |what: &str| Err(ChangeError::Invalid(what.to_owned()));
    if member.peer_addr.len() > ADDRESS_BYTES_MAX || member.url.len() > ADDRESS_BYTES_MAX {
        return invalid("the addresses are too long");
    }
    let named = Url::parse(&format!("http://{}", member.peer_addr)).ok();
    let is_peer = named.is_some_and(|url| is_plain(&url)) && {
        let port = member.peer_addr.rsplit_once(':').map(|(_, port)| port);
        port.is_some_and(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
    };
    if !is_peer {
        return invalid("peer_addr must be HOST:PORT, such as 10.0.0.4:7800");
    }
    let url = Url::parse(&member.url).ok();
    let is_url = url.is_some_and(|url| matches!(url.scheme(), "http" | "https") && is_plain(&url));
    if !is_url || member.url.ends_with('/') {
        return invalid("url must be http://HOST:PORT, such as http://10.0.0.4:7700");
    }
    Ok(())
}

fn is_plain(url: &Url) -> bool {
    url.has_host()
        && url.path() == "/"
        && url.query().is_none()
        && url.fragment().is_none()
        && url.username().is_empty()
        && url.password().is_none()
}

pub fn change_to_proto(change: &Change) -> change_members_request::Change {
    match change {
        Change::Add { id, member } => change_members_request::Change::Add(member_to_proto(id.unwrap_or(0), member)),
        Change::Promote(id) => change_members_request::Change::Promote(*id),
        Change::Remove(id) => change_members_request::Change::Remove(*id),
    }
}

pub fn change_from_proto(change: &change_members_request::Change) -> Change {
    match change {
        change_members_request::Change::Add(member) => Change::Add {
            id: (member.id != 0).then_some(member.id),
            member: member_from_proto(member),
        },
        change_members_request::Change::Promote(id) => Change::Promote(*id),
        change_members_request::Change::Remove(id) => Change::Remove(*id),
    }
}

pub fn outcome_to_proto(changed: Changed) -> change_members_reply::Outcome {
    use change_members_reply::Outcome;
    match changed {
        Ok((id, member)) => Outcome::Done(member_to_proto(id, &member)),
        Err(ChangeError::Invalid(reason)) => Outcome::Invalid(Refusal { reason }),
        Err(ChangeError::NotFound(reason)) => Outcome::NotFound(Refusal { reason }),
        Err(ChangeError::Conflict(reason)) => Outcome::Conflict(Refusal { reason }),
        Err(ChangeError::NotReady(reason)) => Outcome::NotReady(Refusal { reason }),
        Err(ChangeError::OutcomeUnknown(reason)) => Outcome::OutcomeUnknown(Refusal { reason }),
    }
}

pub fn outcome_from_proto(outcome: Option<change_members_reply::Outcome>) -> Changed {
    use change_members_reply::Outcome;
    match outcome {
        Some(Outcome::Done(member)) => Ok((member.id, member_from_proto(&member))),
        Some(Outcome::Invalid(refusal)) => Err(ChangeError::Invalid(refusal.reason)),
        Some(Outcome::NotFound(refusal)) => Err(ChangeError::NotFound(refusal.reason)),
        Some(Outcome::Conflict(refusal)) => Err(ChangeError::Conflict(refusal.reason)),
        Some(Outcome::NotReady(refusal)) => Err(ChangeError::NotReady(refusal.reason)),
        Some(Outcome::OutcomeUnknown(refusal)) => Err(ChangeError::OutcomeUnknown(refusal.reason)),
        None => Err(ChangeError::OutcomeUnknown("an empty answer".to_owned())),
    }
}

fn member_to_proto(id: u64, member: &Member) -> peer::Member {
    peer::Member {
        id,
        peer_addr: member.peer_addr.clone(),
        url: member.url.clone(),
    }
}

fn member_from_proto(member: &peer::Member) -> Member {
    Member {
        peer_addr: member.peer_addr.clone(),
        url: member.url.clone(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_one_form() {
        let check = |peer: &str, url: &str| {
            check_addresses(&Member {
                peer_addr: peer.to_owned(),
                url: url.to_owned(),
            })
            .is_ok()
        };
        let (peer, url) = ("10.0.0.4:7800", "http://10.0.0.4:7700");
        for (peer, url) in [
            (peer, url),
            ("node-4.this_node:1", "https://mail.example.com"),
            ("[::1]:7800", "http://[::1]:7700"),
        ] {
            assert!(check(peer, url), "{peer} {url}");
        }
        let long = format!("{}:1", "x".repeat(ADDRESS_BYTES_MAX));
        for bad in [
            "",
            "h",
            "h:",
            ":1",
            "h:0",
            "h:70000",
            "h:1/x",
            "u@h:1",
            "h:1?x",
            "h 1:1",
            "http://h:1",
            &long,
        ] {
            assert!(!check(bad, url), "{bad}");
        }
        for bad in [
            "",
            "h:1",
            "ftp://h:1",
            "http://",
            "http://h/",
            "http://h/x",
            "http://h?x",
            "http://u@h",
            "http://h#x",
        ] {
            assert!(!check(peer, bad), "{bad}");
        }
    }

    #[test]
    fn a_change_travels() {
        let member = Member {
            peer_addr: "p:1".to_owned(),
            url: "http://u".to_owned(),
        };
        let add = |id| Change::Add {
            id,
            member: member.clone(),
        };
        for change in [add(None), add(Some(4)), Change::Promote(4), Change::Remove(4)] {
            assert_eq!(change_from_proto(&change_to_proto(&change)), change);
        }
    }
}
