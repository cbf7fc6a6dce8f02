//! The CPU time and memory of the process, under the names that Prometheus's own libraries use. They are read from
//! `/proc` on each scrape; on systems other than Linux they are absent.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// The ticks per second in which the kernel reports CPU time to programs, whatever unit it uses itself.
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU time and memory of this process.
#[derive(Debug)]
pub struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        if let Some(seconds) = std::fs::read_to_string("/proc/self/stat")
            .ok()
            .and_then(|stat| cpu_seconds(&stat))
        {
            let counter = ConstCounter::new(seconds);
            let help = "CPU time of all threads, in user and kernel mode";
            counter.encode(encoder.encode_descriptor("process_cpu_seconds", help, None, counter.metric_type())?)?;
        }
        if let Some(bytes) = std::fs::read_to_string("/proc/self/status")
            .ok()
            .and_then(|text| resident_bytes(&text))
        {
            let gauge = ConstGauge::new(bytes);
            let help = "Resident memory";
            let name = "process_resident_memory_bytes";
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

/// Parses fields 14 and 15. They are counted after the program's name, which may contain spaces.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS_PER_SECOND)
}

fn resident_bytes(status: &str) -> Option<i64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: i64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_is_read_by_position() {
        assert_eq!(cpu_seconds("7 (a b) c) S 1 2 3 4 5 6 7 8 9 10 250 50 0"), Some(3.0));
        assert_eq!(resident_bytes("VmPeak:\t9 kB\nVmRSS:\t    12 kB\n"), Some(12 * 1024));
        assert_eq!(cpu_seconds(""), None);
    }
}
