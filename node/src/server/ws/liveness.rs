//! Pings: they show whether a client is alive, and what a client that never acks has received.
//!
//! The socket keeps the order of frames, so a client that answers a ping has read every event sent before it. Clients
//! of the vendor's first release never ack at all. So while a cursor has never seen an ack, such events count as
//! delivered once they are a minute old. The minute protects a client that read the events and crashed before it used
//! them.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// Events sent within this time of each other share one mark.
const GRAIN: Duration = Duration::from_secs(1);
/// The most marks and pings kept for a client that sends frames but never answers a ping; beyond it they become coarser.
const KEPT_MAX: usize = 1_024;

/// The pings of one session, and the events sent before them.
#[derive(Debug)]
pub struct Liveness {
    /// When the client last sent something.
    heard: Instant,
    /// The unanswered pings: their numbers and the newest event before each.
    pings: VecDeque<(u64, u64)>,
    next_ping: u64,
    /// The newest event that was sent before an answered ping.
    proven_seq: u64,
    sent: VecDeque<Mark>,
}

/// Events sent at nearly the same time.
#[derive(Debug)]
struct Mark {
    first: Instant,
    last: Instant,
    seq: u64,
}

impl Liveness {
    /// Creates the state of a client that sent something at this moment.
    pub fn new(now: Instant) -> Self {
        Liveness {
            heard: now,
            pings: VecDeque::new(),
            next_ping: 0,
            proven_seq: 0,
            sent: VecDeque::new(),
        }
    }

    /// Records that the client sent something.
    pub fn heard(&mut self, now: Instant) {
        self.heard = now;
    }

    /// How long the client has sent nothing while pings were unanswered.
    pub fn silence(&self, now: Instant) -> Duration {
        if self.pings.is_empty() {
            Duration::ZERO
        } else {
            now.saturating_duration_since(self.heard)
        }
    }

    /// Records that an event was sent.
    pub fn sent(&mut self, seq: u64, now: Instant) {
        let full = self.sent.len() >= KEPT_MAX;
        match self.sent.back_mut() {
            Some(mark) if now.saturating_duration_since(mark.first) < GRAIN || full => {
                mark.last = now;
                mark.seq = seq;
            }
            _ => self.sent.push_back(Mark {
                first: now,
                last: now,
                seq,
            }),
        }
    }

    /// Drops the marks of events, because acks are more precise.
    pub fn forget_sent(&mut self) {
        self.sent.clear();
    }

    /// The payload of the next ping; `newest_seq` is the newest event sent before it.
    pub fn ping(&mut self, newest_seq: u64) -> [u8; 8] {
        if self.pings.len() >= KEPT_MAX {
            self.pings.pop_front(); // an answer to a later ping proves the same
        }
        self.next_ping += 1;
        self.pings.push_back((self.next_ping, newest_seq));
        self.next_ping.to_be_bytes()
    }

    /// Handles a pong. An answer to a ping that was never sent proves nothing.
    pub fn pong(&mut self, payload: &[u8]) {
        let Ok(number) = payload.try_into().map(u64::from_be_bytes) else {
            return;
        };
        while let Some((_, seq)) = self
            .pings
            .pop_front_if(|(sent, _)| *sent <= number && number <= self.next_ping)
        {
            self.proven_seq = self.proven_seq.max(seq);
        }
    }

    /// The newest event that counts as delivered: at least `age` old and followed by an answered ping. Each event is
    /// returned once.
    pub fn implied(&mut self, now: Instant, age: Duration) -> Option<u64> {
        let mut newest = None;
        let proven = self.proven_seq;
        let old = |mark: &mut Mark| mark.seq <= proven && now.saturating_duration_since(mark.last) >= age;
        while let Some(mark) = self.sent.pop_front_if(old) {
            newest = Some(mark.seq);
        }
        newest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn old_events_before_an_answered_ping_count_as_delivered() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut liveness = Liveness::new(start);
        liveness.sent(3, at(1));
        liveness.sent(4, at(1));
        let first = liveness.ping(4);
        liveness.sent(5, at(31));
        assert_eq!(liveness.implied(at(80), MINUTE), None, "no answer yet");
        liveness.pong(&first);
        assert_eq!(liveness.implied(at(60), MINUTE), None, "59 s old");
        assert_eq!(liveness.implied(at(61), MINUTE), Some(4));
        assert_eq!(liveness.implied(at(62), MINUTE), None, "returned once");
        assert_eq!(liveness.implied(at(200), MINUTE), None, "5 was sent after the ping");
        let second = liveness.ping(5);
        let third = liveness.ping(5);
        liveness.pong(&third);
        liveness.pong(&second);
        assert_eq!(liveness.implied(at(201), MINUTE), Some(5));
    }

    #[test]
    fn a_steady_stream_still_ages() {
        let start = Instant::now();
        let mut liveness = Liveness::new(start);
        for step in 0..2_000u64 {
            liveness.sent(step + 1, start + Duration::from_millis(step * 100));
        }
        assert!(liveness.sent.len() <= 201);
        let ping = liveness.ping(2_000);
        liveness.pong(&ping);
        let implied = liveness
            .implied(start + Duration::from_secs(200), MINUTE)
            .unwrap_or_default();
        assert!((1_380..=1_401).contains(&implied), "{implied}");
    }

    #[test]
    fn a_client_that_never_answers_uses_bounded_memory() {
        let start = Instant::now();
        let mut liveness = Liveness::new(start);
        for step in 0..5_000u64 {
            let now = start + MINUTE * step as u32;
            liveness.sent(step + 1, now);
            liveness.ping(step + 1);
        }
        assert_eq!((liveness.sent.len(), liveness.pings.len()), (KEPT_MAX, KEPT_MAX));
        let last = liveness.ping(5_000);
        liveness.pong(&last);
        assert_eq!(liveness.implied(start + MINUTE * 5_001, MINUTE), Some(5_000));
    }

    #[test]
    fn pongs_without_a_ping_prove_nothing() {
        let start = Instant::now();
        let mut liveness = Liveness::new(start);
        liveness.sent(1, start);
        liveness.pong(&u64::MAX.to_be_bytes());
        liveness.ping(1);
        liveness.pong(b"hello");
        liveness.pong(&u64::MAX.to_be_bytes());
        assert_eq!(liveness.implied(start + MINUTE * 2, MINUTE), None);
    }

    #[test]
    fn silence_counts_only_while_a_ping_waits() {
        let start = Instant::now();
        let mut liveness = Liveness::new(start);
        assert_eq!(liveness.silence(start + MINUTE), Duration::ZERO);
        let ping = liveness.ping(0);
        assert_eq!(liveness.silence(start + MINUTE), MINUTE);
        liveness.heard(start + MINUTE);
        liveness.pong(&ping);
        assert_eq!(liveness.silence(start + MINUTE * 2), Duration::ZERO);
    }
}
