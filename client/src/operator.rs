//! The calls of an operator. [`Agentpost::operator`] opens them; they need a key of the team `system`, such as the
//! cluster's admin key.
//!
//! ```no_run
//! # async fn example(admin_key: String) -> Result<(), agentpost::Error> {
//! use agentpost::Permission;
//!
//! let post = agentpost::connect("http://127.0.0.1:7700", admin_key).await?;
//! let team = post.operator().create_team("research").daily_sends(5_000).await?;
//! let key = post.operator().create_key(&team.id, "worker").permission(Permission::Write).await?;
//! println!("{}", &*key.api_key);
//! # Ok(())
//! # }
//! ```
//!
//! Creating a team or a key is not repeated when its outcome is unknown: a second team would clash with the first, and a
//! second key would leave a secret that nobody has.

mod cluster;
mod keys;
mod logins;
mod teams;

use crate::api::abbababa::SigningKeys;
use crate::deliveries::{Attempt, DeliveriesQuery, Delivery, One, Redriven};
use crate::http::{Repeat, Request, segment};
use crate::{Agentpost, Error};

pub use cluster::{AddMember, Cluster, Node};
pub use keys::{CreateKey, Key};
pub use logins::ApproveLogin;
pub use teams::{CreateTeam, UpdateTeam};

/// The operator's door. A key of another team is refused with 403, except for the calls about logins.
#[derive(Clone)]
pub struct Operator {
    post: Agentpost,
}

impl Operator {
    pub(crate) fn new(post: Agentpost) -> Self {
        Operator { post }
    }

    /// The connection that it uses.
    pub fn post(&self) -> &Agentpost {
        &self.post
    }

    /// The deliveries of a whole team, by its id.
    pub fn deliveries(&self, team: &str) -> DeliveriesQuery {
        let request = Request::get("/admin/v1/deliveries").query("team", team);
        DeliveriesQuery::new(self.post.http().clone(), request)
    }

    /// One delivery of a team, with its attempts.
    ///
    /// # Errors
    /// [`Error::Refused`] with 404 if the team has no such delivery.
    pub async fn delivery(&self, team: &str, id: &str) -> Result<Delivery<Vec<Attempt>>, Error> {
        let path = format!("/admin/v1/deliveries/{}", segment(id));
        let one: One = self.post.http().call(Request::get(path).query("team", team)).await?;
        Ok(one.delivery)
    }

    /// Delivers a dead one of a team again, and returns the id of the new delivery. A repeat returns the same id.
    ///
    /// # Errors
    /// [`Error::Refused`] with 409 if it is not dead, and with 410 if the message is gone.
    pub async fn redrive(&self, team: &str, id: &str) -> Result<String, Error> {
        let path = format!("/admin/v1/deliveries/{}/redrive", segment(id));
        let request = Request::post(path).query("team", team).repeat(Repeat::Safely);
        let reply: Redriven = self.post.http().call(request).await?;
        Ok(reply.delivery_id)
    }

    /// The signing keys of a team: the current one and the next.
    ///
    /// # Errors
    /// [`Error::Refused`] with 404 if there is no such team.
    pub async fn signing_keys(&self, team: &str) -> Result<SigningKeys, Error> {
        let path = format!("/admin/v1/teams/{}/signing-keys", segment(team));
        self.post.http().call(Request::get(path)).await
    }

    /// Makes the next signing key of a team the current one. Not repeated when its outcome is unknown: receivers know two
    /// keys, so a second rotation would lock them out.
    ///
    /// # Errors
    /// See [`Operator::signing_keys`].
    pub async fn rotate_signing_keys(&self, team: &str) -> Result<SigningKeys, Error> {
        let path = format!("/admin/v1/teams/{}/signing-keys/rotate", segment(team));
        self.post.http().call(Request::post(path)).await
    }
}
