//! Devices that wait to be let in: the administrator's side of [`crate::login`]. These calls take a key with the
//! permission `admin` of a team, too. Codes may be written with or without the dash, in either case.

use crate::Error;
use crate::api::admin::{self, ApprovedLogin, UserCode, WaitingLogin};
use crate::call::awaitable;
use crate::http::{Repeat, Request};
use crate::operator::Operator;
use crate::words::Permission;

/// A device to be let in. `.await` does it: the device gets a key of its own.
///
/// # Errors
/// [`Error::Refused`] with 404 if no device waits with this code, and with 409 if it was decided already.
#[derive(Clone)]
#[must_use = "the device is let in when it is awaited"]
pub struct ApproveLogin {
    operator: Operator,
    body: admin::ApproveLogin,
}

impl Operator {
    /// The device that waits with this code, and the teams that this key can let it into.
    ///
    /// # Errors
    /// [`Error::Refused`] with 404 if no device waits with this code, with 409 if it was decided already, and with 429
    /// after several wrong codes.
    pub async fn waiting_login(&self, user_code: impl Into<String>) -> Result<WaitingLogin, Error> {
        let user_code = user_code.into();
        let request = Request::post("/admin/v1/login/lookup").json(&UserCode { user_code })?;
        self.post.http().call(request.repeat(Repeat::Safely)).await
    }

    /// Lets a device in.
    pub fn approve_login(&self, user_code: impl Into<String>) -> ApproveLogin {
        ApproveLogin {
            operator: self.clone(),
            body: admin::ApproveLogin {
                user_code: user_code.into(),
                team: None,
                permissions: None,
            },
        }
    }

    /// Turns a device away.
    ///
    /// # Errors
    /// The errors of [`ApproveLogin`].
    pub async fn deny_login(&self, user_code: impl Into<String>) -> Result<(), Error> {
        let user_code = user_code.into();
        let request = Request::post("/admin/v1/login/deny").json(&UserCode { user_code })?;
        self.post.http().request(&request).await.map(drop)
    }
}

impl ApproveLogin {
    /// The team that the device belongs to from then on: its id or its name. By default it is the asking key's team; an
    /// operator's key has to name one.
    pub fn team(mut self, team: impl Into<String>) -> Self {
        self.body.team = Some(team.into());
        self
    }

    /// The permissions of the device's key; [`Permission::Write`] by default.
    pub fn permissions(mut self, permissions: impl IntoIterator<Item = Permission>) -> Self {
        self.body.permissions = Some(permissions.into_iter().map(String::from).collect());
        self
    }

    async fn run(self) -> Result<ApprovedLogin, Error> {
        let request = Request::post("/admin/v1/login/approve").json(&self.body)?;
        self.operator.post.http().call(request).await
    }
}

awaitable!(ApproveLogin => ApprovedLogin);
