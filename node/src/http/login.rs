//! Device login: a machine without a key shows a code, a person with an administrator's key lets it in.
//!
//! - [`device`]: `/api/auth/device-code` and `/api/auth/device-token`, without a key, as Kite's command line asks;
//! - [`decide`]: `/admin/v1/login/`, for whoever lets devices in; `/activate` and `agentpost login` use it.
//!
//! What may be tried without a key, or guessed with one, is limited on each node for itself. That costs a guesser
//! nothing but time, of which a code gives ten minutes: 20^8 user codes, 10 tries a minute and key on each node.

mod decide;
mod device;

use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use agentpost_proto::id::KeyId;
use agentpost_proto::limits;
use axum::Router;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use axum::routing::post;
use tokio::time::Instant;

use super::Doors;
use super::auth::Caller;
use super::burst::{Spacing, Windows};
use super::error::{ApiError, Result};
use super::serve::Origin;

/// The routes.
pub(super) fn routes() -> Router<Arc<Doors>> {
    Router::new()
        .route("/api/auth/device-code", post(device::device_code))
        .route("/api/auth/device-token", post(device::device_token))
        .route("/admin/v1/login/lookup", post(decide::lookup))
        .route("/admin/v1/login/approve", post(decide::approve))
        .route("/admin/v1/login/deny", post(decide::deny))
}

/// What this node lets be tried.
pub(super) struct Limits {
    codes: Windows<Origin>,
    misses: Windows<Origin>,
    guesses: Windows<KeyId>,
    /// By the keyed hash of a device code.
    polls: Spacing<[u8; 32]>,
}

impl Default for Limits {
    fn default() -> Self {
        const MINUTE: Duration = Duration::from_secs(60);
        Limits {
            codes: Windows::new(limits::LOGIN_CODES_PER_MINUTE, MINUTE),
            misses: Windows::new(limits::LOGIN_MISSES_PER_MINUTE, MINUTE),
            guesses: Windows::new(limits::USER_CODE_MISSES_PER_MINUTE, MINUTE),
            // A second less than devices are told: their clocks and the way to here are not exact.
            polls: Spacing::new(Duration::from_secs(limits::LOGIN_INTERVAL_S - 1)),
        }
    }
}

impl Limits {
    /// Counts a device code that is about to be made.
    fn code(&self, origin: Origin, now: Instant) -> Result<()> {
        take(&self.codes, origin, now, "device codes")
    }

    /// Counts a device code that nobody here knows.
    fn miss(&self, origin: Origin, now: Instant) -> Result<()> {
        take(&self.misses, origin, now, "unknown device codes")
    }

    /// Does something with a user code, which counts unless the code exists: counted first, so that many at a time
    /// try no more than one after the other.
    async fn guess<T>(&self, caller: &Caller, now: Instant, attempt: impl Future<Output = Result<T>>) -> Result<T> {
        take(&self.guesses, caller.key_id, now, "unknown codes with this API key")?;
        let result = attempt.await;
        if !matches!(&result, Err(error) if error.status == 404) {
            self.guesses.give_back(caller.key_id);
        }
        result
    }
}

fn take<K: Copy + Eq + Hash>(windows: &Windows<K>, key: K, now: Instant, what: &str) -> Result<()> {
    windows.take(key, now).map_err(|wait| {
        let limit = windows.limit();
        ApiError::burst(format!("more than {limit} {what} in a minute, on this node"), wait)
    })
}

/// Answers of a login are for one reader, once.
fn for_once(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
