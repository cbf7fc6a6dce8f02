//! The result of a measurement.

use crate::load::histogram;

/// Percentiles of a measurement in milliseconds.
#[derive(Debug, Clone, Copy)]
pub struct Latency {
    /// The median.
    pub p50_ms: f64,
    /// The 99th percentile.
    pub p99_ms: f64,
}

impl Latency {
    /// The percentiles of samples in nanoseconds; NaN without samples.
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

    /// The latency of a row that has no samples.
    pub const NONE: Latency = Latency {
        p50_ms: f64::NAN,
        p99_ms: f64::NAN,
    };
}

/// One figure and its circumstances.
#[derive(Debug, Clone)]
pub struct Row {
    /// The system and the path through it, such as `agentpost-http-leader`.
    pub peer: String,
    /// The quantity.
    pub metric: &'static str,
    /// Requests in flight at a time.
    pub in_flight: u32,
    /// The number of the run, from 1.
    pub run: u32,
    /// The figure.
    pub value: f64,
    /// The unit of `value`.
    pub unit: &'static str,
    /// The latency of the measured requests.
    pub latency: Latency,
    /// The costs of the measurement and how it was made. It may quote a server's answer.
    pub note: String,
}

/// Receives the rows while the benchmark runs.
pub trait Report {
    /// Tells which measurement begins.
    fn progress(&mut self, what: &str);
    /// Receives a row.
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
