//! Fault tests: they run a cluster of real `agentpostd` processes, inject faults, and check afterwards that no
//! guarantee was broken.
//!
//! ```text
//!  campaign.rs, mutants.rs ── many runs: smoke, soak, mutants; totals.rs adds them up
//!      ▼
//!  run.rs ── one run: starts the cluster and the clients, injects the faults, heals, audits, checks
//!      │
//!      ├─► scenario/ ── the table of scenarios, and the nemesis that injects their faults
//!      │       ├─► workload/ ── the clients
//!      │       └─► cluster/  ── processes, networks, disks, clocks
//!      │              │ write
//!      │              ▼
//!      │          record/ ── history.jsonl, faults.jsonl, leaders.jsonl, run.json, …
//!      │              ▲
//!      │              │ read
//!      └─► checker/ ── one property per file ──► report.rs
//! ```
//!
//! The clients use the public API only, and nothing here depends on how a node works inside. A finished run can be
//! checked again at any time, without a cluster.

pub mod campaign;
pub mod checker;
pub mod cluster;
pub mod mutants;
pub mod record;
pub mod report;
pub mod run;
pub mod scenario;
pub mod totals;
pub mod workload;
