//! The metrics that the Raft log counts itself; they are read on each scrape.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use agentpost_raft_store::disk::log_store::LogMetrics;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Counters of the log since the start of the process.
#[derive(Debug)]
pub(super) struct Log(pub Arc<LogMetrics>);

impl Collector for Log {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let log = &self.0;
        for (name, help, count) in [
            ("log_syncs", "Syncs of the log to the disk", log.syncs()),
            ("log_entries", "Entries appended to the log", log.entries()),
            ("log_bytes", "Bytes of entries appended to the log", log.bytes()),
        ] {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(count).encode(metric)?;
        }
        let help = "Bytes of the largest append to the log since the start";
        let largest = i64::try_from(log.append_bytes_max()).unwrap_or(i64::MAX);
        let metric = encoder.encode_descriptor("log_append_bytes_max", help, None, MetricType::Gauge)?;
        ConstGauge::new(largest).encode(metric)?;
        let bucket = |(at_most, count): (Duration, u64)| {
            let last = at_most == Duration::from_micros(u64::MAX);
            (if last { f64::MAX } else { at_most.as_secs_f64() }, count)
        };
        let buckets: Vec<_> = log.latency().map(bucket).collect();
        let help = "Duration of the syncs of the log";
        let mut metric = encoder.encode_descriptor("log_sync_seconds", help, None, MetricType::Histogram)?;
        let sum = log.latency_sum().as_secs_f64();
        metric.encode_histogram::<NoLabelSet>(sum, buckets.iter().map(|(_, count)| count).sum(), &buckets, None)
    }
}
