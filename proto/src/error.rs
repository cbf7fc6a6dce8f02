//! The stable names of error codes and permissions in JSON, and the constructor of rejections.

use crate::command::{ErrorCode, Permission, Rejection};

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
            ErrorCode::Gone => "gone",
        }
    }
}

impl Rejection {
    /// A rejection with its text for the caller.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Rejection {
            code: code as i32,
            message: message.into(),
            retry_after_s: 0,
        }
    }
}

impl Permission {
    /// The name in JSON and on command lines.
    pub fn name(self) -> &'static str {
        match self {
            Permission::Unspecified => "none",
            Permission::Read => "read",
            Permission::Write => "write",
            Permission::Admin => "admin",
        }
    }

    /// The permission with this name; `*` means `admin`.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "read" => Some(Permission::Read),
            "write" => Some(Permission::Write),
            "admin" | "*" => Some(Permission::Admin),
            _ => None,
        }
    }
}
