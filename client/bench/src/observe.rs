//! The costs of a measurement: counters of the nodes from `/metrics`, and of this machine from `/proc` and `/sys`.

use agentpost::http::{Http, Request};

/// Flushes of a node's log to disk. The name ends with `_total` if the metric is a counter.
const LOG_SYNCS: [&str; 2] = ["agentpost_log_syncs_total", "agentpost_log_syncs"];
/// CPU seconds of a node.
const CPU_SECONDS: [&str; 1] = ["process_cpu_seconds_total"];
const RESIDENT_BYTES: [&str; 1] = ["process_resident_memory_bytes"];
const TERM: [&str; 1] = ["agentpost_term"];
const SWEPT_ROWS: [&str; 1] = ["agentpost_swept_rows_total"];
/// The unit of CPU time in `/proc`; it is the same on every Linux that Agentpost supports.
const TICKS_PER_SECOND: f64 = 100.0;
const MIB: f64 = 1_048_576.0;

/// All counters at one moment.
pub struct Snapshot {
    nodes: Vec<NodeCounters>,
    own_cpu_s: Option<f64>,
    machine: Option<Machine>,
}

struct NodeCounters {
    id: u64,
    log_syncs: Option<f64>,
    cpu_s: Option<f64>,
    resident_bytes: Option<f64>,
    term: Option<f64>,
    swept_rows: Option<f64>,
}

struct Machine {
    disk_flushes: u64,
    busy_ticks: u64,
    all_ticks: u64,
}

impl Snapshot {
    /// Asks all nodes at the same time. A counter that cannot be read is `None`.
    pub async fn take(clients: &[(u64, Http)]) -> Self {
        let asked = clients.iter().map(|(id, client)| async move {
            let text = client
                .request(&Request::get("/metrics"))
                .await
                .map(|answer| answer.body)
                .unwrap_or_default();
            NodeCounters {
                id: *id,
                log_syncs: value(&text, &LOG_SYNCS),
                cpu_s: value(&text, &CPU_SECONDS),
                resident_bytes: value(&text, &RESIDENT_BYTES),
                term: value(&text, &TERM),
                swept_rows: value(&text, &SWEPT_ROWS),
            }
        });
        let nodes = futures::future::join_all(asked).await;
        Snapshot {
            nodes,
            own_cpu_s: own_cpu_s(),
            machine: machine(),
        }
    }

    /// The resident memory of each node in MiB.
    pub fn memory_mib(&self) -> Vec<(u64, u64)> {
        let of = |node: &NodeCounters| Some((node.id, (node.resident_bytes? / MIB) as u64));
        self.nodes.iter().filter_map(of).collect()
    }

    /// The highest Raft term that a node reports.
    pub fn term(&self) -> Option<u64> {
        self.nodes
            .iter()
            .filter_map(|node| node.term)
            .map(|term| term as u64)
            .max()
    }

    /// The terms that began since an earlier snapshot: elections, successful or not.
    pub fn elections_since(&self, before: &Snapshot) -> Option<u64> {
        Some(self.term()?.saturating_sub(before.term()?))
    }

    /// The CPU seconds of each node since an earlier snapshot.
    pub fn cpu_since(&self, before: &Snapshot) -> Vec<(u64, f64)> {
        let pairs = self.nodes.iter().zip(&before.nodes);
        pairs
            .filter_map(|(now, then)| Some((now.id, now.cpu_s? - then.cpu_s?)))
            .collect()
    }

    /// The rows that sweeps removed since an earlier snapshot; `None` if no node counts them.
    pub fn swept_since(&self, before: &Snapshot) -> Option<u64> {
        let swept = |of: &Snapshot| of.nodes.iter().filter_map(|node| node.swept_rows).reduce(|a, b| a + b);
        Some((swept(self)? - swept(before)?).max(0.0) as u64)
    }

    /// The differences to an earlier snapshot as the note of a row.
    pub fn note_since(&self, before: &Snapshot, acknowledged: u64, seconds: f64) -> String {
        let mut parts = Vec::new();
        let per_node = |pick: fn(&NodeCounters) -> Option<f64>, divisor: f64| -> Option<String> {
            let mut texts = Vec::new();
            for (now, then) in self.nodes.iter().zip(&before.nodes) {
                texts.push(format!("{}:{:.2}", now.id, (pick(now)? - pick(then)?) / divisor));
            }
            Some(texts.join(","))
        };
        if acknowledged > 0
            && let Some(text) = per_node(|node| node.log_syncs, acknowledged as f64)
        {
            parts.push(format!("flushes/ack={text}"));
        }
        if let Some(text) = per_node(|node| node.cpu_s, 1.0) {
            parts.push(format!("cpu-s={text}"));
        }
        if let (Some(now), Some(then)) = (self.own_cpu_s, before.own_cpu_s) {
            parts.push(format!("load-cpu-s={:.2}", now - then));
        }
        if let (Some(now), Some(then)) = (&self.machine, &before.machine) {
            let flushes = now.disk_flushes.saturating_sub(then.disk_flushes) as f64 / seconds;
            let busy = now.busy_ticks.saturating_sub(then.busy_ticks) as f64;
            let all = now.all_ticks.saturating_sub(then.all_ticks).max(1) as f64;
            parts.push(format!("disk-flushes/s={flushes:.0} cpu={:.0}%", busy / all * 100.0));
        }
        parts.join(" ")
    }
}

/// The sum of a metric over its labels. The first name that occurs counts.
fn value(text: &str, names: &[&str]) -> Option<f64> {
    names.iter().find_map(|name| {
        let of_name = |line: &str| {
            let rest = line.strip_prefix(name)?;
            let rest = if rest.starts_with('{') {
                rest.split_once('}')?.1
            } else {
                rest
            };
            rest.strip_prefix(' ')?.split(' ').next()?.parse::<f64>().ok()
        };
        text.lines().filter_map(of_name).reduce(|a, b| a + b)
    })
}

fn own_cpu_s() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The program's name is in parentheses and may contain spaces.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
    Some(ticks / TICKS_PER_SECOND)
}

fn machine() -> Option<Machine> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    let ticks: Vec<u64> = stat
        .lines()
        .next()?
        .split_whitespace()
        .skip(1)
        .filter_map(|t| t.parse().ok())
        .collect();
    let all_ticks: u64 = ticks.iter().take(8).sum();
    let idle = ticks.get(3)? + ticks.get(4)?;
    Some(Machine {
        disk_flushes: disk_flushes(),
        busy_ticks: all_ticks - idle,
        all_ticks,
    })
}

/// Flush requests of all disks since boot.
fn disk_flushes() -> u64 {
    let disks = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
    disks
        .filter(|disk| {
            let name = disk.file_name();
            !["loop", "ram", "zram"]
                .iter()
                .any(|made_up| name.to_string_lossy().starts_with(made_up))
        })
        .filter_map(|disk| std::fs::read_to_string(disk.path().join("stat")).ok())
        .filter_map(|stat| stat.split_whitespace().nth(15)?.parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_summed_over_its_labels() {
        let text = "# HELP agentpost_log_syncs_total x\nagentpost_log_syncs_total{shard=\"0\"} 3\n\
                    agentpost_log_syncs_total{shard=\"1\"} 4\nagentpost_log_syncs_total_other 9\nprocess_cpu_seconds_total 1.5\n";
        assert_eq!(value(text, &LOG_SYNCS), Some(7.0));
        assert_eq!(value(text, &CPU_SECONDS), Some(1.5));
        assert_eq!(value(text, &["missing"]), None);
        assert_eq!(value("agentpost_log_syncs 5\n", &LOG_SYNCS), Some(5.0));
    }

    #[test]
    fn a_note_gives_each_nodes_share() {
        let at = |syncs: f64, cpu: f64| Snapshot {
            nodes: (1..=2)
                .map(|id| NodeCounters {
                    id,
                    log_syncs: Some(syncs * id as f64),
                    cpu_s: Some(cpu),
                    resident_bytes: Some(id as f64 * MIB),
                    term: Some(syncs + id as f64),
                    swept_rows: Some(cpu * 10.0),
                })
                .collect(),
            own_cpu_s: Some(cpu),
            machine: None,
        };
        let note = at(300.0, 2.5).note_since(&at(100.0, 1.0), 100, 4.0);
        assert_eq!(at(300.0, 2.5).memory_mib(), [(1, 1), (2, 2)]);
        assert_eq!(at(300.0, 2.5).elections_since(&at(100.0, 1.0)), Some(200));
        assert_eq!(at(300.0, 2.5).cpu_since(&at(100.0, 1.0)), [(1, 1.5), (2, 1.5)]);
        assert_eq!(at(300.0, 2.5).swept_since(&at(100.0, 1.0)), Some(30));
        assert_eq!(note, "flushes/ack=1:2.00,2:4.00 cpu-s=1:1.50,2:1.50 load-cpu-s=1.50");
    }

    #[test]
    fn this_machine_can_be_read() {
        assert!(own_cpu_s().is_some());
        assert!(machine().is_some_and(|m| m.all_ticks > m.busy_ticks));
    }
}
