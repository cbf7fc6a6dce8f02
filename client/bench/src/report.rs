//! What a measurement hands over.

use crate::load::histogram;

/// Percentiles of a measurement in milliseconds.
#[derive(Debug, Clone, Copy)]
pub struct Latency {
    /// Half of the samples took at most this.
    pub p50_ms: f64,
    /// 99 of 100 samples took at most this.
    pub p99_ms: f64,
}

impl Latency {
    /// Of samples in nanoseconds; NaN if there are none.
    pub fn of(samples_ns: &[u64]) -> Self {
        if samples_ns.is_empty() {
            return Latency::NONE;
        }
        let histogram = histogram(samples_ns);
        let ms = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e6;
        Latency {
            p50_ms: ms(0.5),
            p99_ms: ms(0.99),
        }
    }

    /// A figure without latencies.
    pub const NONE: Latency = Latency {
        p50_ms: f64::NAN,
        p99_ms: f64::NAN,
    };
}

/// One figure.
#[derive(Debug, Clone)]
pub struct Row {
    /// The system and the path through it, such as `agentpost-http-leader`.
    pub peer: String,
    /// The quantity.
    pub metric: &'static str,
    /// Requests under way at a time.
    pub in_flight: u32,
    /// The number of the run, from 1.
    pub run: u32,
    /// The figure.
    pub value: f64,
    /// The unit of `value`.
    pub unit: &'static str,
    /// Of the requests that were measured.
    pub latency: Latency,
    /// What the measurement cost, and how it was made. It may quote a server.
    pub note: String,
}

/// Takes the figures as they are measured.
pub trait Report {
    /// Says what is going on.
    fn progress(&mut self, what: &str);
    /// Takes a figure.
    fn row(&mut self, row: Row);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_have_three_digits() {
        let samples: Vec<u64> = (1..=1000).map(|n| n * 1_000_000).collect();
        let latency = Latency::of(&samples);
        assert!(
            (latency.p50_ms - 500.0).abs() < 1.0 && (latency.p99_ms - 990.0).abs() < 1.0,
            "{latency:?}"
        );
        assert!(Latency::of(&[]).p50_ms.is_nan());
    }
}
