//! The mapping of errors to HTTP, and the two JSON shapes in which the APIs report them.

use std::borrow::Cow;
use std::time::Duration;

use agentpost_proto::api::abbababa::{ErrorBody, ErrorDetail};
use agentpost_proto::api::kite;
use agentpost_proto::command::{ErrorCode, Rejection};
use agentpost_raft_store::core::kv::Fatal;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::cluster::leases::NoUnit;
use crate::server::face::Face;
use crate::shard::proposer::ProposeError;
use crate::shard::read_pool::ReadRefused;
use crate::shard::reader::NotReady;

/// The error code of a burst limit; quotas have another.
const BURST: &str = "rate_limited";

/// The 429 of a caller whose share of the operations under way is used up.
const SHARE_USED_UP: &str = "too many requests of the same team, or without a key, are under way; nothing was changed";
/// `Retry-After` of that 429.
const OVERLOAD_RETRY: Duration = Duration::from_secs(1);

/// `Retry-After` of a node without free space, in seconds: its operator must act first.
const NO_ROOM_RETRY_S: u64 = 5;

/// An error, before it takes the shape of an API.
#[derive(Debug, Clone)]
pub struct ApiError {
    pub status: StatusCode,
    code: &'static str,
    /// A sentence for people.
    pub message: Cow<'static, str>,
    details: Vec<ErrorDetail>,
    retry_after_s: Option<u64>,
}

/// The result of a handler.
pub type Result<T, E = ApiError> = std::result::Result<T, E>;

impl ApiError {
    /// An error with a status, a code and a sentence.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        ApiError {
            status,
            code,
            message: message.into(),
            details: Vec::new(),
            retry_after_s: None,
        }
    }

    fn of(code: ErrorCode, status: StatusCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(status, code.as_str(), message)
    }

    /// 400 that names no field.
    pub fn invalid(message: impl Into<Cow<'static, str>>) -> Self {
        Self::of(ErrorCode::Invalid, StatusCode::BAD_REQUEST, message)
    }

    /// 400 that names the field; `problem` continues the sentence after its name.
    pub fn field(field: &str, problem: impl std::fmt::Display) -> Self {
        Self::named(field, format!("{field} {problem}"))
    }

    /// 400 that names the field; `message` is a whole sentence.
    pub fn named(field: &str, message: String) -> Self {
        let detail = ErrorDetail {
            path: vec![field.to_owned()],
            field: field.to_owned(),
            message: message.clone(),
        };
        ApiError {
            details: vec![detail],
            ..Self::invalid(message)
        }
    }

    /// 401.
    pub fn unauthenticated(message: impl Into<Cow<'static, str>>) -> Self {
        Self::of(ErrorCode::Unauthenticated, StatusCode::UNAUTHORIZED, message)
    }

    /// 403.
    pub fn forbidden(message: impl Into<Cow<'static, str>>) -> Self {
        Self::of(ErrorCode::Forbidden, StatusCode::FORBIDDEN, message)
    }

    /// 404. Callers pass the same text for an object that never existed and for one of another team.
    pub fn not_found(what: impl Into<Cow<'static, str>>) -> Self {
        Self::of(ErrorCode::NotFound, StatusCode::NOT_FOUND, what)
    }

    /// 408.
    pub fn too_slow() -> Self {
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            "request_timeout",
            "the request body did not arrive in time",
        )
    }

    /// 409.
    pub fn conflict(message: impl Into<Cow<'static, str>>) -> Self {
        Self::of(ErrorCode::Conflict, StatusCode::CONFLICT, message)
    }

    /// 413.
    pub fn too_large(what: &str, bytes_max: usize) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too_large",
            format!("{what} has more than {bytes_max} bytes"),
        )
    }

    /// 429 of a limit that is not a quota: the caller may come back within seconds. Nothing was changed.
    pub fn burst(message: String, wait: Duration) -> Self {
        ApiError {
            retry_after_s: Some(wait.as_millis().div_ceil(1_000).max(1) as u64),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, BURST, message)
        }
    }

    /// Whether a limit that is not a quota caused the error.
    pub fn is_burst(&self) -> bool {
        self.code == BURST
    }

    /// 503. Nothing was changed.
    pub fn unavailable(message: impl Into<Cow<'static, str>>) -> Self {
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", message);
        ApiError {
            retry_after_s: Some(1),
            ..error
        }
    }

    /// 504. Something may have been changed.
    pub fn outcome_unknown() -> Self {
        Self::new(
            StatusCode::GATEWAY_TIMEOUT,
            "outcome_unknown",
            "outcome unknown: the request may or may not have been carried out; \
             retry with the same Idempotency-Key, which cannot make a duplicate",
        )
    }

    /// Replaces the sentence of an unknown outcome, for requests that have no idempotency key.
    pub fn told_when_unknown(mut self, message: &'static str) -> Self {
        if self.status == StatusCode::GATEWAY_TIMEOUT {
            self.message = message.into();
        }
        self
    }

    /// 500. The cause is in the log, not in the answer.
    pub fn internal(cause: impl std::fmt::Display) -> Self {
        tracing::error!(%cause, "a request failed with an internal error; please report this");
        Self::of(
            ErrorCode::Unspecified,
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal error",
        )
    }

    /// The fields that the error names.
    #[cfg(test)]
    pub fn fields(&self) -> Vec<&str> {
        self.details.iter().map(|detail| detail.field.as_str()).collect()
    }

    /// `{success, error, code, details?}`, the form of all APIs but Kite's.
    fn common_body(&self) -> Vec<u8> {
        let body = serde_json::to_vec(&ErrorBody {
            success: false,
            error: self.message.to_string(),
            code: self.code.to_owned(),
            details: self.details.clone(),
        });
        // Serializing strings and numbers cannot fail.
        body.unwrap_or_default()
    }

    /// `{error, retry_after_secs?}`.
    fn kite_body(&self) -> Vec<u8> {
        let limited = self.status == StatusCode::TOO_MANY_REQUESTS;
        let body = serde_json::to_vec(&kite::ErrorBody {
            error: self.message.to_string(),
            retry_after_secs: self.retry_after_s.filter(|_| limited),
        });
        // Serializing strings and numbers cannot fail.
        body.unwrap_or_default()
    }
}

impl IntoResponse for ApiError {
    /// The answer in the common form. Its extensions contain the error, for the layers of the router.
    fn into_response(self) -> Response {
        let mut response = json_response(self.status, self.common_body());
        decorate(response.headers_mut(), self.status, self.retry_after_s);
        response.extensions_mut().insert(self);
        response
    }
}

/// Rewrites the body of an error if its API has a form of its own.
pub(super) fn in_form_of(face: Face, mut response: Response) -> Response {
    let own = match face {
        Face::Kite => response.extensions().get().map(ApiError::kite_body),
        Face::Abbababa | Face::Admin | Face::Node => None,
    };
    if let Some(body) = own {
        *response.body_mut() = Body::from(body);
    }
    response
}

fn decorate(headers: &mut HeaderMap, status: StatusCode, retry_after_s: Option<u64>) {
    if let Some(seconds) = retry_after_s {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
}

impl From<Rejection> for ApiError {
    fn from(rejection: Rejection) -> Self {
        let code = rejection.code();
        let status = match code {
            ErrorCode::Invalid => StatusCode::BAD_REQUEST,
            ErrorCode::Unauthenticated => StatusCode::UNAUTHORIZED,
            ErrorCode::Forbidden => StatusCode::FORBIDDEN,
            ErrorCode::NotFound => StatusCode::NOT_FOUND,
            ErrorCode::Conflict | ErrorCode::Stale => StatusCode::CONFLICT,
            ErrorCode::IdempotencyMismatch => StatusCode::UNPROCESSABLE_ENTITY,
            ErrorCode::QuotaExceeded => StatusCode::TOO_MANY_REQUESTS,
            ErrorCode::Gone => StatusCode::GONE,
            ErrorCode::Unspecified => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let retry_after_s = (code == ErrorCode::QuotaExceeded).then_some(rejection.retry_after_s.max(1));
        ApiError {
            retry_after_s,
            ..Self::of(code, status, rejection.message)
        }
    }
}

impl From<ProposeError> for ApiError {
    fn from(error: ProposeError) -> Self {
        match error {
            ProposeError::NotReady(_) => Self::unavailable("the cluster has no leader right now; nothing was changed"),
            ProposeError::NoRoom(reason) => ApiError {
                retry_after_s: Some(NO_ROOM_RETRY_S),
                ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "no_room", reason)
            },
            ProposeError::Overloaded => Self::unavailable("this node is overloaded; nothing was changed"),
            ProposeError::ShareUsedUp => Self::burst(SHARE_USED_UP.to_owned(), OVERLOAD_RETRY),
            ProposeError::OutcomeUnknown(_) => Self::outcome_unknown(),
        }
    }
}

impl From<NotReady> for ApiError {
    fn from(_: NotReady) -> Self {
        Self::unavailable("this node cannot reach a quorum right now")
    }
}

impl From<ReadRefused> for ApiError {
    fn from(_: ReadRefused) -> Self {
        Self::unavailable("this node is overloaded; try again")
    }
}

impl From<NoUnit> for ApiError {
    fn from(error: NoUnit) -> Self {
        match error {
            NoUnit::Rejected(rejection) => rejection.into(),
            NoUnit::NotReady(why) => Self::unavailable(why),
            NoUnit::Overloaded(error) => error.into(),
            NoUnit::Fatal(fatal) => fatal.into(),
        }
    }
}

impl From<Fatal> for ApiError {
    fn from(fatal: Fatal) -> Self {
        Self::internal(fatal)
    }
}

/// A JSON answer.
pub(crate) fn json_response(status: StatusCode, body: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A JSON answer of a type whose serialization cannot fail.
pub(super) fn json_of(value: &impl serde::Serialize) -> Result<Response> {
    serde_json::to_vec(value)
        .map(|body| json_response(StatusCode::OK, body))
        .map_err(ApiError::internal)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::{Value, json};

    fn shown(error: ApiError, face: Face) -> (StatusCode, HeaderMap, Value) {
        let (parts, body) = in_form_of(face, error.into_response()).into_parts();
        let read = axum::body::to_bytes(body, usize::MAX);
        let bytes = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(read)
            .unwrap();
        (parts.status, parts.headers, serde_json::from_slice(&bytes).unwrap())
    }

    #[test]
    fn every_rejection_is_a_client_error() {
        for (code, status) in [
            (ErrorCode::Invalid, 400),
            (ErrorCode::Unauthenticated, 401),
            (ErrorCode::Forbidden, 403),
            (ErrorCode::NotFound, 404),
            (ErrorCode::Conflict, 409),
            (ErrorCode::Stale, 409),
            (ErrorCode::IdempotencyMismatch, 422),
            (ErrorCode::QuotaExceeded, 429),
        ] {
            let (got, headers, body) = shown(Rejection::new(code, "why").into(), Face::Abbababa);
            assert_eq!(got, status);
            assert_eq!(body, json!({ "success": false, "error": "why", "code": code.as_str() }));
            assert_eq!(headers.contains_key(header::RETRY_AFTER), status == 429);
        }
    }

    #[test]
    fn kite_tells_when_to_come_back() {
        let rejection = Rejection {
            retry_after_s: 77,
            ..Rejection::new(ErrorCode::QuotaExceeded, "used up")
        };
        let (status, headers, body) = shown(rejection.into(), Face::Kite);
        assert_eq!(status, 429);
        assert_eq!(headers[header::RETRY_AFTER], "77");
        assert_eq!(body, json!({ "error": "used up", "retry_after_secs": 77 }));
    }

    #[test]
    fn unknown_outcomes_are_not_failures() {
        let (status, headers, body) = shown(ProposeError::OutcomeUnknown("x".into()).into(), Face::Abbababa);
        assert_eq!(status, 504);
        assert!(!headers.contains_key(header::RETRY_AFTER));
        assert!(body["error"].as_str().unwrap().contains("same Idempotency-Key"));
        let (status, headers, body) = shown(ProposeError::NoRoom("node 2 is full".into()).into(), Face::Kite);
        assert_eq!(
            (status.as_u16(), &headers[header::RETRY_AFTER]),
            (503, &HeaderValue::from_static("5"))
        );
        assert_eq!(body, json!({ "error": "node 2 is full" }));
        for error in [ProposeError::NotReady("x".into()), ProposeError::Overloaded] {
            let (status, headers, _) = shown(error.into(), Face::Kite);
            assert_eq!(status, 503);
            assert_eq!(headers[header::RETRY_AFTER], "1");
        }
        let (status, headers, body) = shown(ProposeError::ShareUsedUp.into(), Face::Kite);
        assert_eq!(
            (status.as_u16(), &headers[header::RETRY_AFTER]),
            (429, &HeaderValue::from_static("1"))
        );
        assert_eq!(body, json!({ "error": SHARE_USED_UP, "retry_after_secs": 1 }));
    }

    #[test]
    fn details_name_the_field_for_both_readers() {
        let (_, _, body) = shown(ApiError::field("limit", "must be 1 to 200"), Face::Abbababa);
        let detail = json!({ "path": ["limit"], "field": "limit", "message": "limit must be 1 to 200" });
        assert_eq!(body["details"], json!([detail]));
        assert_eq!(body["error"], "limit must be 1 to 200");
    }
}
