//! Limits of this node on device logins: requests without a key, and guesses of codes.

use std::hash::Hash;
use std::time::Duration;

use agentpost_proto::id::KeyId;
use tokio::time::Instant;

use super::serve::Origin;
use crate::server::auth::Caller;
use crate::server::burst::{Spacing, Windows};
use crate::server::error::{ApiError, Result};

/// Seconds between two polls of a device. A device that polls faster is told to slow down.
pub const INTERVAL_S: u64 = 5;
/// Device codes that one address gets from one node in a minute. Further requests are answered with 429.
pub const CODES_PER_MINUTE: u32 = 30;
/// Unknown device codes that one address may try on one node in a minute. Further polls are answered with 429, without
/// a request to the leader.
pub const DEVICE_CODE_MISSES_PER_MINUTE: u32 = 60;
/// Unknown user codes that one key may try on one node in a minute. Further tries are answered with 429.
pub const USER_CODE_MISSES_PER_MINUTE: u32 = 10;

/// The counters of these limits.
pub struct LoginLimits {
    codes: Windows<Origin>,
    pub(super) misses: Windows<Origin>,
    guesses: Windows<KeyId>,
    /// By the keyed hash of a device code.
    pub(super) polls: Spacing<[u8; 32]>,
}

impl Default for LoginLimits {
    fn default() -> Self {
        const MINUTE: Duration = Duration::from_secs(60);
        LoginLimits {
            codes: Windows::new(CODES_PER_MINUTE, MINUTE),
            misses: Windows::new(DEVICE_CODE_MISSES_PER_MINUTE, MINUTE),
            guesses: Windows::new(USER_CODE_MISSES_PER_MINUTE, MINUTE),
            // One second less than devices are told to wait, because their clocks and the network are not exact.
            polls: Spacing::new(Duration::from_secs(INTERVAL_S - 1)),
        }
    }
}

impl LoginLimits {
    /// Counts a device code before it is created.
    pub(super) fn code(&self, origin: Origin, now: Instant) -> Result<()> {
        take(&self.codes, origin, now, "device codes")
    }

    /// Counts an unknown device code.
    pub(super) fn miss(&self, origin: Origin, now: Instant) -> Result<()> {
        take(&self.misses, origin, now, "unknown device codes")
    }

    /// Runs an action with a user code and counts a guess unless the code exists. The guess is counted before the
    /// action, so that parallel requests get no more tries than sequential ones.
    pub(super) async fn guess<T>(
        &self,
        caller: &Caller,
        now: Instant,
        attempt: impl Future<Output = Result<T>>,
    ) -> Result<T> {
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
