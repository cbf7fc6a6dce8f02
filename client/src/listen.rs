//! Mail as a stream that never ends by itself: it connects again, goes on where it was, and moves to another node when
//! one fails.
//!
//! ```text
//!   WebSocket:     kite::Session ─► session::Driver ─► channel ─► Listener ─► Mail ─┐
//!                        ▲                 ▲                                        │ ack
//!                        └── ack frame ────┴────────────────────────────────────────┘
//!   long polling:  GET /v1/messages?unreadOnly&wait ─► poll::Driver ─► … ─► Mail ─► PATCH /v1/messages/:id
//! ```

mod acknowledge;
mod poll;
mod session;
mod status;

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::Error;
use crate::agent::Agent;
use crate::call::awaitable;
use crate::mail::Mail;

pub(crate) use acknowledge::Acknowledge;
pub use status::{Connection, Status};

/// Upper bound on the messages that are read ahead of the program. They are not acknowledged, so they are not lost
/// with the program.
const AHEAD_MAX: usize = 32;
/// A listener that ends waits this long for what it still says to the server.
const GOODBYE: Duration = Duration::from_secs(2);

/// How to listen. `.await` begins and returns a [`Listener`].
///
/// # Errors
/// - [`Error::Session`] or [`Error::Refused`]: the server does not accept the key, the team or the agent.
/// - [`Error::Unavailable`]: no node took the session within the [`crate::retry::RetryPolicy`].
#[derive(Clone)]
#[must_use = "a listener begins when it is awaited"]
pub struct Listen {
    agent: Agent,
    client_id: Option<String>,
}

/// An agent's mail as it arrives: a [`Stream`] of [`Mail`]. It ends only after an error that reconnecting does not cure,
/// such as a revoked key. Dropping it ends it.
#[derive(Debug)]
pub struct Listener {
    mail: mpsc::Receiver<Result<Mail, Error>>,
    status: watch::Receiver<Status>,
    driver: JoinHandle<()>,
}

/// Where a driver puts what it receives.
struct Outlet {
    mail: mpsc::Sender<Result<Mail, Error>>,
    status: watch::Sender<Status>,
    /// Takes the end of the beginning: the first session is open, or there will be none.
    begun: Option<oneshot::Sender<Result<(), Error>>>,
}

impl Agent {
    /// Listens to this agent's mail.
    ///
    /// ```no_run
    /// # async fn example(alpha: agentpost::Agent) -> Result<(), agentpost::Error> {
    /// use agentpost::TryStreamExt;
    ///
    /// let mut mail = alpha.listen().await?;
    /// while let Some(m) = mail.try_next().await? {
    ///     println!("{}: {}", m.from, m.text());
    ///     m.ack().await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// The stream begins with the oldest mail that was not acknowledged. Within one listener every mail comes once; mail
    /// that was not acknowledged comes again with the next listener. When a node fails, the listener goes on at another
    /// one after 1 s, then 2, 4, … 30 s.
    ///
    /// # WebSocket or long polling
    /// The first frame of a WebSocket session has to name the key's team, and no answer of the server tells which team a
    /// key belongs to. So a listener uses a WebSocket if the team is known (`KITE_TEAM_ID` or
    /// [`crate::Builder::team`]), and long polling of unread mail if not. Programs look the same; these are the
    /// differences:
    ///
    /// | | WebSocket | long polling |
    /// |---|---|---|
    /// | begins with | the first mail after the agent's acknowledgements over WebSockets | the first unread mail |
    /// | [`Mail::ack`] | moves the agent's cursor | marks mail read, which receipts show |
    /// | quota | takes none of the daily reads | takes one read for each request: one a minute, or one for each burst of mail |
    /// | [`Mail::details`] | `None` | there |
    ///
    /// Two listeners of one agent both get all of its mail.
    pub fn listen(&self) -> Listen {
        Listen {
            agent: self.clone(),
            client_id: None,
        }
    }
}

impl Listen {
    /// Listens under a name of its own, at most 128 bytes: the server keeps a cursor for each name, so several programs can
    /// each work through all mail of the agent. Needs a WebSocket.
    pub fn client_id(mut self, name: impl Into<String>) -> Self {
        self.client_id = Some(name.into());
        self
    }

    async fn run(self) -> Result<Listener, Error> {
        let (mail, received) = mpsc::channel(AHEAD_MAX);
        let (status, shown) = watch::channel(Status::default());
        let (begun, beginning) = oneshot::channel();
        let outlet = Outlet {
            mail,
            status,
            begun: Some(begun),
        };
        let driver = if self.agent.post().team().is_some() {
            session::start(&self.agent, self.client_id, outlet)?
        } else if self.client_id.is_some() {
            let why = "a client id needs a WebSocket session, which needs the team: set KITE_TEAM_ID or Builder::team";
            return Err(Error::Invalid(why.to_owned()));
        } else {
            poll::start(&self.agent, outlet)
        };
        let listener = Listener {
            mail: received,
            status: shown,
            driver,
        };
        let ended = || Error::Malformed("the listener ended before it began".to_owned());
        beginning.await.map_err(|_| ended())??;
        Ok(listener)
    }
}

awaitable!(Listen => Listener);

impl Listener {
    /// How the connection is now.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Follows the connection: the receiver is told of every change of [`Listener::status`].
    pub fn watch(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Ends the session in good order, so that the server has every acknowledgement that was given. Dropping a listener
    /// does the same in the background, as long as the runtime lives.
    pub async fn close(self) {
        let Listener { mail, driver, .. } = self;
        drop(mail);
        // A node that does not answer must not hold up the end of the program.
        let _ = tokio::time::timeout(GOODBYE, driver).await;
    }
}

impl Stream for Listener {
    type Item = Result<Mail, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.mail.poll_recv(context)
    }
}

impl Outlet {
    /// The first session is open.
    fn begin(&mut self) {
        if let Some(begun) = self.begun.take() {
            let _ = begun.send(Ok(()));
        }
    }

    /// Nothing more will come.
    async fn end(mut self, error: Error) {
        self.status.send_modify(|status| status.ended(error.to_string()));
        match self.begun.take() {
            Some(begun) => drop(begun.send(Err(error))),
            None => drop(self.mail.send(Err(error)).await),
        }
    }
}
