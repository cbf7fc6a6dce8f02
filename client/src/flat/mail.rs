//! Calls of the Abba Baba face: send, read and mark mail as an agent.

use std::time::Duration;

use crate::api::abbababa::{
    BatchRequest, BatchResponse, GetResponse, ListResponse, MarkReadRequest, Message, SendRequest, SendResponse,
};
use crate::http::{Request, fresh_key, segment, with_query};
use crate::{Client, Consistency, Error, Order};

/// Which page of an inbox to read.
#[derive(Debug, Clone, Default)]
pub struct ListQuery {
    /// Only what was never marked read.
    pub unread_only: bool,
    /// Where the last page ended.
    pub cursor: Option<String>,
    /// Messages at most; the server's default is 50, its maximum 200.
    pub limit: Option<usize>,
    /// Seconds to wait for mail when there is none.
    pub wait_s: Option<u64>,
    /// The direction; oldest first when absent.
    pub order: Option<Order>,
    /// How fresh the page must be; linearizable when absent.
    pub consistency: Option<Consistency>,
}

impl ListQuery {
    fn path(&self) -> String {
        let mut pairs = Vec::new();
        if self.unread_only {
            pairs.push(("unreadOnly", "true".to_owned()));
        }
        if let Some(cursor) = &self.cursor {
            pairs.push(("cursor", cursor.clone()));
        }
        if let Some(limit) = self.limit {
            pairs.push(("limit", limit.to_string()));
        }
        if let Some(wait_s) = self.wait_s {
            pairs.push(("wait", wait_s.to_string()));
        }
        if let Some(order) = self.order {
            pairs.push(("order", order.name().to_owned()));
        }
        if let Some(consistency) = self.consistency {
            let text = if consistency == Consistency::Local {
                "local"
            } else {
                "linearizable"
            };
            pairs.push(("consistency", text.to_owned()));
        }
        with_query("/v1/messages", &pairs)
    }
}

impl Client {
    /// Sends a message. Without an idempotency key it gets a fresh one, so that an attempt of unknown outcome can be
    /// repeated and the message is stored once.
    pub async fn send(&self, mut message: SendRequest) -> Result<SendResponse, Error> {
        let key = message.idempotency_key.take().unwrap_or_else(fresh_key);
        self.call(Request::post("/v1/messages").json(&message)?.idempotency_key(key))
            .await
    }

    /// Sends up to 100 messages, each decided alone; the results stand in their order. Messages without an idempotency
    /// key get fresh ones, as in [`Client::send`].
    pub async fn send_batch(&self, mut messages: Vec<SendRequest>) -> Result<BatchResponse, Error> {
        for message in &mut messages {
            message.idempotency_key.get_or_insert_with(fresh_key);
        }
        let request = Request::post("/v1/messages/batch").json(&BatchRequest { messages })?;
        self.call(request.repeat(crate::retry::Repeat::Safely)).await
    }

    /// Reads a page of the caller's inbox.
    pub async fn list(&self, query: &ListQuery) -> Result<ListResponse, Error> {
        let patience = Duration::from_secs(query.wait_s.unwrap_or(0));
        self.call(Request::get(query.path()).patience(patience)).await
    }

    /// Reads one message that the caller received or sent.
    pub async fn get(&self, id: &str) -> Result<Message, Error> {
        let reply: GetResponse = self.call(Request::get(format!("/v1/messages/{}", segment(id)))).await?;
        Ok(reply.message)
    }

    /// Marks a received message read; the time of the first marking stays.
    pub async fn mark_read(&self, id: &str) -> Result<(), Error> {
        self.mark(id, MarkReadRequest { read: true }).await
    }

    /// Makes a received message unread again.
    pub async fn mark_unread(&self, id: &str) -> Result<(), Error> {
        self.mark(id, MarkReadRequest { read: false }).await
    }

    async fn mark(&self, id: &str, body: MarkReadRequest) -> Result<(), Error> {
        let request = Request::patch(format!("/v1/messages/{}", segment(id))).json(&body)?;
        self.request(&request).await.map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_names_only_what_was_asked() {
        assert_eq!(ListQuery::default().path(), "/v1/messages");
        let query = ListQuery {
            unread_only: true,
            cursor: Some("c_-".to_owned()),
            limit: Some(10),
            wait_s: Some(5),
            order: Some(Order::Desc),
            consistency: Some(Consistency::Local),
        };
        let all = "/v1/messages?unreadOnly=true&cursor=c_-&limit=10&wait=5&order=desc&consistency=local";
        assert_eq!(query.path(), all);
    }
}
