//! The signals that ask the process to end. `kite` handles them itself, so that it can end the command of an event and
//! close the session before it exits.

use std::fmt;
use std::future::poll_fn;
use std::task::Poll;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Receives SIGINT, SIGTERM and SIGHUP, except those that the caller of `kite` had ignored.
pub struct Stop(Vec<(u8, Signal)>);

/// The signal that ended the process.
#[derive(Debug)]
pub struct Stopped(u8);

impl Stop {
    /// From now on the signals do not end the process. A signal that the caller had ignored stays ignored: `nohup`
    /// ignores SIGHUP, and a script ignores SIGINT for commands that it starts with `&`.
    pub fn new() -> std::io::Result<Self> {
        let ignored = ignored();
        let mut signals = Vec::new();
        for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
            let number = u8::try_from(kind.as_raw_value()).unwrap_or_default();
            if ignored & 1 << (number - 1) == 0 {
                signals.push((number, signal(kind)?));
            }
        }
        Ok(Stop(signals))
    }

    /// Waits for the next signal.
    pub async fn signal(&mut self) -> Stopped {
        let number = poll_fn(|context| {
            for (number, signal) in &mut self.0 {
                if signal.poll_recv(context).is_ready() {
                    return Poll::Ready(*number);
                }
            }
            Poll::Pending
        });
        Stopped(number.await)
    }
}

/// A bit for each ignored signal, read from `/proc`, because the system call needs unsafe code. No bits on other
/// systems than Linux.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.unwrap_or_default()
}

impl Stopped {
    /// The exit code that a shell reports for a process that a signal ended.
    pub fn exit_code(&self) -> u8 {
        128 + self.0
    }
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stopped by signal {}", self.0)
    }
}

impl std::error::Error for Stopped {}
