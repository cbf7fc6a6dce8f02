//! What can go wrong, sorted by what the caller may do next.

use std::fmt;
use std::time::Duration;

use reqwest::StatusCode;

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server refused: repeating the same request gets the same answer.
    #[error("{0}")]
    Refused(Answer),
    /// Nothing was done, on any of the nodes tried. Safe to repeat.
    #[error("no node took the request: {reason}")]
    Unavailable {
        /// The last failure.
        reason: String,
        /// What the last node answered, if it answered.
        answer: Option<Answer>,
    },
    /// It may or may not have happened. Repeat it only under the same idempotency key.
    #[error("outcome unknown: {reason}")]
    OutcomeUnknown {
        /// The last failure.
        reason: String,
        /// What the last node answered, if it answered.
        answer: Option<Answer>,
    },
    /// The request was accepted, but its answer is not of the documented form.
    #[error("the server's answer is not of the documented form: {0}")]
    Malformed(String),
    /// The WebSocket session was ended for a reason that reconnecting does not cure.
    #[error("Server error ({code}): {message}")]
    Session {
        /// A code of `agentpost_proto::frame`.
        code: u32,
        /// The server's sentence.
        message: String,
    },
    /// The server declined a request over the socket: repeating it gets the same answer.
    #[error("{0}")]
    Declined(String),
    /// The caller's own input: a URL, a key, a file.
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    /// What a server answered, when the failure is an answer.
    pub fn answer(&self) -> Option<&Answer> {
        match self {
            Error::Refused(answer) => Some(answer),
            Error::Unavailable { answer, .. } | Error::OutcomeUnknown { answer, .. } => answer.as_ref(),
            Error::Malformed(_) | Error::Session { .. } | Error::Declined(_) | Error::Invalid(_) => None,
        }
    }
}

/// An HTTP answer as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The whole body.
    pub body: String,
    /// `Retry-After`, when it is a number of seconds.
    pub retry_after: Option<Duration>,
}

impl Answer {
    /// The sentence of the error body, which is the string `error` on every face.
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

/// The innermost cause: HTTP libraries wrap "connection refused" in three layers that say less.
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
