//! [`crate::Mail::ack`]: how an acknowledgement is sent depends on how the mail came.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::{StreamExt, stream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::Error;
use crate::agent::Agent;

/// How long an acknowledgement may wait for a session: a few reconnects.
const WITHIN: Duration = Duration::from_secs(30);
/// Messages that are marked read at the same time.
const MARKS_AT_ONCE: usize = 8;

/// How to acknowledge one mail.
#[derive(Clone)]
pub(crate) enum Acknowledge {
    /// Over the WebSocket session that its listener has now.
    Session { acks: mpsc::Sender<Ack>, seq: u64 },
    /// By marking it and all before it read.
    Polled { unread: Arc<Unread>, place: u64 },
    /// By marking it read.
    Read,
}

/// An acknowledgement for the listener's driver.
pub(crate) struct Ack {
    /// It covers every event up to this position.
    pub seq: u64,
    /// Told when the frame is written.
    pub written: oneshot::Sender<()>,
}

/// The mail that a polling listener has handed out and that was not acknowledged, by its place in the listener.
#[derive(Default)]
pub(crate) struct Unread(Mutex<BTreeMap<u64, String>>);

impl Acknowledge {
    pub(crate) async fn acknowledge(&self, agent: &Agent, id: &str) -> Result<(), Error> {
        match self {
            Acknowledge::Session { acks, seq } => over_session(acks, *seq).await,
            Acknowledge::Polled { unread, place } => unread.mark_up_to(*place, agent).await,
            Acknowledge::Read => agent.mark_read(id).await,
        }
    }
}

async fn over_session(acks: &mpsc::Sender<Ack>, seq: u64) -> Result<(), Error> {
    let (written, told) = oneshot::channel();
    let answer = async {
        acks.send(Ack { seq, written }).await.ok()?;
        told.await.ok()
    };
    match timeout(WITHIN, answer).await {
        Ok(Some(())) => Ok(()),
        Ok(None) => Err(Error::Unavailable {
            reason: "the listener has ended: the mail comes again with the next one".to_owned(),
            answer: None,
        }),
        Err(_) => Err(Error::OutcomeUnknown {
            reason: format!("no session took the acknowledgement within {} s", WITHIN.as_secs()),
            answer: None,
        }),
    }
}

impl Unread {
    pub(super) fn handed_out(&self, place: u64, id: &str) {
        self.lock().insert(place, id.to_owned());
    }

    /// Marks everything up to a place read. What could not be marked stays for the next acknowledgement.
    async fn mark_up_to(&self, place: u64, agent: &Agent) -> Result<(), Error> {
        let covered: Vec<(u64, String)> = {
            let unread = self.lock();
            unread.range(..=place).map(|(place, id)| (*place, id.clone())).collect()
        };
        let marks = stream::iter(covered).map(|(place, id)| async move { (place, agent.mark_read(&id).await) });
        let mut marks = marks.buffer_unordered(MARKS_AT_ONCE);
        let mut end = Ok(());
        while let Some((place, marked)) = marks.next().await {
            match marked {
                Err(error) if !is_gone(&error) => end = Err(error),
                _ => drop(self.lock().remove(&place)),
            }
        }
        end
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The message has expired, or was removed: it cannot come again.
fn is_gone(error: &Error) -> bool {
    matches!(error, Error::Refused(answer) if answer.status.as_u16() == 404)
}
