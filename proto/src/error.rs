//! Stable error codes and the constructors of refusals.

use crate::command::{ErrorCode, Rejection};

impl ErrorCode {
    /// The machine-readable name in error bodies. Never changes.
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorCode::Unspecified => "internal",
            ErrorCode::Invalid => "invalid_request",
            ErrorCode::Unauthenticated => "invalid_api_key",
            ErrorCode::Forbidden => "forbidden",
            ErrorCode::NotFound => "not_found",
            ErrorCode::Conflict => "conflict",
            ErrorCode::IdempotencyMismatch => "idempotency_mismatch",
            ErrorCode::QuotaExceeded => "quota_exceeded",
            ErrorCode::Stale => "stale",
        }
    }
}

impl Rejection {
    /// A refusal with its text for the caller.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Rejection { code: code as i32, message: message.into(), retry_after_s: 0 }
    }
}
