//! `POST /api/v1/agents/messages`: mail of the Kite API, whose answer tells the team's usage.

use crate::Error;
use crate::api::kite::{SendRequest, SendResponse};
use crate::call::awaitable;
use crate::http::{Request, fresh_key};
use crate::kite::Kite;

/// Mail of the Kite API. `.await` sends it. It carries a fresh idempotency key, so an attempt of unknown outcome is
/// repeated and the message is stored once.
///
/// # Errors
/// The errors of [`crate::Draft`].
#[derive(Clone)]
#[must_use = "the mail is sent when it is awaited"]
pub struct KiteDraft {
    kite: Kite,
    request: SendRequest,
}

impl Kite {
    /// Mail from an agent to another one of the team, as plain text.
    pub fn send(&self, from: impl Into<String>, to: impl Into<String>, body: impl Into<String>) -> KiteDraft {
        KiteDraft {
            kite: self.clone(),
            request: SendRequest {
                from: from.into(),
                to: to.into(),
                body: body.into(),
                thread_id: None,
                reply_to_id: None,
            },
        }
    }
}

impl KiteDraft {
    /// The conversation that it belongs to.
    pub fn thread(mut self, thread: impl Into<String>) -> Self {
        self.request.thread_id = Some(thread.into());
        self
    }

    /// The id of the event that it answers.
    pub fn reply_to(mut self, id: impl Into<String>) -> Self {
        self.request.reply_to_id = Some(id.into());
        self
    }

    async fn run(self) -> Result<SendResponse, Error> {
        let request = Request::post("/api/v1/agents/messages")
            .query_if("team_id", self.kite.post.team())
            .json(&self.request)?
            .idempotency_key(fresh_key());
        self.kite.post.http().call(request).await
    }
}

awaitable!(KiteDraft => SendResponse);
