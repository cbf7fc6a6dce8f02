//! The lowest layer, which every other layer may use: clock, configuration, secrets, the data directory, metrics, the
//! threads of Raft, the watch over tasks, and log lines that repeat.

pub mod clock;
pub mod config;
pub mod lifetime;
pub mod metrics;
pub mod networks;
pub mod owner;
pub mod raft_threads;
pub mod repeats;
pub mod secrets;
pub mod space;
pub mod task_watch;
