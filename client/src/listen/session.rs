//! Listening over a WebSocket. The driver is a task of its own, so that pings are answered and acknowledgements are
//! written while the program works.
//!
//! After a reconnect the server sends again what it does not know to be acknowledged. The driver passes over what it
//! has handed out before, and acknowledges of it what the program has acknowledged.

use std::future::pending;
use std::pin::pin;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::Outlet;
use super::acknowledge::{Ack, Acknowledge};
use crate::Error;
use crate::agent::Agent;
use crate::kite::{Event, Notice, Session};
use crate::mail::Mail;

/// Upper bound on the acknowledgements under way to the driver.
const ACKS_WAITING_MAX: usize = 64;

struct Driver {
    agent: Agent,
    session: Session,
    outlet: Outlet,
    acks: mpsc::Receiver<Ack>,
    /// For the mail that is handed out.
    to_acks: mpsc::WeakSender<Ack>,
    /// Received and not yet taken by the channel, which is full.
    waiting: Option<Mail>,
    /// Acknowledgements that no session has taken yet.
    untaken: Vec<Ack>,
    progress: Progress,
    open: bool,
    began: Instant,
}

/// How far the program is.
#[derive(Debug, Default)]
struct Progress {
    /// The newest position that was handed out.
    handed_out: u64,
    /// The newest position that was acknowledged.
    acked: u64,
}

/// The action for an event.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    HandOut,
    /// It was handed out before, and acknowledged: the server does not know of it.
    AckAgain,
    /// It was handed out before.
    PassOver,
}

impl Progress {
    fn event(&mut self, seq: u64) -> Step {
        if seq > self.handed_out {
            self.handed_out = seq;
            Step::HandOut
        } else if seq <= self.acked {
            Step::AckAgain
        } else {
            Step::PassOver
        }
    }

    fn ack(&mut self, seq: u64) {
        self.acked = self.acked.max(seq);
    }
}

/// The event that ended a turn.
enum Turn {
    /// The listener is gone.
    Closed,
    Ack(Ack),
    Notice(Result<Notice, Error>),
    /// The waiting mail was taken.
    Taken,
}

/// Begins to dial.
pub(super) fn start(agent: &Agent, client_id: Option<String>, outlet: Outlet) -> Result<JoinHandle<()>, Error> {
    let scope = format!("agent_to:{}", agent.id());
    let session = agent.post().kite().session([scope], client_id)?;
    let (to_acks, acks) = mpsc::channel(ACKS_WAITING_MAX);
    let driver = Driver {
        agent: agent.clone(),
        session,
        outlet,
        acks,
        to_acks: to_acks.downgrade(),
        waiting: None,
        untaken: Vec::new(),
        progress: Progress::default(),
        open: false,
        began: Instant::now(),
    };
    Ok(tokio::spawn(driver.run(to_acks)))
}

impl Driver {
    /// `_to_acks` keeps the channel open for as long as the driver runs.
    async fn run(mut self, _to_acks: mpsc::Sender<Ack>) {
        loop {
            match self.turn().await {
                Turn::Closed => return self.close().await,
                Turn::Taken => self.waiting = None,
                Turn::Ack(ack) => self.ack(ack).await,
                Turn::Notice(Ok(notice)) => {
                    if let Err(error) = self.notice(notice).await {
                        return self.outlet.end(error).await;
                    }
                }
                Turn::Notice(Err(error)) => return self.outlet.end(error).await,
            }
        }
    }

    /// Waits for the next thing to do. Acknowledgements do not interrupt the dialling of a node: they wait for it.
    async fn turn(&mut self) -> Turn {
        let busy = self.waiting.is_some();
        let mut next = pin!(next(&mut self.session, busy));
        let mut taken = pin!(hand_out(&self.outlet.mail, self.waiting.as_ref()));
        loop {
            tokio::select! {
                biased;
                () = self.outlet.mail.closed() => return Turn::Closed,
                Some(ack) = self.acks.recv() => {
                    if self.open {
                        return Turn::Ack(ack);
                    }
                    self.progress.ack(ack.seq);
                    self.untaken.push(ack);
                }
                () = &mut taken => return Turn::Taken,
                notice = &mut next => return Turn::Notice(notice),
            }
        }
    }

    async fn ack(&mut self, ack: Ack) {
        self.progress.ack(ack.seq);
        match self.session.acknowledge(ack.seq).await {
            Ok(()) => drop(ack.written.send(())),
            // The session has broken, as the next notice tells; the next session takes it.
            Err(_) => self.untaken.push(ack),
        }
    }

    /// The server knows everything up to `seq` to be acknowledged.
    fn taken_up_to(&mut self, seq: u64) {
        for ack in self.untaken.extract_if(.., |ack| ack.seq <= seq) {
            let _ = ack.written.send(());
        }
    }

    async fn notice(&mut self, notice: Notice) -> Result<(), Error> {
        let status = &self.outlet.status;
        match notice {
            Notice::Connecting { url } => status.send_modify(|status| status.connecting(url)),
            Notice::Connected { last_seq, .. } => {
                self.open = true;
                status.send_modify(|status| status.open());
                self.outlet.begin();
                self.taken_up_to(last_seq);
            }
            Notice::Event(event) => self.event(&event).await,
            Notice::CursorExpired { oldest_available_seq } => {
                status.send_modify(|status| status.cursor_expired = Some(oldest_available_seq));
            }
            Notice::BillingBlock { reason } => status.send_modify(|status| status.billing_block = Some(reason)),
            Notice::Disconnected { reason } => {
                self.open = false;
                status.send_modify(|status| status.failed(reason));
            }
            Notice::ConnectionFailed { reason } => status.send_modify(|status| status.failed(reason)),
            Notice::Reconnecting { .. } => {
                let policy = &self.agent.post().socket().policy;
                if self.outlet.begun.is_some() && self.began.elapsed() >= policy.give_up_after {
                    let reason = status.borrow().failure.clone().unwrap_or_default();
                    return Err(Error::Unavailable { reason, answer: None });
                }
                status.send_modify(|status| status.waiting());
            }
        }
        Ok(())
    }

    async fn event(&mut self, event: &Event) {
        match self.progress.event(event.seq) {
            Step::HandOut => {
                let Some(acks) = self.to_acks.upgrade() else { return };
                let acknowledge = Acknowledge::Session { acks, seq: event.seq };
                // What is no mail has no receiver here: a later acknowledgement covers it.
                self.waiting = Mail::of_event(&self.agent, event, acknowledge);
            }
            Step::AckAgain => {
                if self.session.acknowledge(event.seq).await.is_ok() {
                    self.taken_up_to(event.seq);
                }
            }
            Step::PassOver => {}
        }
    }

    /// Writes what was acknowledged before the listener ended.
    async fn close(mut self) {
        self.acks.close();
        while let Some(ack) = self.acks.recv().await {
            self.ack(ack).await;
        }
        self.session.close().await;
    }
}

/// The next notice; while mail waits for the program, nothing but signs of life.
async fn next(session: &mut Session, busy: bool) -> Result<Notice, Error> {
    if busy {
        match session.attend().await {}
    }
    session.next().await
}

/// Waits until the channel takes the mail.
async fn hand_out(channel: &mpsc::Sender<Result<Mail, Error>>, mail: Option<&Mail>) {
    let Some(mail) = mail else { return pending().await };
    match channel.reserve().await {
        Ok(place) => place.send(Ok(mail.clone())),
        // The listener is gone, which ends the driver.
        Err(_) => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_event_is_handed_out_once_and_acknowledged_again_when_the_server_forgot() {
        let mut progress = Progress::default();
        assert_eq!(progress.event(3), Step::HandOut);
        assert_eq!(progress.event(5), Step::HandOut);
        progress.ack(3);
        // A new session begins after what the server knows to be acknowledged.
        assert_eq!(progress.event(3), Step::AckAgain);
        assert_eq!(progress.event(5), Step::PassOver);
        assert_eq!(progress.event(8), Step::HandOut);
        progress.ack(8);
        progress.ack(5);
        assert_eq!(progress.event(8), Step::AckAgain, "acknowledgements never move back");
    }
}
