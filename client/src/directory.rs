//! The directory of a team's agents.

use crate::api::kite::{Agent as Entry, Agents, RegisterAgent};
use crate::call::awaitable;
use crate::http::{Repeat, Request};
use crate::{Agentpost, Error};

const PATH: &str = "/api/v1/agents";

/// A page of the directory. `.await` reads it: the agents by id, each with the number of sessions that listen to it now,
/// and [`Agents::next`], which [`AgentsQuery::after`] takes.
///
/// # Errors
/// See [`crate::http::Http::call`].
#[derive(Clone)]
#[must_use = "the page is read when it is awaited"]
pub struct AgentsQuery {
    post: Agentpost,
    after: Option<String>,
    limit: Option<usize>,
}

/// An agent to be registered. `.await` does it and returns its entry.
///
/// # Errors
/// [`Error::Refused`] with 403 if the key lacks the permission `write` or is bound to another agent; see
/// [`crate::http::Http::call`].
#[derive(Clone)]
#[must_use = "the agent is registered when it is awaited"]
pub struct Register {
    post: Agentpost,
    entry: RegisterAgent,
}

impl Agentpost {
    /// The agents of the key's team: those that were registered or got mail. A page holds 50, unless the query says
    /// otherwise.
    pub fn agents(&self) -> AgentsQuery {
        AgentsQuery {
            post: self.clone(),
            after: None,
            limit: None,
        }
    }

    /// Puts an agent into the directory of the key's team, or changes its name.
    pub fn register_agent(&self, id: impl Into<String>) -> Register {
        Register {
            post: self.clone(),
            entry: RegisterAgent {
                id: id.into(),
                name: None,
            },
        }
    }
}

impl AgentsQuery {
    /// Begins after this id.
    pub fn after(mut self, id: impl Into<String>) -> Self {
        self.after = Some(id.into());
        self
    }

    /// At most so many agents, from 1 to 200.
    pub fn limit(mut self, agents: usize) -> Self {
        self.limit = Some(agents);
        self
    }

    async fn run(self) -> Result<Agents, Error> {
        let request = Request::get(PATH)
            .query_if("after", self.after)
            .query_if("limit", self.limit.map(|limit| limit.to_string()));
        self.post.http().call(request).await
    }
}

awaitable!(AgentsQuery => Agents);

impl Register {
    /// A name for people. Without one the agent has none.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.entry.name = Some(name.into());
        self
    }

    async fn run(self) -> Result<Entry, Error> {
        // Registering the same again changes nothing.
        let request = Request::post(PATH).json(&self.entry)?.repeat(Repeat::Safely);
        self.post.http().call(request).await
    }
}

awaitable!(Register => Entry);
