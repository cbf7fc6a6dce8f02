//! What the lanes of a load measure: latencies and acknowledged messages, by steps of time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Counters of one step.
#[derive(Default, Clone)]
pub struct Tally {
    pub latencies_ns: Vec<u64>,
    pub acknowledged: u64,
    pub errors: u64,
    pub first_error: Option<String>,
}

impl Tally {
    pub fn add(&mut self, other: Tally) {
        self.latencies_ns.extend(other.latencies_ns);
        self.acknowledged += other.acknowledged;
        self.errors += other.errors;
        self.first_error = self.first_error.take().or(other.first_error);
    }

    /// ` errors=… first: …`, or nothing.
    pub fn complaint(&self) -> String {
        match &self.first_error {
            Some(error) => format!(" errors={} first: {error}", self.errors),
            None => String::new(),
        }
    }
}

/// The steps of a measurement. Lanes share it.
pub struct Meter {
    from: Instant,
    step: Duration,
    steps: Mutex<Vec<Tally>>,
    stopped: AtomicBool,
}

impl Meter {
    /// A measurement of `count` steps that begins after the warm-up.
    pub fn start(warm_up: Duration, step: Duration, count: usize) -> Arc<Self> {
        Arc::new(Meter {
            from: Instant::now() + warm_up,
            step,
            steps: Mutex::new(vec![Tally::default(); count.max(1)]),
            stopped: AtomicBool::new(false),
        })
    }

    /// Waits until step `n` begins.
    pub async fn reached(&self, n: usize) {
        sleep_until(self.from + self.step * n as u32).await;
    }

    /// Whether no further request may begin at this moment.
    pub fn is_over(&self, at: Instant) -> bool {
        self.stopped.load(Ordering::Relaxed) || at >= self.from + self.step * self.steps().len() as u32
    }

    /// Ends the measurement early.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Records a request by the moment of its answer. Answers before the first step and after the last do not count.
    pub fn answered(&self, begun: Instant, ended: Instant, acknowledged: usize) {
        let Some(step) = self.step_at(ended) else { return };
        if let Some(tally) = self.steps().get_mut(step) {
            let latency = u64::try_from((ended - begun).as_nanos()).unwrap_or(u64::MAX);
            tally.latencies_ns.push(latency);
            tally.acknowledged += acknowledged as u64;
        }
    }

    /// Records a failure; one of the warm-up counts in the first step.
    pub fn failed(&self, error: impl std::fmt::Display) {
        let step = self.step_at(Instant::now()).unwrap_or(0);
        let mut steps = self.steps();
        let last = steps.len() - 1;
        let tally = &mut steps[step.min(last)];
        tally.errors += 1;
        tally.first_error.get_or_insert_with(|| error.to_string());
    }

    /// Takes what step `n` has measured so far.
    pub fn take(&self, n: usize) -> Tally {
        self.steps().get_mut(n).map(std::mem::take).unwrap_or_default()
    }

    fn step_at(&self, at: Instant) -> Option<usize> {
        let since = at.checked_duration_since(self.from)?;
        Some((since.as_nanos() / self.step.as_nanos().max(1)) as usize)
    }

    fn steps(&self) -> MutexGuard<'_, Vec<Tally>> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_counts_in_the_step_in_which_it_came() {
        let second = Duration::from_secs(1);
        let meter = Meter::start(second, second, 2);
        let begun = Instant::now();
        meter.failed("cold");
        for at in [0.5, 1.5, 1.75, 2.5, 3.5] {
            let ended = begun + Duration::from_secs_f64(at);
            meter.answered(begun, ended, 100);
        }
        let (first, last) = (meter.take(0), meter.take(1));
        assert_eq!((first.acknowledged, first.errors), (200, 1));
        assert_eq!(first.complaint(), " errors=1 first: cold");
        assert_eq!((last.acknowledged, last.latencies_ns), (100, vec![2_500_000_000]));
        assert!(!meter.is_over(begun + second * 2) && meter.is_over(begun + second * 3));
        meter.stop();
        assert!(meter.is_over(begun));
    }
}
