//! Wall time and randomness: the only place that reads either from the machine.
//!
//! Dates and stamps use [`Clock::wall_ms`]. Deadlines and elapsed times use monotonic time, which a jump of the wall
//! clock does not change: tokio's `Instant::now`, directly or through [`Clock::now`].

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use agentpost_proto::id::MessageId;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;

/// This node's clock. Clones are cheap and share the shift.
#[derive(Clone, Debug)]
pub struct Clock {
    /// A wall time and the monotonic instant it belongs to; `None` reads the machine's clock. Tests set it.
    anchor: Option<(u64, Instant)>,
    /// Milliseconds added to wall time, shared by all clones. Only tests change it.
    shifted_ms: Arc<AtomicI64>,
}

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Clock {
            anchor: None,
            shifted_ms: Arc::default(),
        }
    }

    /// A clock whose wall time starts at `unix_ms` and advances with tokio's clock.
    pub fn starting_at(unix_ms: u64) -> Self {
        Clock {
            anchor: Some((unix_ms, Instant::now())),
            shifted_ms: Arc::default(),
        }
    }

    /// Moves the wall time of this clock and all its clones; monotonic time is not changed. For tests.
    pub fn shift(&self, ms: i64) {
        self.shifted_ms.fetch_add(ms, Ordering::Relaxed);
    }

    /// Wall time in Unix milliseconds.
    #[allow(clippy::disallowed_methods, reason = "this is where the wall clock is read")]
    pub fn wall_ms(&self) -> u64 {
        let unshifted_ms = match self.anchor {
            Some((start_ms, at)) => start_ms + at.elapsed().as_millis() as u64,
            None => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |d| d.as_millis() as u64),
        };
        unshifted_ms.saturating_add_signed(self.shifted_ms.load(Ordering::Relaxed))
    }

    /// Monotonic time.
    pub fn now(&self) -> Instant {
        Instant::now()
    }
}

/// Creates ids and secrets with a cryptographic generator. Clones are cheap and share one sequence.
#[derive(Clone, Debug)]
pub struct IdSource {
    clock: Clock,
    generator: Arc<Mutex<StdRng>>,
}

impl IdSource {
    /// A generator that the operating system seeds.
    pub fn new(clock: Clock) -> Self {
        IdSource {
            clock,
            generator: Arc::new(Mutex::new(rand::make_rng())),
        }
    }

    /// A generator that repeats its ids for the same seed. For tests.
    pub fn seeded(clock: Clock, seed: u64) -> Self {
        IdSource {
            clock,
            generator: Arc::new(Mutex::new(StdRng::seed_from_u64(seed))),
        }
    }

    /// A new message id: a UUIDv7 with the current wall time.
    pub fn message_id(&self) -> MessageId {
        let millis = self.clock.wall_ms();
        MessageId(uuid::Builder::from_unix_timestamp_millis(millis, &self.random()).into_uuid())
    }

    /// Random bytes of cryptographic quality.
    pub fn random<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.generator.lock().fill_bytes(&mut bytes);
        bytes
    }

    /// A random delay from `low_ms` to `high_ms` inclusive, so that nodes do not act at the same moment.
    pub fn jitter_ms(&self, low_ms: u64, high_ms: u64) -> u64 {
        low_ms + u64::from_le_bytes(self.random()) % (high_ms.saturating_sub(low_ms) + 1)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn message_ids_carry_the_wall_time_and_differ() {
        let clock = Clock::system();
        let ids = IdSource::new(clock.clone());
        let before = clock.wall_ms();
        let (first, second) = (ids.message_id(), ids.message_id());
        assert_ne!(first, second);
        assert_eq!(first.0.get_version_num(), 7);
        let stamp = u64::from_be_bytes([&[0, 0], &first.0.as_bytes()[..6]].concat().try_into().unwrap());
        assert!(before <= stamp && stamp <= clock.wall_ms());
    }

    #[test]
    fn a_shift_moves_the_wall_time_of_all_clones_and_nothing_else() {
        let clock = Clock::starting_at(1_000_000);
        let (clone, before) = (clock.clone(), clock.now());
        clock.shift(-500_000);
        assert!((500_000..900_000).contains(&clone.wall_ms()));
        clone.shift(5_000_000);
        assert!(clock.wall_ms() >= 5_500_000);
        assert!(clock.now().duration_since(before).as_secs() < 300);
    }

    #[test]
    fn a_seed_repeats_its_ids() {
        let one = IdSource::seeded(Clock::system(), 7);
        let two = IdSource::seeded(Clock::system(), 7);
        assert_eq!(one.random::<16>(), two.random::<16>());
        assert!((5..=9).contains(&one.jitter_ms(5, 9)));
    }
}
