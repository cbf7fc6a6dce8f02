//! Errors, sorted by what the caller may do next.

use std::fmt;
use std::time::Duration;

use reqwest::StatusCode;

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server refused the request. The same request would get the same answer.
    #[error("{0}")]
    Refused(Answer),
    /// None of the nodes that were asked did anything. It is safe to repeat the request.
    #[error("no node took the request: {reason}")]
    Unavailable {
        /// The last failure.
        reason: String,
        /// The answer of the last node, if it gave one.
        answer: Option<Answer>,
    },
    /// The request may or may not have been carried out. Repeat it only under the same idempotency key.
    #[error("outcome unknown: {reason}")]
    OutcomeUnknown {
        /// The last failure.
        reason: String,
        /// The answer of the last node, if it gave one.
        answer: Option<Answer>,
    },
    /// An answer, or the body of a message, does not have the expected form. The request itself was carried out.
    #[error("the server's answer is not of the documented form: {0}")]
    Malformed(String),
    /// The server ended the WebSocket session for a reason that reconnecting does not cure, such as a revoked key.
    #[error("Server error ({code}): {message}")]
    Session {
        /// The code of the `error` frame; 4001 for a key or team that is not accepted.
        code: u32,
        /// The server's sentence.
        message: String,
    },
    /// The server declined a method of the Kite API. The same request would get the same answer.
    #[error("{0}")]
    Declined(String),
    /// The caller's own input cannot be used: a URL, a key, a body.
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    /// The server's answer, if the failure is one.
    pub fn answer(&self) -> Option<&Answer> {
        match self {
            Error::Refused(answer) => Some(answer),
            Error::Unavailable { answer, .. } | Error::OutcomeUnknown { answer, .. } => answer.as_ref(),
            Error::Malformed(_) | Error::Session { .. } | Error::Declined(_) | Error::Invalid(_) => None,
        }
    }
}

/// An HTTP answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: StatusCode,
    /// The whole body.
    pub body: String,
    /// The header `Retry-After`, if it is a number of seconds.
    pub retry_after: Option<Duration>,
}

impl Answer {
    /// The sentence of an error body: the text member `error`, which every face has.
    pub fn message(&self) -> Option<String> {
        let body: serde_json::Value = serde_json::from_str(&self.body).ok()?;
        Some(body.get("error")?.as_str()?.to_owned())
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.message() {
            Some(message) => write!(f, "{} ({})", message, self.status),
            None => write!(f, "{}", self.status),
        }
    }
}

/// The innermost cause. HTTP libraries wrap "connection refused" in three layers that say less.
pub(crate) fn cause(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_answer_speaks_with_the_servers_sentence() {
        let mut answer = Answer {
            status: StatusCode::FORBIDDEN,
            body: r#"{"success":false,"error":"the key lacks write","code":"forbidden"}"#.to_owned(),
            retry_after: None,
        };
        assert_eq!(answer.to_string(), "the key lacks write (403 Forbidden)");
        answer.body = "<html>".to_owned();
        assert_eq!(Error::Refused(answer).to_string(), "403 Forbidden");
    }
}
