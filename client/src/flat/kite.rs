//! The one REST call of the Kite face.

use crate::api::kite::{SendRequest, SendResponse};
use crate::error::Answer;
use crate::http::{Request, fresh_key, with_query};
use crate::{Client, Error};

impl Client {
    /// Sends agent mail. Without `team_id` it is the key's team. It carries a fresh idempotency key, so that an attempt
    /// of unknown outcome can be repeated and the message is stored once.
    pub async fn kite_send(&self, team_id: Option<&str>, message: &SendRequest) -> Result<SendResponse, Error> {
        let answer = self.kite_send_for_answer(team_id, message).await?;
        serde_json::from_str(&answer.body).map_err(|e| Error::Malformed(e.to_string()))
    }

    /// [`Client::kite_send`] for servers whose answer may lack some of the fields.
    pub async fn kite_send_for_answer(&self, team_id: Option<&str>, message: &SendRequest) -> Result<Answer, Error> {
        let pairs: Vec<_> = team_id.map(|team| ("team_id", team.to_owned())).into_iter().collect();
        let path = with_query("/api/v1/agents/messages", &pairs);
        self.request(&Request::post(path).json(message)?.idempotency_key(fresh_key()))
            .await
    }
}
