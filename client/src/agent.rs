//! A handle that acts as one agent. Its calls are in files of their own: [`crate::draft`], [`crate::read`],
//! [`crate::listen`], [`crate::topics`], [`crate::webhook`] and [`crate::deliveries`].

use std::sync::Arc;

use serde::de::DeserializeOwned;

use crate::http::{Answer, Request};
use crate::{Agentpost, Error};

/// An agent of the key's team. Cheap to clone. [`Agentpost::agent`] makes one; nothing is sent before a call is awaited.
#[derive(Clone)]
pub struct Agent {
    post: Agentpost,
    id: Arc<str>,
}

impl Agent {
    pub(crate) fn new(post: Agentpost, id: String) -> Self {
        Agent { post, id: id.into() }
    }

    /// The agent's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The connection that it uses.
    pub fn post(&self) -> &Agentpost {
        &self.post
    }

    /// A request as this agent, unless it names another one, for what has no typed call.
    ///
    /// # Errors
    /// See [`crate::http::Http::request`].
    pub async fn request(&self, request: &Request) -> Result<Answer, Error> {
        self.post.http().request(&request.clone().agent_if_none(&self.id)).await
    }

    /// [`Agent::request`], with the answer's JSON as a value.
    ///
    /// # Errors
    /// See [`crate::http::Http::call`].
    pub async fn call<T: DeserializeOwned>(&self, request: Request) -> Result<T, Error> {
        self.post.http().call(request.agent_if_none(&self.id)).await
    }
}
