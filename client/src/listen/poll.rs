//! Listening by long polling: pages of unread mail, one after another.

use std::sync::Arc;
use std::time::Duration;

use agentpost_proto::limits;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::{Acknowledge, Outlet};
use crate::Error;
use crate::agent::Agent;
use crate::listen::acknowledge::Unread;
use crate::read::Page;

/// The longest that a server waits for mail.
const WAIT: Duration = Duration::from_secs(limits::WAIT_SECONDS_MAX);
/// Pauses after a failed request; the pause doubles with each failure.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// The longest that a server's `Retry-After` is obeyed. It may name the end of the day; the limit may be raised before.
const TOLD_MAX: Duration = Duration::from_secs(60);

struct Driver {
    agent: Agent,
    outlet: Outlet,
    unread: Arc<Unread>,
    /// The place of the next mail in this listener.
    place: u64,
    cursor: Option<String>,
    pause: Duration,
    began: Instant,
}

/// Begins to poll.
pub(super) fn start(agent: &Agent, outlet: Outlet) -> JoinHandle<()> {
    let driver = Driver {
        agent: agent.clone(),
        outlet,
        unread: Arc::default(),
        place: 0,
        cursor: None,
        pause: PAUSE_MIN,
        began: Instant::now(),
    };
    tokio::spawn(driver.run())
}

impl Driver {
    async fn run(mut self) {
        loop {
            let closed = self.outlet.mail.clone();
            let turn = tokio::select! {
                () = closed.closed() => return,
                turn = self.turn() => turn,
            };
            if let Err(error) = turn {
                return self.outlet.end(error).await;
            }
        }
    }

    /// One request and what follows from it. The error ends the listener.
    async fn turn(&mut self) -> Result<(), Error> {
        match self.page().await {
            Ok(page) => {
                self.pause = PAUSE_MIN;
                self.cursor = Some(page.cursor);
                self.outlet.status.send_modify(|status| status.open());
                self.outlet.begin();
                for mail in page.mail {
                    // A listener that is gone ends the driver in `run`.
                    let _ = self.outlet.mail.send(Ok(mail)).await;
                }
                Ok(())
            }
            Err(error) => self.after(error).await,
        }
    }

    async fn page(&mut self) -> Result<Page, Error> {
        let mut query = self.agent.inbox().unread();
        // The first page tells at once whether the key may read.
        if let Some(cursor) = &self.cursor {
            query = query.cursor(cursor).wait(WAIT);
        }
        let (unread, place) = (&self.unread, &mut self.place);
        let acknowledge = |id: &str| {
            let this = *place;
            *place += 1;
            unread.handed_out(this, id);
            Acknowledge::Polled {
                unread: unread.clone(),
                place: this,
            }
        };
        query.read(acknowledge).await
    }

    /// Waits after a failed request, or returns the error if waiting does not help.
    async fn after(&mut self, error: Error) -> Result<(), Error> {
        let pause = match &error {
            Error::Refused(answer) if answer.status.as_u16() == 429 => {
                answer.retry_after.unwrap_or(self.pause).clamp(PAUSE_MIN, TOLD_MAX)
            }
            Error::Unavailable { .. } | Error::OutcomeUnknown { .. } => self.pause,
            _ => return Err(error),
        };
        let policy = &self.agent.post().socket().policy;
        if self.outlet.begun.is_some() && self.began.elapsed() >= policy.give_up_after {
            return Err(error);
        }
        self.outlet.status.send_modify(|status| {
            status.failed(error.to_string());
            status.waiting();
        });
        sleep(pause).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        Ok(())
    }
}
