//! The state that every handler shares: authorised reads, cached keys for writes, and proposals.

use std::sync::Arc;

use agentpost_proto::command::operation;
use agentpost_proto::operation::Op;
use agentpost_raft_store::core::kv::{Kv, Lookup};
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;

use super::body::{self, Charged};
use super::cursor::Cursors;
use super::input::Consistency;
use super::login_limits::LoginLimits;
use crate::base::lifetime::Lifetime;
use crate::cluster::leases::Leases;
use crate::cluster::status::ClusterHandle;
use crate::server::auth::{self, Caller, Remembered};
use crate::server::error::Result;
use crate::server::services::{self, Services};
use crate::shard::budget::{Payer, Permit};
use crate::shard::local_state::LocalState;
use crate::shard::wall_time::WallTime;
use crate::webhooks::egress::Egress;

/// The handles that only the HTTP handlers use.
pub struct HttpHandles {
    /// Counts reads of inboxes.
    pub leases: Leases,
    /// The operator's view of the cluster.
    pub cluster: ClusterHandle,
    /// Checks webhook URLs.
    pub egress: Egress,
    /// The shutdown of the process.
    pub lifetime: Lifetime,
    /// The URL at which a browser reaches this node.
    pub public_url: String,
}

/// The state that every handler shares.
pub struct AppState {
    pub(super) services: Services,
    pub(super) http: HttpHandles,
    pub(super) cursors: Cursors,
    remembered: Remembered,
    pub(super) logins: LoginLimits,
}

/// The extractor of the shared state.
pub(super) type App = State<Arc<AppState>>;

pub(super) struct Reading {
    pub(super) state: LocalState,
    pub(super) caller: Caller,
    pub(super) key_hash: [u8; 32],
    wall_time: WallTime,
}

impl Reading {
    /// Runs `read` on the pool of reads, on behalf of the caller's team. It is authorised against the state that it reads.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&dyn Kv) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        auth::read(&self.state, self.caller.team, self.key_hash, &self.wall_time, read).await
    }
}

impl AppState {
    /// Creates the state with an empty key cache, which drops revoked keys until the node stops.
    pub(super) fn new(services: Services, http: HttpHandles) -> Arc<Self> {
        let app = Arc::new(AppState {
            cursors: Cursors::new(services.secrets.cursor_key()),
            remembered: Remembered::default(),
            logins: LoginLimits::default(),
            services,
            http,
        });
        forget_on_revocation(&app);
        app
    }

    /// Authorises a write. A cached key suffices, because apply checks it again.
    pub(super) async fn writer(&self, headers: &HeaderMap) -> Result<Arc<Caller>> {
        let services = &self.services;
        let key_hash = services.secrets.key_hash(auth::presented(headers)?);
        let generation = match self.remembered.get(&key_hash, services.wall_time.now_ms()) {
            Ok(caller) => {
                self.admit(&caller)?;
                return Ok(caller);
            }
            Err(generation) => generation,
        };
        let (_, caller) = auth::authorize(
            &services.replica.reader,
            &services.wall_time,
            &key_hash,
            services.replica.reader.local(),
        )
        .await?;
        let caller = Arc::new(caller);
        self.remembered.insert(generation, key_hash, Arc::clone(&caller));
        self.admit(&caller)?;
        Ok(caller)
    }

    /// Authorises a read. What waits for a place on the pool of reads is authorised again, see [`Reading::read`].
    pub(super) async fn reader(&self, headers: &HeaderMap, consistency: Consistency) -> Result<Reading> {
        let services = &self.services;
        let key_hash = services.secrets.key_hash(auth::presented(headers)?);
        let state = match consistency {
            Consistency::Linearizable => services.replica.reader.linearizable().await,
            Consistency::Local => services.replica.reader.local_read(),
        };
        let (state, caller) = auth::authorize(&services.replica.reader, &services.wall_time, &key_hash, state?).await?;
        self.admit(&caller)?;
        Ok(Reading {
            state,
            caller,
            key_hash,
            wall_time: services.wall_time.clone(),
        })
    }

    /// Counts a request against the burst limit.
    fn admit(&self, caller: &Caller) -> Result<()> {
        self.services.bursts.request(caller, self.services.wall_time.clock())
    }

    /// Counts a message against the burst limit before it is proposed.
    pub(super) fn count_send(&self, caller: &Caller) -> Result<()> {
        self.services.bursts.send(caller, self.services.wall_time.clock())
    }

    /// The owner of the key in these headers; `None` without a valid key. A read error counts as no key.
    pub(super) fn known(&self, kv: &impl Lookup, headers: &HeaderMap) -> Option<Caller> {
        let services = &self.services;
        let key_hash = services.secrets.key_hash(auth::presented(headers).ok()?);
        match auth::find(kv, &key_hash, services.wall_time.now_ms()) {
            Ok(auth::Finding::Valid(caller)) => Some(caller),
            Ok(auth::Finding::Refused | auth::Finding::Unknown) | Err(_) => None,
        }
    }

    /// Reads a body of at most `bytes_max`, charged to the caller's team.
    pub(super) async fn read_body(
        &self,
        caller: &Caller,
        headers: &HeaderMap,
        body: Body,
        bytes_max: usize,
    ) -> Result<Charged> {
        let proposer = &self.services.replica.proposer;
        body::read(proposer, Payer::Team(caller.team), headers, body, bytes_max).await
    }

    /// Reads the body of a request that carries no message, charged to the caller's team.
    pub(super) async fn read_small(&self, caller: &Caller, headers: &HeaderMap, body: Body) -> Result<Charged> {
        let proposer = &self.services.replica.proposer;
        body::read_small(proposer, Payer::Team(caller.team), headers, body).await
    }

    /// Admits a request without a body that will propose an operation.
    pub(super) fn admit_bodiless(&self, caller: &Caller) -> Result<Permit> {
        Ok(self.services.replica.proposer.admit(Payer::Team(caller.team), 0)?)
    }

    /// Proposes an operation in the caller's name, charged to `permit`, and returns its answer, and counts what it sends.
    /// A rejection is an error.
    pub(super) async fn propose<O: Op>(&self, caller: &Caller, permit: &impl AsRef<Permit>, op: O) -> Result<O::Reply> {
        let op: operation::Op = op.into();
        if matches!(op, operation::Op::Send(_)) {
            self.count_send(caller)?;
        }
        services::answer_to::<O>(services::propose(&self.services, caller, permit.as_ref(), op).await?)
    }
}

/// Empties the key cache whenever a key is revoked.
fn forget_on_revocation(app: &Arc<AppState>) {
    let lifetime = &app.http.lifetime;
    let shutdown = lifetime.shutdown.clone();
    let mut revoked = app.services.replica.wakeups.keys();
    let weak = Arc::downgrade(app);
    let forgetting = async move {
        loop {
            tokio::select! {
                () = revoked.woken() => {}
                () = shutdown.cancelled() => return,
            }
            let Some(app) = weak.upgrade() else { return };
            app.remembered.forget();
        }
    };
    lifetime.tasks.spawn(lifetime.watch.may_end("revoked keys", forgetting));
}
