//! Reading an inbox page by page, with or without waiting, and marking mail read.

use std::time::Duration;

use crate::Error;
use crate::agent::Agent;
use crate::api::abbababa::{GetResponse, ListResponse, MarkReadRequest};
use crate::call::awaitable;
use crate::http::{Request, segment};
use crate::listen::Acknowledge;
use crate::mail::Mail;
use crate::words::{Consistency, Order};

/// A query for a page of an inbox. `.await` reads it and returns a [`Page`].
///
/// # Errors
/// [`Error::Refused`] with 400 for a cursor of another inbox or order and with 429 if the reads of the day are used up;
/// [`Error::Unavailable`] or [`Error::OutcomeUnknown`] if no node answered.
#[derive(Clone)]
#[must_use = "a page is read when it is awaited"]
pub struct InboxQuery {
    agent: Agent,
    unread: bool,
    from: Option<String>,
    topic: Option<String>,
    cursor: Option<String>,
    limit: Option<usize>,
    wait: Duration,
    order: Option<Order>,
    consistency: Option<Consistency>,
}

/// A page of an inbox.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Page {
    /// In the order that was asked for.
    pub mail: Vec<Mail>,
    /// Where the next page begins, for [`InboxQuery::cursor`]. It is valid also when nothing more is there yet.
    pub cursor: String,
}

impl Agent {
    /// A page of this agent's inbox: the oldest 50 messages, unless the query says otherwise. Reading marks nothing
    /// read: [`Mail::ack`] does.
    ///
    /// ```no_run
    /// # async fn example(alpha: agentpost::Agent) -> Result<(), agentpost::Error> {
    /// use std::time::Duration;
    ///
    /// let page = alpha.inbox().unread().wait(Duration::from_secs(30)).await?;
    /// for mail in &page.mail {
    ///     println!("{}: {}", mail.from, mail.text());
    ///     mail.ack().await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn inbox(&self) -> InboxQuery {
        InboxQuery {
            agent: self.clone(),
            unread: false,
            from: None,
            topic: None,
            cursor: None,
            limit: None,
            wait: Duration::ZERO,
            order: None,
            consistency: None,
        }
    }

    /// One message that this agent received or sent.
    ///
    /// # Errors
    /// [`Error::Refused`] with 404 if there is none.
    pub async fn message(&self, id: &str) -> Result<Mail, Error> {
        let reply: GetResponse = self.call(Request::get(format!("/v1/messages/{}", segment(id)))).await?;
        Ok(Mail::of_message(self, reply.message, Acknowledge::Read))
    }

    /// Marks a received message read. Doing it again changes nothing: the time of the first marking stays.
    ///
    /// # Errors
    /// [`Error::Refused`] with 404 if this agent has received no such message.
    pub async fn mark_read(&self, id: &str) -> Result<(), Error> {
        self.mark(id, true).await
    }

    /// Makes a received message unread again.
    ///
    /// # Errors
    /// See [`Agent::mark_read`].
    pub async fn mark_unread(&self, id: &str) -> Result<(), Error> {
        self.mark(id, false).await
    }

    async fn mark(&self, id: &str, read: bool) -> Result<(), Error> {
        let request = Request::patch(format!("/v1/messages/{}", segment(id))).json(&MarkReadRequest { read })?;
        self.request(&request).await.map(drop)
    }
}

impl InboxQuery {
    /// Only messages that were never marked read.
    pub fn unread(mut self) -> Self {
        self.unread = true;
        self
    }

    /// Only messages of this sender.
    pub fn from(mut self, agent: impl Into<String>) -> Self {
        self.from = Some(agent.into());
        self
    }

    /// Only messages of this topic.
    pub fn topic(mut self, topic: impl Into<String>) -> Self {
        self.topic = Some(topic.into());
        self
    }

    /// Begins where an earlier page ended: [`Page::cursor`].
    pub fn cursor(mut self, cursor: impl Into<String>) -> Self {
        self.cursor = Some(cursor.into());
        self
    }

    /// At most so many messages, from 1 to 200.
    pub fn limit(mut self, messages: usize) -> Self {
        self.limit = Some(messages);
        self
    }

    /// If there is nothing, waits so long for mail: whole seconds, at most 60. An empty page is returned when the time
    /// is over.
    pub fn wait(mut self, time: Duration) -> Self {
        self.wait = time;
        self
    }

    /// The direction.
    pub fn order(mut self, order: Order) -> Self {
        self.order = Some(order);
        self
    }

    /// How fresh the page is; [`Consistency::Linearizable`] by default.
    pub fn consistency(mut self, consistency: Consistency) -> Self {
        self.consistency = Some(consistency);
        self
    }

    fn request(&self) -> Request {
        let wait_s = self.wait.as_secs();
        Request::get("/v1/messages")
            .query_if("unreadOnly", self.unread.then_some("true"))
            .query_if("fromAgentId", self.from.as_ref())
            .query_if("topic", self.topic.as_ref())
            .query_if("cursor", self.cursor.as_ref())
            .query_if("limit", self.limit.map(|limit| limit.to_string()))
            .query_if("wait", (wait_s > 0).then(|| wait_s.to_string()))
            .query_if("order", self.order.map(Order::name))
            .query_if("consistency", self.consistency.map(Consistency::name))
            .patience(Duration::from_secs(wait_s))
    }

    /// The page, with what [`Mail::ack`] does for each message.
    pub(crate) async fn read(self, mut acknowledge: impl FnMut(&str) -> Acknowledge) -> Result<Page, Error> {
        let reply: ListResponse = self.agent.call(self.request()).await?;
        let mail = reply.messages.into_iter().map(|message| {
            let acknowledge = acknowledge(&message.id);
            Mail::of_message(&self.agent, message, acknowledge)
        });
        Ok(Page {
            mail: mail.collect(),
            cursor: reply.cursor,
        })
    }

    async fn run(self) -> Result<Page, Error> {
        self.read(|_| Acknowledge::Read).await
    }
}

awaitable!(InboxQuery => Page);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::Agentpost;

    #[test]
    fn a_query_names_only_what_was_asked() {
        let post = Agentpost::builder("http://127.0.0.1:1").key("k").build().unwrap();
        let agent = post.agent("a");
        assert_eq!(agent.inbox().request().path(), "/v1/messages");
        let query = agent
            .inbox()
            .unread()
            .from("b")
            .topic("t/x")
            .cursor("c_-")
            .limit(10)
            .wait(Duration::from_millis(5_900))
            .order(Order::Desc)
            .consistency(Consistency::Local);
        let all = "/v1/messages?unreadOnly=true&fromAgentId=b&topic=t%2Fx&cursor=c_-&limit=10&wait=5&order=desc&consistency=local";
        assert_eq!(query.request().path(), all);
    }
}
