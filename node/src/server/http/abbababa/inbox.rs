//! `GET /messages`: a page of the caller's inbox, at once or by long poll.
//!
//! A long poll registers its listener before it reads, so nothing is missed between its read and its wait. After a
//! wake-up it examines only new entries, and it authorises again before it answers, so a key that was revoked meanwhile
//! gets nothing.

use agentpost_proto::command::Permission;
use agentpost_proto::id::{self, AgentId, TeamId};
use agentpost_proto::limits;
use agentpost_raft_store::core::keys::ReadState;
use agentpost_raft_store::core::kv::Order;
use agentpost_raft_store::core::query;
use agentpost_raft_store::core::query::inbox::{InboxItem, Page, PageQuery};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use std::time::Duration;

use crate::server::auth;
use crate::server::error::{ApiError, Result, json_response};
use crate::server::http::app_state::{App, AppState};
use crate::server::http::input::{Consistency, PAGE_DEFAULT, Parameters};
use crate::server::http::ratelimit;
use crate::shard::local_state::LocalState;
use crate::wire::json::{Writer, push_text};
use crate::wire::message::{Shown, push_message};

/// The parameters of a page.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    order: Order,
    limit: usize,
    offset: usize,
    state: Option<ReadState>,
    from: Option<String>,
    topic: Option<String>,
    /// Whether the filter matches no message: the inbox holds no delivery states.
    nothing: bool,
    cursor: Option<String>,
    wait: Duration,
}

impl Wanted {
    fn of(parameters: &Parameters) -> Result<Self> {
        let limit = parameters
            .number("limit", 1, limits::PAGE_MAX as u64)?
            .unwrap_or(PAGE_DEFAULT as u64);
        let offset = parameters
            .number("offset", 0, limits::PAGE_EXAMINED_MAX as u64)?
            .unwrap_or(0);
        let wait_s = parameters.number("wait", 0, limits::WAIT_SECONDS_MAX)?.unwrap_or(0);
        let cursor = parameters.get("cursor")?.map(str::to_owned);
        if offset > 0 && (cursor.is_some() || wait_s > 0) {
            return Err(ApiError::field("offset", "cannot be combined with cursor or wait"));
        }
        let (state, undeliverable) = read_state(parameters)?;
        let from = parameters.get("fromAgentId")?;
        if from.is_some_and(|from| from.parse::<AgentId>().is_err()) {
            return Err(ApiError::field("fromAgentId", "is not an agent id"));
        }
        let topic = parameters.get("topic")?;
        if topic.is_some_and(|topic| id::validate_name("topic", topic).is_err()) {
            return Err(ApiError::field("topic", "is not the name of a topic"));
        }
        Ok(Wanted {
            order: parameters.order()?,
            limit: limit as usize,
            offset: offset as usize,
            state,
            from: from.map(str::to_owned),
            topic: topic.map(str::to_owned),
            nothing: undeliverable,
            cursor,
            wait: Duration::from_secs(wait_s),
        })
    }

    fn query(&self, after_seq: Option<u64>, skip: usize, wall_ms: u64) -> PageQuery<'_> {
        PageQuery {
            after_seq,
            order: self.order,
            skip,
            limit: self.limit,
            state: self.state,
            from: self.from.as_deref(),
            topic: self.topic.as_deref(),
            wall_ms,
        }
    }
}

/// `unreadOnly` of one dialect and `status` of the other. True stands for `delivered`, which matches no message.
fn read_state(parameters: &Parameters) -> Result<(Option<ReadState>, bool)> {
    let unread_only = match parameters.get("unreadOnly")? {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return Err(ApiError::field("unreadOnly", "must be true or false")),
    };
    let (state, delivered) = match parameters.get("status")? {
        None => (None, false),
        Some("unread" | "pending") => (Some(ReadState::Unread), false),
        Some("read") => (Some(ReadState::Read), false),
        Some("delivered") => (None, true),
        Some(_) => return Err(ApiError::field("status", "must be unread, pending, delivered or read")),
    };
    match (unread_only, state) {
        (true, Some(ReadState::Read)) => Err(ApiError::field("status", "read contradicts unreadOnly")),
        (true, _) => Ok((Some(ReadState::Unread), delivered)),
        (false, state) => Ok((state, delivered)),
    }
}

/// Answers with a page; with `wait`, as soon as it has an entry, or at the deadline.
pub async fn list(State(app): App, request: Request) -> Result<Response> {
    let (parts, _) = request.into_parts();
    let parameters = Parameters::of(&parts.uri)?;
    let consistency = Consistency::of(&parameters);
    let wanted = Wanted::of(&parameters);
    // Authorisation errors come before errors in the parameters.
    let reading = app
        .reader(&parts.headers, *consistency.as_ref().unwrap_or(&Consistency::Local))
        .await?;
    reading.caller.require(Permission::Read)?;
    let agent = reading.caller.agent(&parts.headers)?;
    consistency?;
    let wanted = wanted?;
    let team = reading.caller.team;
    let after_seq = match &wanted.cursor {
        Some(text) => cursor_seq(&app, team, &agent, wanted.order, text)?,
        None => None,
    };
    let leases = &app.http.leases;
    let taken = leases.take(reading.caller.principal(), team, agent.as_str(), &reading.state);
    let standing = taken.await?;
    let inbox = Inbox {
        app: &app,
        team,
        agent: &agent,
        key_hash: reading.key_hash,
        wanted: &wanted,
    };
    let page = if wanted.nothing {
        Page {
            items: Vec::new(),
            last_seq: after_seq,
            skipped: 0,
            at_end: true,
        }
    } else if wanted.wait.is_zero() {
        inbox.page(&reading.state, after_seq).await?
    } else {
        inbox.poll(after_seq).await?
    };
    Ok(ratelimit::with_usage(Some(standing), inbox.answer(&page)?))
}

/// The position of a cursor. Its value for "before the first entry" is one that no entry has.
fn cursor_seq(app: &AppState, team: TeamId, agent: &AgentId, order: Order, text: &str) -> Result<Option<u64>> {
    let seq = app.cursors.decode(team, agent.as_str(), order, text);
    let seq = seq.map_err(|_| ApiError::field("cursor", "is not a cursor of this inbox in this order"))?;
    Ok((seq != start(order)).then_some(seq))
}

fn start(order: Order) -> u64 {
    match order {
        Order::Ascending => 0,
        Order::Descending => u64::MAX,
    }
}

struct Inbox<'a> {
    app: &'a AppState,
    team: TeamId,
    agent: &'a AgentId,
    key_hash: [u8; 32],
    wanted: &'a Wanted,
}

impl Inbox<'_> {
    /// A page after `after_seq`, which may be empty although there is more: its cursor moves on. The SDK's dialect pages
    /// by offset and takes an empty page for the end, so a page at an offset is looked for until the end, or until the node
    /// stops.
    async fn page(&self, state: &LocalState, after_seq: Option<u64>) -> Result<Page> {
        let mut page = self.turn(state, after_seq, self.wanted.offset).await?;
        let mut left = self.wanted.offset - page.skipped;
        while self.wanted.offset > 0 && page.items.is_empty() && !page.at_end {
            if self.app.http.lifetime.shutdown.is_cancelled() {
                return Err(ApiError::unavailable("this node stops; ask another one"));
            }
            page = self.turn(state, page.last_seq, left).await?;
            left -= page.skipped;
        }
        Ok(page)
    }

    /// Examines as many entries as one read may, on the pool of reads.
    async fn turn(&self, state: &LocalState, after_seq: Option<u64>, skip: usize) -> Result<Page> {
        let (team, agent, wanted) = (self.team, self.agent.clone(), self.wanted.clone());
        let wall_time = &self.app.services.wall_time;
        let wall_ms = wall_time.now_ms();
        let page = auth::read(state, team, self.key_hash, wall_time, move |state| {
            let query = wanted.query(after_seq, skip, wall_ms);
            Ok(query::inbox::page(&state, team, agent.as_str(), &query)?)
        });
        page.await
    }

    /// Waits for a page with entries. After the read barrier this node's state only advances, so its local state
    /// suffices.
    async fn poll(&self, after_seq: Option<u64>) -> Result<Page> {
        let services = &self.app.services;
        let deadline = services.wall_time.clock().now() + self.wanted.wait;
        let mut listener = services.replica.wakeups.inbox(self.team, self.agent.as_str());
        let mut state = services.replica.reader.local();
        let mut page = self.page(&state, after_seq).await?;
        // New mail lies after an ascending cursor; nothing new ever lies after a descending one.
        let grows = |page: &Page| self.wanted.order == Order::Ascending || page.last_seq.is_none();
        while page.items.is_empty() && (grows(&page) || !page.at_end) {
            // Between two turns of a scan it does not wait, but it also ends: the cursor of an empty page goes on there.
            let over = tokio::select! {
                biased;
                () = tokio::time::sleep_until(deadline) => true,
                () = self.app.http.lifetime.shutdown.cancelled() => true,
                () = std::future::ready(()), if !page.at_end => false,
                () = listener.woken() => false,
            };
            state = services.replica.reader.local();
            if over {
                break;
            }
            page = self.page(&state, page.last_seq).await?;
        }
        match auth::find(&state, &self.key_hash, services.wall_time.now_ms())? {
            auth::Finding::Valid(_) => Ok(page),
            auth::Finding::Refused | auth::Finding::Unknown => Err(auth::refused()),
        }
    }

    fn answer(&self, page: &Page) -> Result<Response> {
        let messages = messages(&page.items, self.agent.as_str())?;
        let seq = page.last_seq.unwrap_or(start(self.wanted.order));
        let cursor = self
            .app
            .cursors
            .encode(self.team, self.agent.as_str(), self.wanted.order, seq);
        let mut out = Vec::with_capacity(2 * messages.len() + 256);
        let mut object = Writer::new(&mut out);
        object.raw("success", "true");
        object.raw("messages", &messages);
        object.raw("data", &messages);
        push_text(object.key("cursor"), &cursor);
        let Wanted { limit, offset, .. } = self.wanted;
        let count = page.items.len();
        object.raw(
            "pagination",
            format!("{{\"limit\":{limit},\"offset\":{offset},\"count\":{count}}}"),
        );
        object.end();
        Ok(json_response(StatusCode::OK, out))
    }
}

fn messages(items: &[InboxItem], agent: &str) -> Result<Vec<u8>> {
    let bytes: usize = items
        .iter()
        .map(|item| item.message.body.len() + item.message.extras.len() + 640)
        .sum();
    let mut out = Vec::with_capacity(bytes + 2);
    out.push(b'[');
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        push_message(&mut out, &Shown::received(&item.message, agent, item.read_at_ms)?);
    }
    out.push(b']');
    Ok(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn wanted(query: &str) -> Result<Wanted> {
        Wanted::of(&Parameters::of(&format!("/v1/messages?{query}").parse().unwrap())?)
    }

    #[test]
    fn defaults_are_fifty_oldest_first_of_all() {
        let expected = Wanted {
            order: Order::Ascending,
            limit: 50,
            offset: 0,
            state: None,
            from: None,
            topic: None,
            nothing: false,
            cursor: None,
            wait: Duration::ZERO,
        };
        assert_eq!(wanted("").unwrap(), expected);
        assert_eq!(
            wanted("unreadOnly=false&limit=50&offset=0&order=asc&wait=0&unknown=1&unknown=2").unwrap(),
            expected
        );
    }

    #[test]
    fn both_dialects_filter() {
        assert_eq!(wanted("unreadOnly=true").unwrap().state, Some(ReadState::Unread));
        assert_eq!(wanted("status=unread").unwrap().state, Some(ReadState::Unread));
        assert_eq!(
            wanted("status=pending&unreadOnly=true").unwrap().state,
            Some(ReadState::Unread)
        );
        assert_eq!(wanted("status=read").unwrap().state, Some(ReadState::Read));
        assert!(wanted("status=delivered").unwrap().nothing);
        assert_eq!(wanted("topic=a/b").unwrap().topic.as_deref(), Some("a/b"));
        assert_eq!(wanted("fromAgentId=a%3Ab").unwrap().from.as_deref(), Some("a:b"));
    }

    #[test]
    fn everything_else_is_a_400() {
        for bad in [
            "limit=0",
            "limit=201",
            "limit=-1",
            "limit=+5",
            "limit=x",
            "limit=",
            "limit=99999999999999999999",
            "limit=1&limit=2",
            "unreadOnly=1",
            "unreadOnly=",
            "unreadOnly=TRUE",
            "status=new",
            "status=read&unreadOnly=true",
            "order=up",
            "wait=61",
            "wait=-1",
            "wait=1.5",
            "wait=",
            "offset=-1",
            "offset=2001",
            "offset=1&wait=1",
            "offset=1&cursor=x",
            "topic=",
            "topic=a%20b",
            "fromAgentId=",
            "fromAgentId=a%20b",
        ] {
            assert_eq!(wanted(bad).unwrap_err().status, 400, "{bad}");
        }
    }
}
