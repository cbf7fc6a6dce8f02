//! openraft's type parameters, and the conversions between its types and the protobuf messages on disk and between
//! nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use agentpost_proto::{command, peer, record};
use bytes::Bytes;

openraft::declare_raft_types!(
    /// The type parameters of openraft in this program.
    pub TypeConfig:
        D = Proposal,
        R = command::Reply,
        NodeId = u64,
        Node = Member,
);

/// The id of a log entry.
pub type LogId = openraft::type_config::alias::LogIdOf<TypeConfig>;
/// The id of a leader: its term and node id.
pub type LeaderId = openraft::type_config::alias::CommittedLeaderIdOf<TypeConfig>;
/// A vote.
pub type Vote = openraft::type_config::alias::VoteOf<TypeConfig>;
/// A log entry.
pub type Entry = openraft::type_config::alias::EntryOf<TypeConfig>;
/// A membership, with the log id of the entry that set it.
pub type StoredMembership = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;
/// The voters and learners of the cluster.
pub type Membership = openraft::Membership<u64, Member>;

/// An encoded [`command::Command`]. It is encoded once, and proposed, stored, sent and applied in this form.
#[derive(Clone)]
pub struct Proposal(pub Bytes, Charge);

/// What a proposal takes of the bounds of its node until its entry is durable here. Dropping the last clone ends it, too.
#[derive(Clone, Default)]
pub struct Charge(Option<Arc<dyn Send + Sync>>);

impl Charge {
    /// A charge that drops `charged` at its end.
    pub fn of(charged: impl Send + Sync + 'static) -> Self {
        Charge(Some(Arc::new(charged)))
    }
}

impl Proposal {
    /// A command that nobody counts.
    pub fn new(command: Bytes) -> Self {
        Self::charged(command, Charge::default())
    }

    /// A command whose charge ends when its entry is durable, or when it is dropped before.
    pub fn charged(command: Bytes, charge: Charge) -> Self {
        Proposal(command, charge)
    }
}

/// Takes the charges from proposals that are about to be appended. Drop them when the entries are durable.
pub(crate) fn take_charges(entries: &mut [Entry]) -> Vec<Charge> {
    let charges = entries.iter_mut().map(|entry| match &mut entry.payload {
        openraft::EntryPayload::Normal(proposal) => std::mem::take(&mut proposal.1),
        _ => Charge::default(),
    });
    charges.filter(|charge| charge.0.is_some()).collect()
}

impl PartialEq for Proposal {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for Proposal {}

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proposal({} bytes)", self.0.len())
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The addresses of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Member {
    /// The `host:port` of its peer port.
    pub peer_addr: String,
    /// The URL of its client port.
    pub url: String,
}

/// A required field is missing, because the bytes are damaged or of a foreign version.
#[derive(Debug, thiserror::Error)]
#[error("malformed {0}")]
pub struct Malformed(pub &'static str);

pub fn log_id_to_proto(id: &LogId) -> record::LogId {
    record::LogId {
        term: id.leader_id.term,
        node: id.leader_id.node_id,
        index: id.index,
    }
}

pub fn log_id_from_proto(id: &record::LogId) -> LogId {
    LogId {
        leader_id: LeaderId {
            term: id.term,
            node_id: id.node,
        },
        index: id.index,
    }
}

pub fn vote_to_proto(vote: &Vote) -> peer::Vote {
    peer::Vote {
        term: vote.leader_id.term,
        node: vote.leader_id.node_id,
        committed: vote.committed,
    }
}

pub fn vote_from_proto(vote: &peer::Vote) -> Vote {
    Vote {
        leader_id: LeaderId {
            term: vote.term,
            node_id: vote.node,
        },
        committed: vote.committed,
    }
}

pub fn membership_to_proto(membership: &Membership) -> peer::Membership {
    let configs = membership
        .get_joint_config()
        .iter()
        .map(|voters| peer::membership::Config {
            voters: voters.iter().copied().collect(),
        })
        .collect();
    let members = membership
        .nodes()
        .map(|(id, node)| peer::Member {
            id: *id,
            peer_addr: node.peer_addr.clone(),
            url: node.url.clone(),
        })
        .collect();
    peer::Membership { configs, members }
}

/// Fails when a voter has no address.
pub fn membership_from_proto(membership: &peer::Membership) -> Result<Membership, Malformed> {
    let configs = membership
        .configs
        .iter()
        .map(|c| c.voters.iter().copied().collect::<BTreeSet<u64>>())
        .collect();
    let nodes: BTreeMap<u64, Member> = membership
        .members
        .iter()
        .map(|m| {
            (
                m.id,
                Member {
                    peer_addr: m.peer_addr.clone(),
                    url: m.url.clone(),
                },
            )
        })
        .collect();
    Membership::new(configs, nodes).map_err(|_| Malformed("membership"))
}

pub fn entry_to_proto(entry: &Entry) -> peer::Entry {
    let (command, membership) = match &entry.payload {
        openraft::EntryPayload::Blank => (Bytes::new(), None),
        openraft::EntryPayload::Normal(proposal) => (proposal.0.clone(), None),
        openraft::EntryPayload::Membership(m) => (Bytes::new(), Some(membership_to_proto(m))),
    };
    peer::Entry {
        id: Some(log_id_to_proto(&entry.log_id)),
        command,
        membership,
    }
}

/// An entry without a command and without a membership is a blank entry, because a command is never empty.
pub fn entry_from_proto(entry: peer::Entry) -> Result<Entry, Malformed> {
    let log_id = log_id_from_proto(entry.id.as_ref().ok_or(Malformed("entry without a log id"))?);
    let payload = match entry.membership {
        Some(m) => openraft::EntryPayload::Membership(membership_from_proto(&m)?),
        None if entry.command.is_empty() => openraft::EntryPayload::Blank,
        None => openraft::EntryPayload::Normal(Proposal::new(entry.command)),
    };
    Ok(Entry { log_id, payload })
}
