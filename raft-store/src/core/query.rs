//! Queries read the state. They take any [`Kv`](crate::core::kv::Kv): the view in `apply`, or the database on a node.

pub mod agent;
pub mod delivery;
pub mod due;
pub mod inbox;
pub mod key;
pub mod login;
pub mod queue;
pub mod receipt;
pub mod team;
pub mod topic;

use agentpost_proto::record::{Applied, NodeIds};

use super::keys;
use super::kv::{Fatal, Lookup};
use super::view::load;

/// The id of every node that was ever a member.
pub fn node_ids(kv: &(impl Lookup + ?Sized)) -> Result<Vec<u64>, Fatal> {
    let ids: Option<NodeIds> = load(kv, &keys::node_ids())?;
    Ok(ids.unwrap_or_default().used)
}

/// The applied row: the last applied entry, the two times and the state hash.
pub fn applied(kv: &(impl Lookup + ?Sized)) -> Result<Applied, Fatal> {
    Ok(load(kv, &keys::applied())?.unwrap_or_default())
}
