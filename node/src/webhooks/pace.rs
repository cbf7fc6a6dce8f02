//! Limits the rate of calls to one public host, over all teams: nobody can aim a cluster at a victim by registering
//! many URLs there.
//!
//! A host gets at most [`HOST_CALLS_PER_S_MAX`] calls in any second. A call beyond that waits for at most [`WAIT_MAX`];
//! a call that would wait longer is put back and keeps its retry step. Hosts within `webhooks.allow_networks` are not
//! limited, from the first response that showed their address on. The leader counts the calls of all nodes, before it
//! lets them begin.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Upper bound on the calls in any second to one host outside `webhooks.allow_networks`, so that nobody can aim a
/// cluster at a victim.
const HOST_CALLS_PER_S_MAX: u32 = 50;
/// The calls that may follow each other without a pause; they count among [`HOST_CALLS_PER_S_MAX`].
const BURST: u32 = 8;
const DISTANCE: Duration = Duration::from_nanos(1_000_000_000 / (HOST_CALLS_PER_S_MAX - BURST) as u64);
/// Upper bound on the wait of a call, which holds a slot of its team and uses up its time limit while it waits.
pub const WAIT_MAX: Duration = Duration::from_millis(1_500);
/// Upper bound on the hosts that are tracked.
const HOSTS_MAX: usize = 4_096;

/// The recently called hosts.
#[derive(Default)]
pub struct Pace {
    hosts: Mutex<HashMap<String, Host>>,
}

struct Host {
    /// The time from which the next call need not wait (the theoretical arrival time of GCRA).
    paid: Instant,
    exempt: bool,
}

impl Pace {
    /// How long the next call to `host` must wait. `None` if it would wait too long; then the call does not count.
    pub fn wait(&self, host: &str, now: Instant) -> Option<Duration> {
        let mut hosts = self.hosts.lock();
        let known = match hosts.get_mut(host) {
            Some(known) => known,
            None => {
                if hosts.len() >= HOSTS_MAX {
                    // At most as many hosts as calls in flight are kept.
                    hosts.retain(|_, host| host.paid > now);
                }
                let fresh = Host {
                    paid: now,
                    exempt: false,
                };
                hosts.entry(host.to_owned()).or_insert(fresh)
            }
        };
        if known.exempt {
            return Some(Duration::ZERO);
        }
        let begin = known.paid.max(now);
        let wait = (begin - now).saturating_sub(DISTANCE * (BURST - 1));
        if wait > WAIT_MAX {
            return None;
        }
        known.paid = begin + DISTANCE;
        Some(wait)
    }

    /// Records whether the host is within `webhooks.allow_networks`.
    pub fn note(&self, host: &str, exempt: bool) {
        let mut hosts = self.hosts.lock();
        if let Some(known) = hosts.get_mut(host) {
            known.exempt = exempt;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_second_has_more_calls_than_allowed_and_no_time_is_wasted(gaps in prop::collection::vec(0u64..60, 1..400)) {
            let (pace, mut now, mut starts) = (Pace::default(), Instant::now(), Vec::new());
            for gap in gaps {
                now += Duration::from_millis(gap);
                match pace.wait("host", now) {
                    Some(wait) => starts.push(now + wait),
                    // Refused only if the queue fills the whole wait.
                    None => prop_assert!(starts.iter().filter(|at| **at > now).count() >= 60),
                }
            }
            for first in &starts {
                let within = starts.iter().filter(|at| *at >= first && **at < *first + Duration::from_secs(1));
                prop_assert!(within.count() <= HOST_CALLS_PER_S_MAX as usize);
            }
        }
    }

    #[test]
    fn hosts_do_not_wait_for_each_other_and_open_networks_not_at_all() {
        let (pace, now) = (Pace::default(), Instant::now());
        while pace.wait("busy", now).is_some() {}
        assert_eq!(pace.wait("calm", now), Some(Duration::ZERO));
        pace.note("busy", true);
        assert_eq!(pace.wait("busy", now), Some(Duration::ZERO));
        pace.note("busy", false);
        assert_eq!(pace.wait("busy", now), None);
    }

    #[test]
    fn memory_of_hosts_is_bounded() {
        let (pace, now) = (Pace::default(), Instant::now());
        while pace.wait("busy", now).is_some() {}
        for i in 0..3 * HOSTS_MAX {
            pace.wait(&format!("host-{i}"), now + Duration::from_millis(i as u64 / 10));
        }
        assert!(pace.hosts.lock().len() <= HOSTS_MAX);
        assert_eq!(pace.wait("busy", now), None);
    }
}
