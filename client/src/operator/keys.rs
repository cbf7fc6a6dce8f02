//! API keys of teams.

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::api::admin::{self, CreatedKey};
use crate::call::awaitable;
use crate::http::{Request, segment};
use crate::operator::Operator;
use crate::words::Permission;

/// A key without its secret.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Key {
    /// `key_<32 hex digits>`.
    pub id: String,
    /// A name for people.
    pub name: String,
    /// How the key begins.
    pub key_prefix: String,
    /// Its permissions.
    pub permissions: Vec<Permission>,
    /// The scopes that its WebSocket sessions may use.
    pub scopes: Vec<String>,
    /// The agent that it is bound to.
    pub agent_id: Option<String>,
    /// When it ends, in RFC 3339.
    pub expires_at: Option<String>,
    /// Whether it was revoked.
    pub revoked: bool,
    /// When it was made, in RFC 3339.
    pub created_at: String,
}

/// A key to be made. `.await` makes it; the answer is the only place that ever shows its secret. Without a permission
/// it has [`Permission::Write`].
///
/// # Errors
/// [`Error::Refused`] with 404 if there is no such team. [`Error::OutcomeUnknown`] is not repeated: [`Operator::keys`]
/// tells whether there is a key whose secret is lost.
#[derive(Clone)]
#[must_use = "the key is made when it is awaited"]
pub struct CreateKey {
    operator: Operator,
    team: String,
    body: admin::CreateKey,
}

impl Operator {
    /// A new key of a team, by the team's id, with a name for people.
    pub fn create_key(&self, team: impl Into<String>, name: impl Into<String>) -> CreateKey {
        CreateKey {
            operator: self.clone(),
            team: team.into(),
            body: admin::CreateKey {
                name: name.into(),
                permissions: Vec::new(),
                agent_id: None,
                scopes: None,
                expires_at: None,
            },
        }
    }

    /// The keys of a team, by id.
    ///
    /// # Errors
    /// [`Error::Refused`] with 404 if there is no such team.
    pub async fn keys(&self, team: &str) -> Result<Vec<Key>, Error> {
        #[derive(Deserialize)]
        struct Keys {
            keys: Vec<Key>,
        }
        let reply: Keys = self.post.http().call(Request::get(path(team))).await?;
        Ok(reply.keys)
    }

    /// Revokes a key. It cannot be used from then on, and its open sessions end. Doing it again changes nothing.
    ///
    /// # Errors
    /// [`Error::Refused`] with 404 if there is no such key.
    pub async fn revoke_key(&self, id: &str) -> Result<(), Error> {
        let request = Request::delete(format!("/admin/v1/keys/{}", segment(id)));
        self.post.http().request(&request).await.map(drop)
    }
}

impl CreateKey {
    /// Adds a permission.
    pub fn permission(mut self, permission: Permission) -> Self {
        self.body.permissions.push(permission.into());
        self
    }

    /// Sets the permissions, in the place of those before.
    pub fn permissions(mut self, permissions: impl IntoIterator<Item = Permission>) -> Self {
        self.body.permissions = permissions.into_iter().map(String::from).collect();
        self
    }

    /// Binds the key to one agent.
    pub fn agent(mut self, id: impl Into<String>) -> Self {
        self.body.agent_id = Some(id.into());
        self
    }

    /// The scopes that its WebSocket sessions may use; `*` by default.
    pub fn scopes(mut self, scopes: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.body.scopes = Some(scopes.into_iter().map(Into::into).collect());
        self
    }

    /// When it ends, in RFC 3339.
    pub fn expires_at(mut self, time: impl Into<String>) -> Self {
        self.body.expires_at = Some(time.into());
        self
    }

    async fn run(mut self) -> Result<CreatedKey, Error> {
        if self.body.permissions.is_empty() {
            self.body.permissions.push(Permission::Write.into());
        }
        let request = Request::post(path(&self.team)).json(&self.body)?;
        self.operator.post.http().call(request).await
    }
}

awaitable!(CreateKey => CreatedKey);

fn path(team: &str) -> String {
    format!("/admin/v1/teams/{}/keys", segment(team))
}
