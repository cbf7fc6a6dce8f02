//! Calls of the operator API; they need a key of the team `system`.
//!
//! Creating a team or a key is not repeated when its outcome is unknown: a second team would clash with the first, and
//! a second key would leave a secret that nobody holds.

use std::time::Duration;

use crate::api::abbababa::SigningKeys;
use crate::api::admin::{
    AddMember, Cluster, CreateKey, CreateTeam, CreatedKey, Key, Keys, Member, Team, Teams, Transfer, UpdateTeam,
};
use crate::http::{Request, segment};
use crate::retry::Repeat;
use crate::{Client, Error};

const MEMBERS: &str = "/admin/v1/cluster/members";
/// A leader that is removed finishes its calls to webhooks and hands over first.
const CHANGE_PATIENCE: Duration = Duration::from_secs(35);

impl Client {
    /// Creates a team; its name is unique.
    pub async fn create_team(&self, team: &CreateTeam) -> Result<Team, Error> {
        self.call(Request::post("/admin/v1/teams").json(team)?).await
    }

    /// All teams.
    pub async fn teams(&self) -> Result<Vec<Team>, Error> {
        let reply: Teams = self.call(Request::get("/admin/v1/teams")).await?;
        Ok(reply.teams)
    }

    /// Changes the limits or settings that `change` names.
    pub async fn update_team(&self, id: &str, change: &UpdateTeam) -> Result<Team, Error> {
        self.call(Request::patch(format!("/admin/v1/teams/{}", segment(id))).json(change)?)
            .await
    }

    /// Creates a key; the answer is the only place that ever shows its secret.
    pub async fn create_key(&self, team_id: &str, key: &CreateKey) -> Result<CreatedKey, Error> {
        self.call(Request::post(format!("/admin/v1/teams/{}/keys", segment(team_id))).json(key)?)
            .await
    }

    /// The keys of a team, without their secrets.
    pub async fn keys(&self, team_id: &str) -> Result<Vec<Key>, Error> {
        let reply: Keys = self
            .call(Request::get(format!("/admin/v1/teams/{}/keys", segment(team_id))))
            .await?;
        Ok(reply.keys)
    }

    /// Revokes a key.
    pub async fn revoke_key(&self, id: &str) -> Result<(), Error> {
        self.request(&Request::delete(format!("/admin/v1/keys/{}", segment(id))))
            .await
            .map(|_| ())
    }

    /// What the webhooks of a team are signed with, now and after the next rotation.
    pub async fn team_signing_keys(&self, team_id: &str) -> Result<SigningKeys, Error> {
        self.call(Request::get(format!(
            "/admin/v1/teams/{}/signing-keys",
            segment(team_id)
        )))
        .await
    }

    /// Makes the next signing key of a team the current one. Not repeated when its outcome is unknown: receivers know
    /// two keys, so a second rotation would lock them out.
    pub async fn rotate_team_signing_keys(&self, team_id: &str) -> Result<SigningKeys, Error> {
        let path = format!("/admin/v1/teams/{}/signing-keys/rotate", segment(team_id));
        self.call(Request::post(path)).await
    }

    /// The nodes and where each stands.
    pub async fn cluster(&self) -> Result<Cluster, Error> {
        self.call(Request::get("/admin/v1/cluster")).await
    }

    /// Hands leadership to another voter. The old leader first finishes its calls to webhooks, half a minute at
    /// most.
    pub async fn transfer(&self, node: u64) -> Result<(), Error> {
        let request = Request::post("/admin/v1/cluster/transfer").json(&Transfer { node })?;
        let request = request.patience(Duration::from_secs(35));
        self.request(&request).await.map(|_| ())
    }

    /// Adds a node as a learner; it gets the log and has no vote. Not repeated when its outcome is unknown: look at
    /// [`Client::cluster`] then.
    pub async fn add_member(&self, member: &AddMember) -> Result<Member, Error> {
        let request = Request::post(MEMBERS).json(member)?;
        self.call(request.patience(CHANGE_PATIENCE)).await
    }

    /// Makes a learner a voter; 409 while it lags. Doing it twice is the same.
    pub async fn promote_member(&self, id: u64) -> Result<Member, Error> {
        let request = Request::post(format!("{MEMBERS}/{id}/promote")).repeat(Repeat::Safely);
        self.call(request.patience(CHANGE_PATIENCE)).await
    }

    /// Removes a node from the cluster for good. A leader hands over first.
    pub async fn remove_member(&self, id: u64) -> Result<(), Error> {
        let request = Request::delete(format!("{MEMBERS}/{id}")).patience(CHANGE_PATIENCE);
        self.request(&request).await.map(|_| ())
    }

    /// Takes a snapshot on the asked node.
    pub async fn snapshot(&self) -> Result<(), Error> {
        self.request(&Request::post("/admin/v1/cluster/snapshot"))
            .await
            .map(|_| ())
    }
}
