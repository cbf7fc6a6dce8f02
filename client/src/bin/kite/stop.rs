//! Signals that ask the process to end. They are taken in, so that the command of an event ends with it and the
//! server hears a goodbye.

use std::fmt;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGINT, SIGTERM and SIGHUP.
pub struct Stop {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

/// The signal that ended the process.
#[derive(Debug)]
pub struct Stopped(u8);

impl Stop {
    /// From now on the signals do not end the process by themselves.
    pub fn new() -> std::io::Result<Self> {
        Ok(Stop {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// The next one.
    pub async fn signal(&mut self) -> Stopped {
        let kind = tokio::select! {
            _ = self.interrupt.recv() => SignalKind::interrupt(),
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.hang_up.recv() => SignalKind::hangup(),
        };
        Stopped(u8::try_from(kind.as_raw_value()).unwrap_or_default())
    }
}

impl Stopped {
    /// What a shell shows for a process that a signal ended.
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
