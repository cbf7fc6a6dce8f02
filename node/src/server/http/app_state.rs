//! What every handler works with: authorised reads, remembered keys of writes, and proposals.

use std::sync::Arc;

use agentpost_proto::command::{operation, reply};
use agentpost_raft_store::db::StateDb;
use axum::extract::State;
use axum::http::HeaderMap;

use super::cursor::Cursors;
use super::input::Consistency;
use super::login::limits::Limits;
use super::ratelimit;
use crate::server::auth::{self, Caller, Remembered};
use crate::server::error::Result;
use crate::server::services::{Services, carry_out};

/// What every handler works with.
pub struct Doors {
    pub(super) services: Services,
    pub(super) cursors: Cursors,
    remembered: Remembered,
    pub(super) logins: Limits,
}

/// The extractor of the shared state.
pub(super) type Door = State<Arc<Doors>>;

/// An authorised read.
pub(super) struct Reading {
    pub(super) state: Arc<StateDb>,
    pub(super) caller: Caller,
    pub(super) key_hash: [u8; 32],
}

impl Doors {
    /// Handlers use `services`. Forgets remembered keys until the node stops.
    pub(super) fn new(services: Services) -> Arc<Self> {
        let doors = Arc::new(Doors {
            cursors: Cursors::new(services.secrets.cursor_key()),
            remembered: Remembered::default(),
            logins: Limits::default(),
            services,
        });
        forget_on_revocation(&doors);
        doors
    }

    /// The caller of a write. A remembered key is good enough: apply checks it again.
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
            &services.reader,
            &services.wall_time,
            &key_hash,
            services.reader.local(),
        )
        .await?;
        let caller = Arc::new(caller);
        self.remembered.insert(generation, key_hash, Arc::clone(&caller));
        self.admit(&caller, headers)?;
        Ok(caller)
    }

    /// The caller of a read, authorised against the very state that it reads.
    pub(super) async fn reader(&self, headers: &HeaderMap, consistency: Consistency) -> Result<Reading> {
        let services = &self.services;
        let key_hash = services.secrets.key_hash(auth::presented(headers)?);
        let state = match consistency {
            Consistency::Linearizable => services.reader.linearizable().await,
            Consistency::Local => services.reader.local_read(),
        };
        let state = state.inspect_err(|_| self.note_known(headers))?;
        let (state, caller) = auth::authorize(&services.reader, &services.wall_time, &key_hash, state).await?;
        self.admit(&caller, headers)?;
        Ok(Reading {
            state,
            caller,
            key_hash,
        })
    }

    /// Notes who calls, and counts the request.
    fn admit(&self, caller: &Caller, headers: &HeaderMap) -> Result<()> {
        ratelimit::note_caller(caller, headers);
        let admitted = self.services.bursts.request(caller, &self.services.clock);
        admitted.inspect_err(|_| ratelimit::note_burst())
    }

    /// Counts a message before it is proposed.
    pub(super) fn count_send(&self, caller: &Caller) -> Result<()> {
        let counted = self.services.bursts.send(caller, &self.services.clock);
        counted.inspect_err(|_| ratelimit::note_burst())
    }

    /// Notes who calls, as far as this node knows, where nobody is authorised: only to show their limits.
    pub(super) fn note_known(&self, headers: &HeaderMap) {
        let services = &self.services;
        let Ok(key) = auth::presented(headers) else { return };
        let (state, key_hash) = (services.reader.local(), services.secrets.key_hash(key));
        if let Ok(auth::Finding::Valid(caller)) = auth::find(&*state, &key_hash, services.wall_time.now_ms()) {
            ratelimit::note_caller(&caller, headers);
        }
    }

    /// The same as [`carry_out`], counting what a request sends.
    pub(super) async fn propose(&self, caller: &Caller, op: operation::Op) -> Result<reply::Reply> {
        if matches!(op, operation::Op::Send(_)) {
            self.count_send(caller)?;
        }
        let sending = ratelimit::Sending::of(&op);
        let reply = carry_out(&self.services, caller, op).await?;
        sending.note_counted(&reply);
        Ok(reply)
    }
}

/// Empties the remembered keys whenever some key was revoked.
fn forget_on_revocation(doors: &Arc<Doors>) {
    let shutdown = doors.services.cluster.shutdown.clone();
    let mut revoked = doors.services.wakeups.keys();
    let weak = Arc::downgrade(doors);
    doors.services.cluster.tasks.spawn(async move {
        loop {
            tokio::select! {
                () = revoked.woken() => {}
                () = shutdown.cancelled() => return,
            }
            let Some(doors) = weak.upgrade() else { return };
            doors.remembered.forget();
        }
    });
}
