//! The directory of a team's agents, on the Kite face.

use crate::api::kite::{Agent, Agents, RegisterAgent};
use crate::http::{Request, with_query};
use crate::retry::Repeat;
use crate::{Client, Error};

/// Of every call.
const PATH: &str = "/api/v1/agents";

impl Client {
    /// A page of the agents of the key's team, by id: those that are registered or got mail, each with the number of
    /// sessions that listen to it now. `after` is the `next` of the page before; without `limit` it is the server's 50,
    /// at most 200.
    pub async fn agents(&self, after: Option<&str>, limit: Option<usize>) -> Result<Agents, Error> {
        let after = after.map(|id| ("after", id.to_owned()));
        let limit = limit.map(|limit| ("limit", limit.to_string()));
        let pairs: Vec<_> = after.into_iter().chain(limit).collect();
        self.call(Request::get(with_query(PATH, &pairs))).await
    }

    /// Puts an agent into the directory of the key's team, or gives it another name. Needs the permission `write`; a key
    /// that is bound to an agent can register that one only.
    pub async fn register_agent(&self, agent: &RegisterAgent) -> Result<Agent, Error> {
        // Registering the same again changes nothing.
        let request = Request::post(PATH).json(agent)?.repeat(Repeat::Safely);
        self.call(request).await
    }
}
