//! Metrics of the log.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::disk::damage::Failure;

/// The counters of a log since it was opened.
#[derive(Debug)]
pub struct LogMetrics {
    opened: Instant,
    syncs: AtomicU64,
    entries: AtomicU64,
    bytes: AtomicU64,
    append_bytes_max: AtomicU64,
    latency: [AtomicU64; BOUNDS_US.len() + 1],
    latency_sum_us: AtomicU64,
    latency_max_us: AtomicU64,
    /// Microseconds after `opened` at which the running sync began; 0 when none runs.
    running_since_us: AtomicU64,
    failure: Failure,
}

/// Upper bounds of the latency buckets; a last bucket takes the rest.
const BOUNDS_US: [u64; 13] = [
    100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000,
];

impl LogMetrics {
    pub(super) fn new() -> Self {
        LogMetrics {
            opened: now(),
            syncs: AtomicU64::new(0),
            entries: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            append_bytes_max: AtomicU64::new(0),
            latency: std::array::from_fn(|_| AtomicU64::new(0)),
            latency_sum_us: AtomicU64::new(0),
            latency_max_us: AtomicU64::new(0),
            running_since_us: AtomicU64::new(0),
            failure: Failure::default(),
        }
    }

    /// The number of flushes to the disk.
    pub fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }

    /// The number of appended entries.
    pub fn entries(&self) -> u64 {
        self.entries.load(Ordering::Relaxed)
    }

    /// The encoded bytes of the appended entries.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The encoded bytes of the largest append.
    pub fn append_bytes_max(&self) -> u64 {
        self.append_bytes_max.load(Ordering::Relaxed)
    }

    /// A histogram of how long flushes took: pairs of an upper bound and the number of flushes in that bucket. The last
    /// bucket has no bound.
    pub fn latency(&self) -> impl Iterator<Item = (Duration, u64)> + '_ {
        let bounds = BOUNDS_US.iter().copied().chain([u64::MAX]);
        bounds
            .zip(&self.latency)
            .map(|(us, n)| (Duration::from_micros(us), n.load(Ordering::Relaxed)))
    }

    /// The total duration of all flushes.
    pub fn latency_sum(&self) -> Duration {
        Duration::from_micros(self.latency_sum_us.load(Ordering::Relaxed))
    }

    /// The duration of the longest flush.
    pub fn latency_max(&self) -> Duration {
        Duration::from_micros(self.latency_max_us.load(Ordering::Relaxed))
    }

    /// The error of the log, or `None` if it has not failed. A failure of the durability floor shows only here.
    pub fn failed(&self) -> Option<String> {
        self.failure.check().err().map(|error| error.to_string())
    }

    /// The failure of this log, shared with its threads.
    pub(super) fn failure(&self) -> Failure {
        self.failure.clone()
    }

    /// How long the current flush has been running, for a watchdog. `None` if none is running.
    pub fn running_for(&self) -> Option<Duration> {
        match self.running_since_us.load(Ordering::Relaxed) {
            0 => None,
            since => Some(Duration::from_micros(self.elapsed_us().saturating_sub(since))),
        }
    }

    /// Notes the size of an append when its entries are readable.
    pub(super) fn taken(&self, bytes: u64) {
        self.append_bytes_max.fetch_max(bytes, Ordering::Relaxed);
    }

    pub(super) fn appended(&self, entries: u64, bytes: u64) {
        self.entries.fetch_add(entries, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Runs and measures one flush.
    pub(super) fn measure<T>(&self, sync: impl FnOnce() -> T) -> T {
        let began = self.elapsed_us().max(1);
        self.running_since_us.store(began, Ordering::Relaxed);
        let result = sync();
        self.running_since_us.store(0, Ordering::Relaxed);
        let took = self.elapsed_us().saturating_sub(began);
        let bucket = BOUNDS_US.partition_point(|bound| *bound < took);
        self.latency[bucket].fetch_add(1, Ordering::Relaxed);
        self.latency_sum_us.fetch_add(took, Ordering::Relaxed);
        self.latency_max_us.fetch_max(took, Ordering::Relaxed);
        self.syncs.fetch_add(1, Ordering::Relaxed);
        result
    }

    fn elapsed_us(&self) -> u64 {
        u64::try_from(now().duration_since(self.opened).as_micros()).unwrap_or(u64::MAX)
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "measures the disk; neither a stored byte nor a decision depends on it"
)]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_is_counted_in_its_bucket_and_seen_while_it_runs() {
        let metrics = LogMetrics::new();
        assert_eq!(metrics.running_for(), None);
        metrics.measure(|| {
            std::thread::sleep(Duration::from_millis(3));
            assert!(metrics.running_for() >= Some(Duration::from_millis(2)));
        });
        assert_eq!(metrics.running_for(), None);
        assert_eq!(metrics.syncs(), 1);
        assert_eq!(metrics.latency().map(|(_, n)| n).sum::<u64>(), 1);
        let fast: u64 = metrics
            .latency()
            .take_while(|(bound, _)| *bound < Duration::from_millis(3))
            .map(|(_, n)| n)
            .sum();
        assert_eq!(fast, 0);
        assert!(metrics.latency_max() >= Duration::from_millis(3));
        assert_eq!(metrics.latency_max(), metrics.latency_sum());
    }
}
