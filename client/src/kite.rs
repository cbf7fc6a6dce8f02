//! The parts that only the Kite API has. [`Agentpost::kite`] opens them.
//!
//! Its sessions and methods go over a WebSocket, so they need the key's team: `KITE_TEAM_ID` or
//! [`crate::Builder::team`].
//!
//! ```no_run
//! # async fn example(post: agentpost::Agentpost) -> Result<(), agentpost::Error> {
//! let stats = post.kite().stats().await?;
//! println!("{:?}", stats.current_key_permissions);
//! # Ok(())
//! # }
//! ```

mod event;
mod rpc;
mod send;
mod session;

use std::sync::Arc;

use serde_json::Value;

use crate::api::kite::rpc::{CreateKeyParams, CreatedKey, KeyId, Recent, RecentParams};
use crate::call::awaitable;
use crate::retry::Repeat;
use crate::words::Permission;
use crate::{Agentpost, Error};

pub use event::{Event, Mail};
pub use rpc::{KeyList, ListedKey, RecentEvent, Stats};
pub use send::KiteDraft;
pub use session::{Notice, Session};

use rpc::Rpc;
use session::Options;

/// The door to the Kite API. A method goes to the node that answered the last one, so keep the door for several calls.
#[derive(Clone)]
pub struct Kite {
    post: Agentpost,
    /// `None` without a team.
    rpc: Option<Arc<Rpc>>,
}

impl Kite {
    pub(crate) fn new(post: Agentpost) -> Self {
        let rpc = post.team().map(|team| Arc::new(Rpc::of(post.socket(), team)));
        Kite { post, rpc }
    }

    /// A session with scopes of one's own: `*`, `source:…`, `type:…` or `agent_to:…`, of which any lets an event pass.
    /// It dials with the first [`Session::next`].
    ///
    /// `client_id` names a cursor that the server keeps. Without one a session with a single `agent_to` scope resumes
    /// from that agent's mailbox, and any other session shows what happens while it is connected.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the team is not known.
    pub fn session(
        &self,
        scopes: impl IntoIterator<Item = impl Into<String>>,
        client_id: Option<String>,
    ) -> Result<Session, Error> {
        let socket = self.post.socket();
        let options = Options {
            urls: socket.urls.clone(),
            token: socket.key.clone(),
            team_id: self.post.team().ok_or_else(no_team)?.to_owned(),
            scopes: scopes.into_iter().map(Into::into).collect(),
            client_id,
        };
        Ok(Session::new(options, socket.tls.clone()))
    }

    /// `events.recent`: the newest events that the key may see, the newest first.
    pub fn recent(&self) -> RecentQuery {
        RecentQuery {
            kite: self.clone(),
            params: RecentParams::default(),
        }
    }

    /// `dashboard.stats`: the team's numbers, and what the key may do.
    ///
    /// # Errors
    /// The errors of [`Kite::call`].
    pub async fn stats(&self) -> Result<Stats, Error> {
        self.rpc()?.stats().await
    }

    /// `keys.list`: the keys of the team, without their secrets.
    ///
    /// # Errors
    /// The errors of [`Kite::call`]; [`Error::Declined`] if the key is bound to an agent.
    pub async fn keys(&self) -> Result<KeyList, Error> {
        self.rpc()?.keys().await
    }

    /// `keys.create`: a new key of the team.
    pub fn create_key(&self) -> NewKey {
        NewKey {
            kite: self.clone(),
            params: CreateKeyParams::default(),
        }
    }

    /// `keys.revoke`. Open sessions of the key end. Not repeated when its outcome is unknown; [`Kite::keys`] tells.
    ///
    /// # Errors
    /// The errors of [`Kite::call`]; [`Error::Declined`] if the team has no such key, or the key lacks the permission `admin`.
    pub async fn revoke_key(&self, id: &str) -> Result<KeyId, Error> {
        self.rpc()?.revoke_key(id).await
    }

    /// Any method, with its parameters; returns the payload as it came.
    ///
    /// # Errors
    /// - [`Error::Session`]: the server does not accept the key or the team.
    /// - [`Error::Declined`]: the server answered that it does not carry the request out.
    /// - [`Error::Unavailable`] or [`Error::OutcomeUnknown`]: no node decided it.
    /// - [`Error::Invalid`]: the team is not known.
    pub async fn call(&self, method: &str, params: Value, repeat: Repeat) -> Result<Value, Error> {
        self.rpc()?.call(method, params, repeat).await
    }

    fn rpc(&self) -> Result<&Rpc, Error> {
        self.rpc.as_deref().ok_or_else(no_team)
    }
}

fn no_team() -> Error {
    Error::Invalid("a WebSocket session needs the key's team: set KITE_TEAM_ID or Builder::team".to_owned())
}

/// A query for recent events. `.await` returns them with [`Recent::next_before_seq`], which continues the list.
///
/// # Errors
/// The errors of [`Kite::call`].
#[derive(Clone)]
#[must_use = "the events are read when it is awaited"]
pub struct RecentQuery {
    kite: Kite,
    params: RecentParams,
}

impl RecentQuery {
    /// At most so many events, from 1 to 1,000; 100 by default.
    pub fn limit(mut self, events: u64) -> Self {
        self.params.limit = Some(events);
        self
    }

    /// Only events before this position.
    pub fn before(mut self, seq: u64) -> Self {
        self.params.before_seq = Some(seq);
        self
    }

    /// Only events of this thread.
    pub fn thread(mut self, thread: impl Into<String>) -> Self {
        self.params.thread_id = Some(thread.into());
        self
    }

    async fn run(self) -> Result<Recent<RecentEvent>, Error> {
        self.kite.rpc()?.recent(&self.params).await
    }
}

awaitable!(RecentQuery => Recent<RecentEvent>);

/// A key of the team to be made. `.await` makes it; the answer is the only place that ever shows its secret. Not
/// repeated when its outcome is unknown.
///
/// # Errors
/// The errors of [`Kite::call`]; [`Error::Declined`] if the key that asks lacks the permission `admin`.
#[derive(Clone)]
#[must_use = "the key is made when it is awaited"]
pub struct NewKey {
    kite: Kite,
    params: CreateKeyParams,
}

impl NewKey {
    /// A name for people.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.params.name = Some(name.into());
        self
    }

    /// The permissions of the key; [`Permission::Read`] by default.
    pub fn permissions(mut self, permissions: impl IntoIterator<Item = Permission>) -> Self {
        self.params.permissions = Some(permissions.into_iter().map(String::from).collect());
        self
    }

    /// The scopes that its sessions may use; `*` by default.
    pub fn scopes(mut self, scopes: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.params.scopes = Some(scopes.into_iter().map(Into::into).collect());
        self
    }

    /// When it ends, in RFC 3339.
    pub fn expires_at(mut self, time: impl Into<String>) -> Self {
        self.params.expires_at = Some(time.into());
        self
    }

    async fn run(self) -> Result<CreatedKey, Error> {
        self.kite.rpc()?.create_key(&self.params).await
    }
}

awaitable!(NewKey => CreatedKey);
