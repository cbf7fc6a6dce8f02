//! Fault tests: they run a cluster of real `agentpostd` processes, inject faults, and check afterwards that no
//! guarantee was broken.
//!
//! ```text
//!  campaign.rs ── many runs: smoke, soak; totals.rs adds them up
//!      ▼
//!  scenario.rs ── the table: name, script, workloads, what it must have covered
//!      │  stage.rs: what a script may do: kill, pause, cut, power off, damage …
//!      ▼
//!  run.rs ── starts cluster/ (processes, networks, disks) and workload/ (clients), runs the script, heals, audits
//!      │  history.jsonl, faults.jsonl, run.json, …
//!      ▼
//!  checker/ ── one property per file, over what was written down ──► verdict.rs ──► report.rs
//! ```
//!
//! The clients use the public API only, and nothing here depends on how a node works inside. A finished run can be
//! checked again at any time, without a cluster.

pub mod campaign;
pub mod checker;
pub mod cluster;
pub mod deliveries;
pub mod faults;
pub mod history;
pub mod mutants;
pub mod receiver;
pub mod recovery;
pub mod report;
pub mod run;
pub mod scenario;
pub mod stage;
pub mod totals;
pub mod verdict;
pub mod watch;
pub mod workload;
pub mod world;
