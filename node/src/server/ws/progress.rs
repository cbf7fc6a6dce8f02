//! The progress of a session's client, and the reports to its cursor. These are the rules of acks, as a pure decision
//! over the events sent, the frames received, and time.
//!
//! - An ack is cumulative, clamped to what this socket was sent, and never moves back.
//! - While the cursor has never seen an ack, events that [`Liveness`] proves delivered move it.
//! - An open session reports the use of its cursor from time to time, even if the cursor does not move; otherwise the
//!   cursor would expire.

use std::time::Duration;

use tokio::time::Instant;

use super::ack::{Mark, Proof};
use super::liveness::Liveness;
use super::resume::{CursorName, Start};

/// The progress of one session, from its greeting to its end.
#[derive(Debug)]
pub struct Progress {
    /// The cursor that acks move; `None` in a live session.
    cursor: Option<CursorName>,
    /// Whether the cursor has seen a real ack.
    acked: bool,
    /// The seq at which the session began, or to which its acks have moved the cursor since.
    acked_seq: u64,
    /// The newest event written to this socket.
    delivered_seq: u64,
    /// When the use of the cursor was last reported.
    touched: Instant,
    liveness: Liveness,
}

/// A report to a cursor.
pub type Note = (CursorName, Mark);

impl Progress {
    /// Creates the progress of a session that has sent nothing.
    pub fn new(cursor: Option<CursorName>, start: &Start, now: Instant) -> Self {
        Progress {
            cursor,
            acked: start.acked,
            acked_seq: start.after_seq,
            delivered_seq: start.after_seq,
            touched: now,
            liveness: Liveness::new(now),
        }
    }

    /// Records that an event was written to the socket.
    pub fn sent(&mut self, seq: u64, now: Instant) {
        self.delivered_seq = seq;
        if self.cursor.is_some() && !self.acked {
            self.liveness.sent(seq, now);
        }
    }

    /// Handles the client's ack of everything up to `seq`.
    pub fn ack(&mut self, seq: u64) -> Option<Note> {
        let cursor = self.cursor.as_ref()?;
        let seq = seq.min(self.delivered_seq).max(self.acked_seq);
        // The first ack counts even if it does not move the cursor: from then on only acks move it.
        if seq == self.acked_seq && self.acked {
            return None;
        }
        (self.acked, self.acked_seq) = (true, seq);
        self.liveness.forget_sent();
        let proof = Proof::Ack;
        is_kept(cursor, seq).then(|| (cursor.clone(), Mark { seq, proof }))
    }

    /// Reports the events that pings prove delivered to a client that never acks: those at least `age` old.
    pub fn implied(&mut self, now: Instant, age: Duration) -> Option<Note> {
        let cursor = self.cursor.as_ref().filter(|_| !self.acked)?;
        let seq = self.liveness.implied(now, age)?;
        let proof = Proof::Implied;
        Some((cursor.clone(), Mark { seq, proof }))
    }

    /// Reports the use of the cursor if the last report is at least `every` old. It does not move the cursor.
    pub fn touch(&mut self, now: Instant, every: Duration) -> Option<Note> {
        let cursor = self.cursor.as_ref()?;
        if now.saturating_duration_since(self.touched) < every {
            return None;
        }
        self.touched = now;
        let (seq, proof) = (self.acked_seq, Proof::Implied);
        is_kept(cursor, seq).then(|| (cursor.clone(), Mark { seq, proof }))
    }

    /// Records that the client sent something.
    pub fn heard(&mut self, now: Instant) {
        self.liveness.heard(now);
    }

    /// How long the client has sent nothing while pings were unanswered.
    pub fn silence(&self, now: Instant) -> Duration {
        self.liveness.silence(now)
    }

    /// The payload of the next ping.
    pub fn ping(&mut self) -> [u8; 8] {
        self.liveness.ping(self.delivered_seq)
    }

    pub fn pong(&mut self, payload: &[u8]) {
        self.liveness.pong(payload);
    }
}

/// Whether a cursor at `seq` needs a row. A mailbox without a cursor begins at 0 anyway, and a row per mailbox would
/// let anyone fill the state by listening to inboxes that do not exist. A named client without a row would begin at a
/// later "now".
fn is_kept(cursor: &CursorName, seq: u64) -> bool {
    seq > 0 || !cursor.client_id.is_empty()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use agentpost_proto::id::TeamId;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn name(agent: &str, client_id: &str) -> CursorName {
        CursorName {
            team: TeamId([1; 16]),
            agent: agent.to_owned(),
            client_id: client_id.to_owned(),
        }
    }

    fn begun(cursor: Option<CursorName>, after_seq: u64, acked: bool) -> (Progress, Instant) {
        let start = Start {
            after_seq,
            acked,
            create: false,
            touch: false,
        };
        let now = Instant::now();
        (Progress::new(cursor, &start, now), now)
    }

    fn mark(note: Option<Note>) -> Option<(u64, Proof)> {
        note.map(|(_, mark)| (mark.seq, mark.proof))
    }

    #[test]
    fn acks_are_clamped_to_what_was_sent_and_never_move_back() {
        let (mut progress, now) = begun(Some(name("a", "")), 10, true);
        assert_eq!(mark(progress.ack(99)), None, "nothing was sent yet");
        progress.sent(12, now);
        progress.sent(15, now);
        assert_eq!(
            mark(progress.ack(11)),
            Some((11, Proof::Ack)),
            "an ack may lie between two events"
        );
        assert_eq!(mark(progress.ack(u64::MAX)), Some((15, Proof::Ack)));
        for repeated in [0, 12, 15, 16] {
            assert_eq!(mark(progress.ack(repeated)), None, "{repeated}");
        }
        progress.sent(20, now);
        assert_eq!(mark(progress.ack(20)), Some((20, Proof::Ack)));
    }

    #[test]
    fn the_first_ack_counts_even_if_it_moves_nothing() {
        let (mut progress, now) = begun(Some(name("a", "")), 10, false);
        progress.sent(11, now);
        let ping = progress.ping();
        assert_eq!(mark(progress.ack(3)), Some((10, Proof::Ack)));
        progress.pong(&ping);
        assert_eq!(mark(progress.implied(now + MINUTE * 2, MINUTE)), None);
        progress.sent(12, now);
        let ping = progress.ping();
        progress.pong(&ping);
        assert_eq!(mark(progress.implied(now + MINUTE * 2, MINUTE)), None);
    }

    #[test]
    fn pings_replace_acks_only_while_a_cursor_has_never_seen_one() {
        for (cursor, acked, expected) in [
            (Some(name("a", "")), false, Some((12, Proof::Implied))),
            (Some(name("a", "")), true, None),
            (None, false, None),
        ] {
            let (mut progress, now) = begun(cursor, 10, acked);
            progress.sent(12, now);
            let ping = progress.ping();
            progress.sent(13, now + MINUTE / 2);
            progress.pong(&ping);
            assert_eq!(mark(progress.implied(now + MINUTE * 2, MINUTE)), expected);
        }
    }

    #[test]
    fn a_live_session_reports_to_no_cursor() {
        let (mut progress, now) = begun(None, 10, false);
        progress.sent(11, now);
        assert_eq!(mark(progress.ack(11)), None);
        assert_eq!(mark(progress.touch(now + MINUTE * 9, MINUTE)), None);
    }

    #[test]
    fn an_open_session_keeps_its_cursor_in_use() {
        let (mut progress, now) = begun(Some(name("a", "")), 10, true);
        progress.sent(11, now);
        assert_eq!(mark(progress.touch(now + MINUTE / 2, MINUTE)), None);
        let touch = progress.touch(now + MINUTE, MINUTE);
        assert_eq!(
            mark(touch),
            Some((10, Proof::Implied)),
            "a use does not ack events that were only sent"
        );
        assert_eq!(mark(progress.touch(now + MINUTE * 3 / 2, MINUTE)), None);
        progress.ack(11);
        assert_eq!(
            mark(progress.touch(now + MINUTE * 2, MINUTE)),
            Some((11, Proof::Implied))
        );
    }

    #[test]
    fn listening_to_an_empty_inbox_leaves_no_row() {
        let (mut progress, now) = begun(Some(name("nobody", "")), 0, false);
        assert_eq!(mark(progress.ack(7)), None, "an ack of a seq that was never sent");
        assert_eq!(mark(progress.touch(now + MINUTE, MINUTE)), None);
        progress.sent(1, now);
        assert_eq!(mark(progress.ack(7)), Some((1, Proof::Ack)));
        // A named client gets a row even at 0.
        let (mut progress, now) = begun(Some(name("", "c")), 0, false);
        assert_eq!(mark(progress.ack(7)), Some((0, Proof::Ack)));
        assert_eq!(mark(progress.touch(now + MINUTE, MINUTE)), Some((0, Proof::Implied)));
    }
}
