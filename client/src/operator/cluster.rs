//! The cluster: its nodes, who leads, who joins and who leaves.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::api::admin::{self, Member, Transfer};
use crate::call::awaitable;
use crate::http::{Repeat, Request};
use crate::operator::Operator;
use crate::words::Role;

const MEMBERS: &str = "/admin/v1/cluster/members";
/// A leader that hands over, or is removed, first finishes its calls to webhooks: half a minute at most.
const CHANGE_PATIENCE: Duration = Duration::from_secs(35);

/// The nodes and where each stands, as the asked node knows.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Cluster {
    /// The cluster's id.
    pub cluster_id: String,
    /// The id of the node that leads, if one does.
    pub leader: Option<u64>,
    /// The Raft term.
    pub term: u64,
    /// The nodes, sorted by id.
    pub nodes: Vec<Node>,
}

/// A node. Fields that only the node itself can report are `None` if it is unreachable.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Node {
    /// Its id.
    pub id: u64,
    /// The URL at which clients reach it.
    pub url: String,
    /// The URL at which the other nodes reach it.
    pub peer_url: String,
    /// Its role.
    pub role: Option<Role>,
    /// The index of the last log entry that it has applied.
    pub applied_index: Option<u64>,
    /// Log entries behind the leader's last.
    pub lag: Option<u64>,
    /// A hash of its state, 16 hex digits: equal on all nodes whose `state_hash_index` is equal.
    pub state_hash: Option<String>,
    /// The index of the log entry after which `state_hash` was taken.
    pub state_hash_index: Option<u64>,
}

/// A node to be added. `.await` adds it as a learner: it gets the log and has no vote.
///
/// # Errors
/// [`Error::Refused`] with 409 if the id or an address is taken. [`Error::OutcomeUnknown`] is not repeated:
/// [`Operator::cluster`] tells.
#[derive(Clone)]
#[must_use = "the node is added when it is awaited"]
pub struct AddMember {
    operator: Operator,
    body: admin::AddMember,
}

impl Operator {
    /// The nodes and where each stands.
    ///
    /// # Errors
    /// See [`crate::http::Http::call`].
    pub async fn cluster(&self) -> Result<Cluster, Error> {
        self.post.http().call(Request::get("/admin/v1/cluster")).await
    }

    /// Hands leadership to another voter. The old leader first finishes its calls to webhooks, for half a minute at
    /// most.
    ///
    /// # Errors
    /// [`Error::Refused`] with 409 if the node cannot lead now.
    pub async fn transfer(&self, node: u64) -> Result<(), Error> {
        let request = Request::post("/admin/v1/cluster/transfer").json(&Transfer { node })?;
        self.post
            .http()
            .request(&request.patience(CHANGE_PATIENCE))
            .await
            .map(drop)
    }

    /// A new node: `peer_addr` is `host:port` where the other nodes reach it, `url` is where clients do.
    pub fn add_member(&self, peer_addr: impl Into<String>, url: impl Into<String>) -> AddMember {
        AddMember {
            operator: self.clone(),
            body: admin::AddMember {
                id: None,
                peer_addr: peer_addr.into(),
                url: url.into(),
            },
        }
    }

    /// Makes a learner a voter. Doing it again changes nothing.
    ///
    /// # Errors
    /// [`Error::Refused`] with 409 while the learner lags, and with 404 if there is none.
    pub async fn promote_member(&self, id: u64) -> Result<Member, Error> {
        let request = Request::post(format!("{MEMBERS}/{id}/promote")).repeat(Repeat::Safely);
        self.post.http().call(request.patience(CHANGE_PATIENCE)).await
    }

    /// Removes a node from the cluster for good: its id is never used again. A leader hands over first.
    ///
    /// # Errors
    /// [`Error::Refused`] with 404 if there is no such node, and with 409 if it cannot be removed now.
    pub async fn remove_member(&self, id: u64) -> Result<(), Error> {
        let request = Request::delete(format!("{MEMBERS}/{id}")).patience(CHANGE_PATIENCE);
        self.post.http().request(&request).await.map(drop)
    }

    /// Takes a snapshot on the asked node.
    ///
    /// # Errors
    /// See [`crate::http::Http::request`].
    pub async fn snapshot(&self) -> Result<(), Error> {
        let request = Request::post("/admin/v1/cluster/snapshot");
        self.post.http().request(&request).await.map(drop)
    }
}

impl AddMember {
    /// An id that no node ever had; by default the next such id.
    pub fn id(mut self, id: u64) -> Self {
        self.body.id = Some(id);
        self
    }

    async fn run(self) -> Result<Member, Error> {
        let request = Request::post(MEMBERS).json(&self.body)?;
        self.operator.post.http().call(request.patience(CHANGE_PATIENCE)).await
    }
}

awaitable!(AddMember => Member);
