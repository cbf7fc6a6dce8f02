//! Burst limits: what one API key may ask of this node within a short time. Off unless `[limits]` sets them.
//!
//! They protect a node from a runaway client, so each node counts in its own memory: a key that uses three nodes has
//! three times the limit, and a restart resets the counts. Exact limits (daily and monthly quotas) are counted by
//! `apply`.
//!
//! A key's window begins with its first request. The previous window counts in proportion to its overlap with the last
//! `burst_window_s`, as if its requests had been spread evenly: two numbers per key instead of a list of arrivals.
//! [`Windows`] does this for any kind of key; [`Spacing`] enforces a minimum distance between two events.
//!
//! This is our own code because the crates for it use token buckets, which allow nearly twice the limit in the first
//! window, and need clocks and upkeep of their own.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use agentpost_proto::id::{KeyId, TeamId};
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use super::auth::Caller;
use super::error::ApiError;
use crate::base::clock::Clock;
use crate::base::config::Limits;

/// Upper bound on the keys counted at a time. Beyond it the idle ones are dropped, and all if that does not suffice.
const KEYS_MAX: usize = 65_536;

/// The burst limits of a node.
pub struct Bursts {
    sends: Option<Windows<KeyId>>,
    requests: Option<Windows<KeyId>>,
}

impl Bursts {
    /// The limits of the configuration.
    pub fn new(limits: &Limits) -> Self {
        let window = Duration::from_secs(limits.burst_window_s.into());
        let windows = |limit: u32| (limit != 0).then(|| Windows::new(limit, window));
        Bursts {
            sends: windows(limits.burst_sends),
            requests: windows(limits.burst_requests),
        }
    }

    /// Counts a request of an authorised caller.
    pub fn request(&self, caller: &Caller, clock: &Clock) -> Result<(), ApiError> {
        take(self.requests.as_ref(), caller, clock, "requests")
    }

    /// Counts a message of a caller before it is sent.
    pub fn send(&self, caller: &Caller, clock: &Clock) -> Result<(), ApiError> {
        take(self.sends.as_ref(), caller, clock, "messages")
    }
}

/// Operators are never counted, because they must be able to raise a limit.
fn take(windows: Option<&Windows<KeyId>>, caller: &Caller, clock: &Clock, what: &str) -> Result<(), ApiError> {
    let Some(windows) = windows.filter(|_| caller.team != TeamId::SYSTEM) else {
        return Ok(());
    };
    windows.take(caller.key_id, clock.now()).map_err(|wait| {
        let (limit, seconds) = (windows.limit, windows.length.as_secs());
        let message = format!("more than {limit} {what} in {seconds} s with this API key on this node");
        ApiError::burst(message, wait)
    })
}

/// Counts per key against one limit.
pub struct Windows<K> {
    limit: u32,
    length: Duration,
    keys: Mutex<HashMap<K, Window>>,
}

/// One key's current window and the one before it.
#[derive(Clone, Copy)]
struct Window {
    began: Instant,
    before: u32,
    used: u32,
}

impl<K: Copy + Eq + Hash> Windows<K> {
    /// At most `limit` in any interval of `length`.
    pub fn new(limit: u32, length: Duration) -> Self {
        Windows {
            limit,
            length,
            keys: Mutex::default(),
        }
    }

    /// The limit.
    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// Counts one event, or returns how long to wait. A refused event is not counted.
    pub fn take(&self, key: K, now: Instant) -> Result<(), Duration> {
        let mut keys = lock(&self.keys);
        make_room(&mut keys, &key, |window| {
            now.duration_since(window.began) < 2 * self.length
        });
        let window = keys.entry(key).or_insert(Window {
            began: now,
            before: 0,
            used: 0,
        });
        window.turn(now, self.length);
        match window.wait(now, self.length, self.limit) {
            Duration::ZERO => {
                window.used += 1;
                Ok(())
            }
            wait => Err(wait),
        }
    }

    /// Removes an event that was counted provisionally.
    pub fn give_back(&self, key: K) {
        if let Some(window) = lock(&self.keys).get_mut(&key) {
            window.used = window.used.saturating_sub(1);
        }
    }
}

/// The time of each key's last accepted event.
pub struct Spacing<K> {
    apart: Duration,
    last: Mutex<HashMap<K, Instant>>,
}

impl<K: Copy + Eq + Hash> Spacing<K> {
    /// Accepts two events of one key only if they are at least `apart`.
    pub fn new(apart: Duration) -> Self {
        Spacing {
            apart,
            last: Mutex::default(),
        }
    }

    /// Whether the event is accepted. A refused event does not extend the wait.
    pub fn take(&self, key: K, now: Instant) -> bool {
        let recent = |last: &Instant| now.duration_since(*last) < self.apart;
        let mut known = lock(&self.last);
        if known.get(&key).is_some_and(recent) {
            return false;
        }
        make_room(&mut known, &key, recent);
        known.insert(key, now);
        true
    }
}

fn lock<T>(known: &Mutex<T>) -> MutexGuard<'_, T> {
    known.lock()
}

/// Drops idle keys if there is no room for a new one.
fn make_room<K: Eq + Hash, V>(known: &mut HashMap<K, V>, key: &K, busy: impl Fn(&V) -> bool) {
    if known.len() < KEYS_MAX || known.contains_key(key) {
        return;
    }
    known.retain(|_, value| busy(value));
    // Down to half, so that not every new key scans all of them.
    if known.len() > KEYS_MAX / 2 {
        known.clear();
    }
}

impl Window {
    /// Starts the next window if the current one is over, and a fresh one after a pause.
    fn turn(&mut self, now: Instant, length: Duration) {
        let age = now.duration_since(self.began);
        if age >= 2 * length {
            *self = Window {
                began: now,
                before: 0,
                used: 0,
            };
        } else if age >= length {
            *self = Window {
                began: self.began + length,
                before: self.used,
                used: 0,
            };
        }
    }

    /// How long until one more event is accepted.
    fn wait(&self, now: Instant, length: Duration, limit: u32) -> Duration {
        let age = now.duration_since(self.began);
        // The moment at which so much of the previous window has passed that one event fits.
        let fits = |before: u32, used: u32| match before.saturating_sub(limit - 1 - used) {
            0 => Duration::ZERO,
            too_many => length.mul_f64(f64::from(too_many) / f64::from(before)),
        };
        let at = if self.used < limit {
            fits(self.before, self.used)
        } else {
            length + fits(self.used, 0)
        };
        at.saturating_sub(age)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn key(n: u32) -> KeyId {
        let mut id = KeyId([0; 16]);
        id.0[..4].copy_from_slice(&n.to_be_bytes());
        id
    }

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn a_window_holds_its_limit_and_each_key_has_its_own() {
        let (windows, start) = (Windows::new(20, MINUTE), Instant::now());
        for n in 0..20 {
            windows.take(key(1), start + seconds(n)).unwrap();
        }
        let wait = windows.take(key(1), start + seconds(59)).unwrap_err();
        // The next window accepts an event when a twentieth of it has passed.
        assert_eq!(wait, seconds(4));
        windows.take(key(2), start + seconds(59)).unwrap();
        // Refused events did not count.
        assert_eq!(windows.take(key(1), start + seconds(62)).unwrap_err(), seconds(1));
        windows.take(key(1), start + seconds(63)).unwrap();
        assert_eq!(windows.take(key(1), start + seconds(63)).unwrap_err(), seconds(3));
    }

    #[test]
    fn a_caller_that_waits_as_told_is_admitted() {
        let (windows, mut now) = (Windows::new(7, MINUTE), Instant::now());
        let mut passed = Vec::new();
        for step in 0..2_000_u64 {
            match windows.take(key(1), now) {
                Ok(()) => passed.push(now),
                Err(wait) => {
                    assert!(wait <= 2 * MINUTE);
                    let early = Duration::from_millis(1).min(wait / 2);
                    assert!(windows.take(key(1), now + wait - early).is_err(), "step {step}");
                    now += wait + Duration::from_micros(1);
                    windows.take(key(1), now).unwrap();
                    passed.push(now);
                }
            }
            now += Duration::from_millis(step * 37 % 900);
        }
        // Even spreading is an assumption: the bound is just under twice the limit in any minute, and the limit on
        // average.
        let most = passed
            .iter()
            .map(|at| passed.iter().filter(|p| **p >= *at && **p < *at + MINUTE).count());
        assert!(most.max().unwrap() < 14);
        let minutes = passed.last().unwrap().duration_since(passed[0]).as_secs_f64() / 60.0;
        assert!((passed.len() as f64) <= 7.0 * (minutes + 1.0));
        assert!((passed.len() as f64) > 6.0 * minutes);
    }

    #[test]
    fn refunded_requests_do_not_count() {
        let (windows, start) = (Windows::new(2, MINUTE), Instant::now());
        for _ in 0..5 {
            windows.take(key(1), start).unwrap();
            windows.give_back(key(1));
        }
        windows.take(key(1), start).unwrap();
        windows.take(key(1), start).unwrap();
        windows.take(key(1), start).unwrap_err();
        // This also holds when its window is over, or when nothing was counted.
        assert_eq!(windows.take(key(1), start + MINUTE).unwrap_err(), seconds(30));
        windows.give_back(key(1));
        windows.give_back(key(2));
        windows.take(key(2), start).unwrap();
    }

    #[test]
    fn spacing_keeps_times_apart_and_punishes_nobody() {
        let (spacing, start) = (Spacing::new(seconds(4)), Instant::now());
        let took = [0, 1, 3, 4, 5, 7, 8, 20].map(|at| spacing.take(key(1), start + seconds(at)));
        assert_eq!(took, [true, false, false, true, false, false, true, true]);
        assert!(spacing.take(key(2), start + seconds(20)));
        (0..2 * KEYS_MAX as u32).for_each(|n| {
            spacing.take(key(n), start + seconds(21));
            assert!(spacing.last.lock().len() <= KEYS_MAX);
        });
    }

    #[test]
    fn after_a_pause_all_is_there_again() {
        let (windows, start) = (Windows::new(1, seconds(1)), Instant::now());
        windows.take(key(1), start).unwrap();
        assert_eq!(windows.take(key(1), start).unwrap_err(), seconds(2));
        windows.take(key(1), start + seconds(2)).unwrap();
        windows.take(key(1), start + seconds(7)).unwrap();
    }

    #[test]
    fn memory_is_bounded_and_the_busy_are_remembered() {
        let (windows, start) = (Windows::new(1, MINUTE), Instant::now());
        let count = || windows.keys.lock().len();
        let idle = KEYS_MAX as u32 - 10;
        (0..idle).for_each(|n| windows.take(key(n), start).unwrap());
        let later = start + 2 * MINUTE;
        (idle..idle + 11).for_each(|n| windows.take(key(n), later).unwrap());
        assert_eq!(count(), 11);
        assert!(windows.take(key(idle), later).is_err());
        // All keys are busy: whichever are dropped, the table does not grow.
        (0..3 * KEYS_MAX as u32).for_each(|n| {
            let _ = windows.take(key(n), later);
            assert!(count() <= KEYS_MAX);
        });
    }
}
