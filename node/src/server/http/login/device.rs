//! The device's side of a device login. A device has no key; it identifies itself only by its device code.

use agentpost_proto::api::kite::{
    DeviceCode, DeviceKey, DeviceToken, LOGIN_DENIED, LOGIN_EXPIRED, LOGIN_PENDING, LOGIN_SLOW_DOWN, StartLogin,
};
use agentpost_proto::command::{self, ClaimLogin, Done, ErrorCode, Operation, Rejection};
use agentpost_proto::id::{KeyId, TeamId};
use agentpost_proto::limits;
use agentpost_proto::operation::{NoAnswer, Op};
use agentpost_proto::record::{Login, LoginState};
use agentpost_raft_store::core::kv::{Fatal, Lookup};
use agentpost_raft_store::core::query;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;

use super::decide;
use crate::base::clock::IdSource;
use crate::base::secrets::{self, Secrets};
use crate::server::error::{ApiError, Result, json_of};
use crate::server::http::app_state::App;
use crate::server::http::body::Charged;
use crate::server::http::input::parse;
use crate::server::http::serve::Origin;
use crate::server::http::{body, login_limits};
use crate::server::services::Services;
use crate::shard::budget::Payer;

/// How many user codes are tried until one is free. With the maximum of open logins, one code in 25 million is taken.
const CODE_ATTEMPTS: usize = 3;
/// Bytes of a device code. It cannot be guessed, and the key is derived from it.
const DEVICE_CODE_BYTES: usize = 32;

const UNKNOWN_START: &str = "outcome unknown: ask for another code";
const UNKNOWN_CLAIM: &str =
    "outcome unknown: ask again; if the code is expired then, its key was made and lost: log in anew";

pub(super) async fn device_code(State(app): App, request: Request) -> Result<Response> {
    let services = &app.services;
    let (parts, body) = request.into_parts();
    let proposer = &services.replica.proposer;
    let body = body::read_small(proposer, Payer::Nobody, &parts.headers, body).await?;
    let wanted: StartLogin = match body.trim_ascii() {
        [] => StartLogin::default(),
        body => parse(body)?,
    };
    let client = wanted.client.as_deref().or_else(|| user_agent(&parts.headers));
    let client = shown_name(client.unwrap_or_default());
    app.logins
        .code(Origin::noted(&parts.extensions), services.wall_time.clock().now())?;
    for _ in 0..CODE_ATTEMPTS {
        let (device_code, op) = fresh(&services.ids, &services.secrets, client.clone());
        let user_code = op.user_code.clone();
        match propose(services, &body, op, UNKNOWN_START).await? {
            Ok(Done {}) => {
                let url = app.http.public_url.trim_end_matches('/');
                return json_of(&told(url, device_code, &user_code));
            }
            Err(rejection) if rejection.code() == ErrorCode::Conflict => {}
            Err(rejection) => return Err(rejection.into()),
        }
    }
    Err(ApiError::unavailable("no free code was found; try again"))
}

/// Creates a device code and the operation that stores its hashes.
fn fresh(ids: &IdSource, secrets: &Secrets, client: String) -> (String, command::StartLogin) {
    let device_code = hex::encode(ids.random::<DEVICE_CODE_BYTES>());
    let api_key = secrets.login_key(&device_code);
    let op = command::StartLogin {
        device_hash: secrets.key_hash(&device_code).to_vec().into(),
        user_code: user_code(ids),
        key_id: KeyId(ids.random()).to_bytes(),
        key_hash: secrets.key_hash(&api_key).to_vec().into(),
        key_prefix: secrets::prefix_of(&api_key),
        client,
    };
    (device_code, op)
}

/// A user code of uniformly distributed letters.
fn user_code(ids: &IdSource) -> String {
    let alphabet = limits::USER_CODE_ALPHABET;
    // Bytes from here on would make the first letters of the alphabet more likely.
    let even = 256 / alphabet.len() * alphabet.len();
    let mut code = String::new();
    while code.len() < limits::USER_CODE_LETTERS {
        let [byte] = ids.random::<1>().map(usize::from);
        if byte < even {
            code.push(char::from(alphabet[byte % alphabet.len()]));
        }
    }
    code
}

fn told(public_url: &str, device_code: String, user_code: &str) -> DeviceCode {
    let user_code = decide::shown_code(user_code);
    let verification_url = format!("{public_url}/activate");
    // https becomes wss, http becomes ws.
    let ws_url = public_url.strip_prefix("http").map(|rest| format!("ws{rest}/ws"));
    DeviceCode {
        verification_url_complete: Some(format!("{verification_url}?code={user_code}")),
        device_code: device_code.into(),
        user_code,
        verification_url,
        ws_url,
        interval: Some(login_limits::INTERVAL_S),
        expires_in: Some(limits::LOGIN_TTL_MS / 1000),
    }
}

fn user_agent(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::USER_AGENT)?.to_str().ok()
}

/// A stranger's text as one line for people: shortened, without control characters, line breaks or changes of the
/// writing direction.
fn shown_name(client: &str) -> String {
    let moves = |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let kept = client.trim().chars().filter(|c| !c.is_control() && !moves(*c));
    kept.take(limits::LOGIN_CLIENT_CHARS_MAX).collect()
}

/// One of the documented errors that tell a device to wait or to give up.
fn not_yet(status: StatusCode, error: &'static str) -> ApiError {
    ApiError::new(status, error, error)
}

fn expired() -> ApiError {
    not_yet(StatusCode::BAD_REQUEST, LOGIN_EXPIRED)
}

fn denied() -> ApiError {
    not_yet(StatusCode::FORBIDDEN, LOGIN_DENIED)
}

pub(super) async fn device_token(State(app): App, request: Request) -> Result<Response> {
    let services = &app.services;
    let (parts, body) = request.into_parts();
    let proposer = &services.replica.proposer;
    let body = body::read_small(proposer, Payer::Nobody, &parts.headers, body).await?;
    let DeviceToken { device_code } = parse(&body)?;
    let now = services.wall_time.clock().now();
    let hash = services.secrets.key_hash(&device_code);
    let mut login = match find(&services.replica.reader.local(), &hash)? {
        Some(login) => login,
        // The code may be newer than this node's state.
        None => {
            let origin = Origin::noted(&parts.extensions);
            app.logins.miss(origin, now)?;
            if !is_device_code(&device_code) {
                return Err(expired());
            }
            let found = find(&services.replica.reader.linearizable().await?, &hash)?.ok_or_else(expired)?;
            app.logins.misses.give_back(origin);
            found
        }
    };
    if login.state() == LoginState::Pending {
        if !app.logins.polls.take(hash, now) {
            return Err(not_yet(StatusCode::BAD_REQUEST, LOGIN_SLOW_DOWN));
        }
        // The decision may have been made on another node.
        login = find(&services.replica.reader.linearizable().await?, &hash)?.ok_or_else(expired)?;
    }
    match login.state() {
        LoginState::Approved => claim(services, &body, &device_code, &hash).await,
        LoginState::Denied => Err(denied()),
        LoginState::Pending | LoginState::Unspecified => Err(not_yet(StatusCode::BAD_REQUEST, LOGIN_PENDING)),
    }
}

fn is_device_code(text: &str) -> bool {
    text.len() == 2 * DEVICE_CODE_BYTES && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn find(kv: &impl Lookup, device_hash: &[u8; 32]) -> Result<Option<Login>, Fatal> {
    query::login::by_device(kv, device_hash, query::applied(kv)?.cluster_ms)
}

/// Creates the key and derives it again for the answer. Of two devices that ask with the same code, one gets the key.
async fn claim(services: &Services, body: &Charged, device_code: &str, hash: &[u8; 32]) -> Result<Response> {
    let op = ClaimLogin {
        device_hash: hash.to_vec().into(),
    };
    match propose(services, body, op, UNKNOWN_CLAIM).await? {
        Ok(made) => json_of(&DeviceKey {
            api_key: services.secrets.login_key(device_code).into(),
            team_id: TeamId::from_slice(&made.team_id)
                .map_err(ApiError::internal)?
                .to_string(),
        }),
        Err(rejection) => Err(match rejection.code() {
            ErrorCode::NotFound => expired(),
            ErrorCode::Forbidden => denied(),
            _ => rejection.into(),
        }),
    }
}

/// Proposes an operation without a principal: a device has no key yet. `unknown` is the text of the error when the
/// outcome is unknown, because a device has no idempotency key to repeat with.
async fn propose<O: Op>(
    services: &Services,
    body: &Charged,
    op: O,
    unknown: &'static str,
) -> Result<Result<O::Reply, Rejection>> {
    let proposer = &services.replica.proposer;
    let proposed = proposer.propose_admitted(body.as_ref(), Operation::internal(op)).await;
    let answered = proposed.map_err(|error| ApiError::from(error).told_when_unknown(unknown))?;
    match answered.answer_to::<O>() {
        Ok(answer) => Ok(Ok(answer)),
        Err(NoAnswer::Rejected(rejection)) => Ok(Err(rejection)),
        Err(unexpected) => Err(ApiError::internal(unexpected)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::Clock;

    #[test]
    fn a_name_is_one_short_line_in_its_own_direction() {
        for (said, shown) in [
            ("kite 0.2 on laptop", "kite 0.2 on laptop"),
            (" a\r\n\u{1b}[31mb\u{0}\u{7f}\u{85} ", "a[31mb"),
            ("\u{202e}evil\u{2066}\u{2028}x", "evilx"),
            ("<b>ä🙂</b>", "<b>ä🙂</b>"),
            ("\n\n", ""),
        ] {
            assert_eq!(shown_name(said), shown);
        }
        let long = shown_name(&"🙂".repeat(1000));
        assert_eq!(long.chars().count(), limits::LOGIN_CLIENT_CHARS_MAX);
    }

    #[test]
    fn user_codes_have_every_letter_at_every_place() {
        let ids = IdSource::seeded(Clock::system(), 1);
        let mut seen = vec![std::collections::BTreeSet::new(); limits::USER_CODE_LETTERS];
        for _ in 0..500 {
            let code = user_code(&ids);
            assert_eq!(code.len(), limits::USER_CODE_LETTERS);
            for (place, letter) in code.bytes().enumerate() {
                assert!(limits::USER_CODE_ALPHABET.contains(&letter));
                seen[place].insert(letter);
            }
        }
        assert!(
            seen.iter()
                .all(|letters| letters.len() == limits::USER_CODE_ALPHABET.len())
        );
    }

    #[test]
    fn a_device_is_told_where_to_go() {
        for (public, ws) in [
            ("http://127.0.0.1:7700", "ws://127.0.0.1:7700/ws"),
            ("https://post.example/x", "wss://post.example/x/ws"),
        ] {
            let told = told(public, "00".to_owned(), "BCDFGHJK");
            assert_eq!(told.ws_url.as_deref(), Some(ws));
            assert_eq!(told.user_code, "BCDF-GHJK");
            assert_eq!(told.verification_url, format!("{public}/activate"));
            let complete = format!("{public}/activate?code=BCDF-GHJK");
            assert_eq!(told.verification_url_complete, Some(complete));
        }
    }
}
