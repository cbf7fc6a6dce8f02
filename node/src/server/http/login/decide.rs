//! The administrator's side of a device login: look up a code, approve it, deny it.

use agentpost_proto::api::admin::{ApproveLogin, ApprovedLogin, LoginTeam, Ok as Success, UserCode, WaitingLogin};
use agentpost_proto::command::{DecideLogin, Permission};
use agentpost_proto::id::TeamId;
use agentpost_proto::limits;
use agentpost_proto::record::{LoginState, Team};
use agentpost_proto::time::rfc3339;
use agentpost_raft_store::core::kv::{Kv, Lookup};
use agentpost_raft_store::core::query;
use axum::extract::{Request, State};
use axum::response::Response;
use serde::Deserialize;

use crate::server::auth::Caller;
use crate::server::error::{ApiError, Result, json_of};
use crate::server::http::app_state::{App, AppState, Reading};
use crate::server::http::body::Charged;
use crate::server::http::input::{Consistency, parse};
use crate::server::keys;

const NO_SUCH_CODE: &str = "no device waits with this code, or it has expired";
const NO_SUCH_TEAM: &str = "no such team";
const UNKNOWN: &str = "outcome unknown: look the code up again to see whether it was decided";

/// Authorises the caller, whose key must allow approving devices, and reads the body.
async fn asked<T: for<'de> Deserialize<'de>>(app: &AppState, request: Request) -> Result<(Reading, T, Charged)> {
    let (parts, body) = request.into_parts();
    let reading = app.reader(&parts.headers, Consistency::Linearizable).await?;
    lets_in(&reading.caller)?;
    let body = app.read_small(&reading.caller, &parts.headers, body).await?;
    Ok((reading, parse(&body)?, body))
}

fn lets_in(caller: &Caller) -> Result<()> {
    if caller.permission < Permission::Admin {
        return Err(ApiError::forbidden(
            "this API key cannot let devices in: that takes a key with the permission admin, \
             of the team that the device shall belong to or of an operator",
        ));
    }
    if caller.bound_agent.is_some() || !caller.scopes.iter().any(|scope| scope == "*") {
        return Err(ApiError::forbidden(
            "this API key is bound to an agent or to scopes and cannot let devices in: \
             that takes a key with the permission admin that is bound to neither",
        ));
    }
    Ok(())
}

pub(super) async fn lookup(State(app): App, request: Request) -> Result<Response> {
    let (reading, wanted, _body): (_, UserCode, _) = asked(&app, request).await?;
    let code = user_code(&wanted.user_code)?;
    let (state, caller) = (&reading.state, &reading.caller);
    let found = async {
        let now_ms = query::applied(state)?.cluster_ms;
        let login = query::login::by_user_code(state, &code, now_ms)?;
        let login = login.ok_or_else(|| ApiError::not_found(NO_SUCH_CODE))?;
        Ok((login.expires_ct_ms - now_ms, login))
    };
    let (left_ms, login) = app
        .logins
        .guess(caller, app.services.wall_time.clock().now(), found)
        .await?;
    if login.state() != LoginState::Pending {
        return Err(ApiError::conflict("this code was decided already"));
    }
    let team = caller.team;
    let teams = reading.read(move |kv| teams_of(kv, team)).await?;
    json_of(&WaitingLogin {
        user_code: shown_code(&login.user_code),
        client: login.client,
        requested_at: rfc3339(login.created_at_ms),
        expires_in: left_ms.div_ceil(1000),
        teams,
    })
}

/// The teams for which a caller of `team` may approve devices.
fn teams_of(kv: &dyn Kv, team: TeamId) -> Result<Vec<LoginTeam>> {
    let mut teams = match team {
        TeamId::SYSTEM => query::team::all(&kv)?,
        own => query::team::by_id(&kv, own)?.into_iter().collect(),
    };
    teams.sort_by(|a, b| a.name.cmp(&b.name));
    teams.into_iter().map(shown_team).collect()
}

fn shown_team(team: Team) -> Result<LoginTeam> {
    Ok(LoginTeam {
        id: TeamId::from_slice(&team.id).map_err(ApiError::internal)?.to_string(),
        name: team.name,
    })
}

pub(super) async fn approve(State(app): App, request: Request) -> Result<Response> {
    let (reading, wanted, body): (_, ApproveLogin, _) = asked(&app, request).await?;
    let code = user_code(&wanted.user_code)?;
    let permissions = match &wanted.permissions {
        None => vec![Permission::Write as i32],
        Some(names) => keys::permissions(names)?,
    };
    let team = chosen_team(&reading.state, &reading.caller, wanted.team.as_deref())?;
    let names = permissions.iter().filter_map(|p| Permission::try_from(*p).ok());
    let approved = ApprovedLogin {
        user_code: shown_code(&code),
        permissions: names.map(|permission| permission.name().to_owned()).collect(),
        team: shown_team(team.clone())?,
    };
    let op = DecideLogin {
        user_code: code,
        approve: true,
        team_id: team.id,
        permissions,
    };
    decide(&app, &reading.caller, &body, op).await?;
    json_of(&approved)
}

/// The team of the device's key. A team that the caller may not use is answered like an unknown one.
fn chosen_team(kv: &impl Lookup, caller: &Caller, wanted: Option<&str>) -> Result<Team> {
    let id = match wanted {
        Some(named) => match named.parse() {
            Ok(id) => Some(id),
            Err(_) => query::team::named(kv, named)?,
        },
        None if caller.team == TeamId::SYSTEM => {
            return Err(ApiError::field(
                "team",
                "is required with an operator's key: the id or the name of a team",
            ));
        }
        None => Some(caller.team),
    };
    let id = id.filter(|id| caller.team == TeamId::SYSTEM || caller.team == *id);
    let team = match id {
        Some(id) => query::team::by_id(kv, id)?,
        None => None,
    };
    team.ok_or_else(|| ApiError::not_found(NO_SUCH_TEAM))
}

pub(super) async fn deny(State(app): App, request: Request) -> Result<Response> {
    let (reading, wanted, body): (_, UserCode, _) = asked(&app, request).await?;
    let op = DecideLogin {
        user_code: user_code(&wanted.user_code)?,
        ..DecideLogin::default()
    };
    decide(&app, &reading.caller, &body, op).await?;
    json_of(&Success { success: true })
}

async fn decide(app: &AppState, caller: &Caller, body: &Charged, op: DecideLogin) -> Result<()> {
    let proposed = app.propose(caller, body, op);
    let guessed = app.logins.guess(caller, app.services.wall_time.clock().now(), proposed);
    guessed.await.map_err(|error| error.told_when_unknown(UNKNOWN))?;
    Ok(())
}

/// Normalises a typed user code: people type dashes, spaces and lower case. A text that cannot be a code is answered
/// like an unknown code.
fn user_code(typed: &str) -> Result<String> {
    let letters = typed.chars().filter(|c| c.is_alphanumeric());
    let code: String = letters
        .take(limits::USER_CODE_LETTERS + 1)
        .map(|c| c.to_ascii_uppercase())
        .collect();
    let possible = code.bytes().all(|b| limits::USER_CODE_ALPHABET.contains(&b));
    if possible && code.len() == limits::USER_CODE_LETTERS {
        Ok(code)
    } else {
        Err(ApiError::not_found(NO_SUCH_CODE))
    }
}

/// Formats a user code for people: `BCDF-GHJK`.
pub(super) fn shown_code(code: &str) -> String {
    let (first, second) = code
        .split_at_checked(limits::USER_CODE_LETTERS / 2)
        .unwrap_or((code, ""));
    format!("{first}-{second}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn codes_are_read_as_people_write_them() {
        for typed in [
            "BCDF-GHJK",
            "bcdfghjk",
            " bcdf – ghjk\n",
            "B C D F G H J K",
            "BCDF\u{2011}GHJK",
        ] {
            assert_eq!(user_code(typed).unwrap(), "BCDFGHJK", "{typed}");
        }
        for not_one in [
            "",
            "BCDF-GHJ",
            "BCDF-GHJKL",
            "ACDF-GHJK",
            "BCDF-GHJ0",
            "ÄCDFGHJK",
            "--------",
        ] {
            assert_eq!(user_code(not_one).unwrap_err().status, 404, "{not_one}");
        }
        assert_eq!(user_code(&"x".repeat(60_000)).unwrap_err().status, 404);
        assert_eq!(shown_code("BCDFGHJK"), "BCDF-GHJK");
    }
}
