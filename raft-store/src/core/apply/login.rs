//! Device logins: a machine without a key asks for one, a person with an administrator's key approves, and the machine
//! fetches the key.
//!
//! ```text
//!   StartLogin ──► pending ── DecideLogin ──► approved ── ClaimLogin ──► the key exists, the row is gone
//!                     │              └──────► denied
//!                     └── after LOGIN_TTL_MS of cluster time: the row is gone
//! ```
//!
//! The state contains no secret. The node that issues the device code derives the key from it and puts only the key's
//! keyed hash into the command; any node that the device asks later derives the same key again. The key is created when
//! it is fetched, with the authority of the administrator who approved the login. That authority is checked again at
//! this moment: when an administrator's key is revoked, logins that it approved can no longer be fetched. A code
//! belongs to no team until it is approved; the administrator names the team, and must administer it.

use agentpost_proto::command::{
    ClaimLogin, DecideLogin, ErrorCode, LoginReply, Permission, Principal, Rejection, StartLogin,
};
use agentpost_proto::id::{self, TeamId};
use agentpost_proto::limits;
use agentpost_proto::record::{Key, Login, LoginHead, LoginState};

use super::check::parsed;
use super::principal::Caller;
use super::{Context, Stop, key, queue, reject};
use crate::core::keys::{self, Queue};
use crate::core::kv::{Fatal, Lookup};
use crate::core::query;
use crate::core::query::queue::Now;
use crate::core::view::View;

/// Rows of the queue that a new login removes: many, because those of fetched logins make no room.
const LOGINS_SWEPT_PER_START: usize = 16;

/// Stores a pending login. Anybody may start one, so their number is bounded.
pub fn start(view: &mut View<'_>, context: &Context<'_>, op: StartLogin) -> Result<(), Stop> {
    parsed(id::validate_user_code(&op.user_code))?;
    if op.device_hash.len() != 32 {
        return reject(ErrorCode::Invalid, "a hash has 32 bytes");
    }
    key::check_new(view, &op.key_id, &op.key_hash, &op.key_prefix)?;
    if op.client.chars().count() > limits::LOGIN_CLIENT_CHARS_MAX || op.client.chars().any(char::is_control) {
        return reject(ErrorCode::Invalid, "the client's name is too long or not printable");
    }
    // Expired logins make room here already, without waiting for a sweep.
    sweep(view, context.now(), LOGINS_SWEPT_PER_START)?;
    let mut head: LoginHead = view.load(&keys::login_head())?.unwrap_or_default();
    if head.open >= limits::LOGINS_MAX {
        return Err(Stop::Reject(Rejection {
            retry_after_s: limits::LOGIN_TTL_MS / 1000,
            ..Rejection::new(
                ErrorCode::QuotaExceeded,
                "too many logins wait to be approved; try again later",
            )
        }));
    }
    let device = keys::login_device(&op.device_hash);
    if view.get(&keys::login(&op.user_code))?.is_some() || view.get(&device)?.is_some() {
        return reject(ErrorCode::Conflict, "this code is taken");
    }
    let login = Login {
        expires_ct_ms: context.cluster_ms + limits::LOGIN_TTL_MS,
        created_at_ms: context.wall_ms,
        state: LoginState::Pending as i32,
        user_code: op.user_code,
        device_hash: op.device_hash,
        key_id: op.key_id,
        key_hash: op.key_hash,
        key_prefix: op.key_prefix,
        client: op.client,
        decided_by: None,
        team_id: Default::default(),
        permissions: Vec::new(),
    };
    head.open += 1;
    view.store(keys::login_head(), &head);
    view.put(device, login.user_code.clone().into());
    view.put(
        keys::login_expiry(login.expires_ct_ms, &login.user_code),
        Default::default(),
    );
    view.store(keys::login(&login.user_code), &login);
    Ok(())
}

/// Approves or denies a login. The caller must administer the team. A login is decided once.
pub fn decide(view: &mut View<'_>, context: &Context<'_>, op: &DecideLogin) -> Result<(), Stop> {
    let (caller, let_in) = match op.approve {
        true => {
            let (caller, team, permissions) = may_let_in(view, context, op)?;
            (caller, Some((team, permissions)))
        }
        false => {
            let caller = Caller::with(view, context, Permission::Admin)?;
            caller.not_narrowed()?;
            (caller, None)
        }
    };
    let Some(mut login) = query::login::by_user_code(view, &op.user_code, context.cluster_ms)? else {
        return reject(ErrorCode::NotFound, "no device waits with this code, or it has expired");
    };
    if login.state() != LoginState::Pending {
        return reject(ErrorCode::Conflict, "this code was decided already");
    }
    login.set_state(LoginState::Denied);
    if let Some((team, permissions)) = let_in {
        login.set_state(LoginState::Approved);
        login.team_id = team.to_bytes();
        login.permissions = permissions;
    }
    login.decided_by = Some(Principal {
        team_id: caller.team.to_bytes(),
        key_id: caller.key.id,
    });
    view.store(keys::login(&login.user_code), &login);
    Ok(())
}

/// Checks an approval, and returns the caller, the team and the permissions. [`claim`] checks the authority again.
fn may_let_in(view: &View<'_>, context: &Context<'_>, op: &DecideLogin) -> Result<(Caller, TeamId, Vec<i32>), Stop> {
    let team = parsed(TeamId::from_slice(&op.team_id))?;
    let caller = Caller::hands_out_keys(view, context, team)?;
    if team == TeamId::SYSTEM {
        return reject(
            ErrorCode::Invalid,
            "nobody logs in to the team system: create an operator's key instead",
        );
    }
    key::check_team(view, team)?;
    key::check_room(view, context, team)?;
    Ok((caller, team, key::known_permissions(&op.permissions)?))
}

/// Creates the key of an approved login and removes the login, so that a second claim finds nothing.
pub fn claim(view: &mut View<'_>, context: &Context<'_>, op: &ClaimLogin) -> Result<LoginReply, Stop> {
    let Some(login) = query::login::by_device(view, &op.device_hash, context.cluster_ms)? else {
        return reject(ErrorCode::NotFound, "no such code, or it has expired or was used");
    };
    match login.state() {
        LoginState::Approved => {}
        LoginState::Denied => return reject(ErrorCode::Forbidden, "the login was denied"),
        LoginState::Pending | LoginState::Unspecified => {
            return reject(ErrorCode::Conflict, "nobody has approved this login yet");
        }
    }
    let team = parsed(TeamId::from_slice(&login.team_id))?;
    let decided = Context {
        principal: login.decided_by.as_ref(),
        ..*context
    };
    match Caller::hands_out_keys(view, &decided, team) {
        Err(Stop::Reject(_)) => return reject(ErrorCode::Forbidden, "who approved this login may not any more"),
        other => other?,
    };
    remove(view, &login)?;
    let key = Key {
        id: login.key_id,
        team_id: login.team_id,
        name: format!("kite login {}", login.user_code),
        prefix: login.key_prefix,
        hash: login.key_hash,
        permissions: login.permissions,
        scopes: vec!["*".to_owned()],
        created_at_ms: context.wall_ms,
        ..Key::default()
    };
    let made = key::insert(view, context, team, key)?;
    Ok(LoginReply {
        team_id: team.to_bytes(),
        key_id: made.key_id,
    })
}

/// Removes expired logins. Returns how many index rows were due, at most `rows`.
pub(super) fn sweep(view: &mut View<'_>, now: Now, rows: usize) -> Result<usize, Fatal> {
    let due = queue::take(view, Queue::Logins, now, rows)?;
    for (expiry, _) in &due {
        let user_code =
            keys::parse_login_expiry(expiry).ok_or_else(|| Fatal::Invariant("a short lx key".to_owned()))?;
        // The login may have been fetched, and its code given to another one, which has a later row.
        let login: Option<Login> = view.load(&keys::login(user_code))?;
        if let Some(login) = login.filter(|login| keys::time_of(expiry) == Some(login.expires_ct_ms)) {
            remove(view, &login)?;
        }
    }
    let removed = due.len();
    queue::remove(view, Queue::Logins, due.into_iter().map(|(key, _)| key));
    Ok(removed)
}

/// Removes a login. Its row in the queue stays until its time, see [`super::queue`].
fn remove(view: &mut View<'_>, login: &Login) -> Result<(), Fatal> {
    let mut head: LoginHead = view.load(&keys::login_head())?.unwrap_or_default();
    head.open = head
        .open
        .checked_sub(1)
        .ok_or_else(|| Fatal::Invariant("more logins than were counted".to_owned()))?;
    view.store(keys::login_head(), &head);
    view.delete(keys::login(&login.user_code));
    view.delete(keys::login_device(&login.device_hash));
    Ok(())
}
