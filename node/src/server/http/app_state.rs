//! The state that every handler shares: authorised reads, cached keys for writes, and proposals.

use std::sync::Arc;

use agentpost_proto::command::operation;
use agentpost_proto::operation::Op;
use agentpost_raft_store::disk::state::StateDb;
use axum::extract::State;
use axum::http::HeaderMap;

use super::cursor::Cursors;
use super::input::Consistency;
use super::login_limits::LoginLimits;
use super::ratelimit;
use crate::base::lifetime::Lifetime;
use crate::cluster::leases::Leases;
use crate::cluster::status::ClusterHandle;
use crate::server::auth::{self, Caller, Remembered};
use crate::server::error::Result;
use crate::server::services::{self, Services};
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

/// An authorised read.
pub(super) struct Reading {
    pub(super) state: Arc<StateDb>,
    pub(super) caller: Caller,
    pub(super) key_hash: [u8; 32],
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
                self.admit(&caller, headers)?;
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
        self.admit(&caller, headers)?;
        Ok(caller)
    }

    /// Authorises a read against the same state that it reads.
    pub(super) async fn reader(&self, headers: &HeaderMap, consistency: Consistency) -> Result<Reading> {
        let services = &self.services;
        let key_hash = services.secrets.key_hash(auth::presented(headers)?);
        let state = match consistency {
            Consistency::Linearizable => services.replica.reader.linearizable().await,
            Consistency::Local => services.replica.reader.local_read(),
        };
        let state = state.inspect_err(|_| self.note_known(headers))?;
        let (state, caller) = auth::authorize(&services.replica.reader, &services.wall_time, &key_hash, state).await?;
        self.admit(&caller, headers)?;
        Ok(Reading {
            state,
            caller,
            key_hash,
        })
    }

    /// Notes the caller for the rate-limit headers and counts the request.
    fn admit(&self, caller: &Caller, headers: &HeaderMap) -> Result<()> {
        ratelimit::note_caller(caller, headers);
        let admitted = self.services.bursts.request(caller, self.services.wall_time.clock());
        admitted.inspect_err(|_| ratelimit::note_burst())
    }

    /// Counts a message against the burst limit before it is proposed.
    pub(super) fn count_send(&self, caller: &Caller) -> Result<()> {
        let counted = self.services.bursts.send(caller, self.services.wall_time.clock());
        counted.inspect_err(|_| ratelimit::note_burst())
    }

    /// Notes the caller where the request needs no authorisation, only to show the limits.
    pub(super) fn note_known(&self, headers: &HeaderMap) {
        let services = &self.services;
        let Ok(key) = auth::presented(headers) else { return };
        let (state, key_hash) = (services.replica.reader.local(), services.secrets.key_hash(key));
        if let Ok(auth::Finding::Valid(caller)) = auth::find(&*state, &key_hash, services.wall_time.now_ms()) {
            ratelimit::note_caller(&caller, headers);
        }
    }

    /// Proposes an operation in the caller's name and returns its answer, and counts what it sends. A rejection is an
    /// error.
    pub(super) async fn propose<O: Op>(&self, caller: &Caller, op: O) -> Result<O::Reply> {
        let op: operation::Op = op.into();
        if matches!(op, operation::Op::Send(_)) {
            self.count_send(caller)?;
        }
        let sending = ratelimit::Sending::of(&op);
        let reply = services::propose(&self.services, caller, op).await?;
        if let Some(reply) = &reply.reply {
            sending.note_counted(reply);
        }
        services::answer_to::<O>(reply)
    }
}

/// Empties the key cache whenever a key is revoked.
fn forget_on_revocation(app: &Arc<AppState>) {
    let shutdown = app.http.lifetime.shutdown.clone();
    let mut revoked = app.services.replica.wakeups.keys();
    let weak = Arc::downgrade(app);
    app.http.lifetime.tasks.spawn(async move {
        loop {
            tokio::select! {
                () = revoked.woken() => {}
                () = shutdown.cancelled() => return,
            }
            let Some(app) = weak.upgrade() else { return };
            app.remembered.forget();
        }
    });
}
