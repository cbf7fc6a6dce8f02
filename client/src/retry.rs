//! When a failed request is repeated, and how long the client waits before.
//!
//! A failed attempt is one of three:
//!
//! | outcome | seen as | what follows |
//! |---|---|---|
//! | refused | a status from 300 to 499 | the request ends with [`Error::Refused`] |
//! | not done | no connection, or 503 | another node is asked; in the end [`Error::Unavailable`] |
//! | unknown | no answer, or 500, 502, 504 | repeated only if that cannot do it twice; else [`Error::OutcomeUnknown`] |
//!
//! Repeating cannot do it twice if the request is a read, if it is idempotent by nature, or if it carries an
//! idempotency key. Once one attempt was unknown, the request stays unknown until a server decides it, whatever happens
//! to later attempts.

use std::time::{Duration, Instant};

use reqwest::StatusCode;

use crate::error::{Answer, Error, cause};

/// How long and how often a client tries.
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    /// How often each node is asked; 1 means that every node is asked once, 0 that one node is asked once.
    pub rounds_max: u32,
    /// No attempt begins later than this time after the first.
    pub give_up_after: Duration,
    /// The pause after the first round in which every node failed. It doubles with each round.
    pub pause_min: Duration,
    /// The longest pause, which also bounds the `Retry-After` of a server.
    pub pause_max: Duration,
}

impl Default for RetryPolicy {
    /// 6 rounds within 30 s, with pauses from 100 ms to 3 s: several times as long as an election takes.
    fn default() -> Self {
        RetryPolicy {
            rounds_max: 6,
            give_up_after: Duration::from_secs(30),
            pause_min: Duration::from_millis(100),
            pause_max: Duration::from_secs(3),
        }
    }
}

impl RetryPolicy {
    /// One attempt at one node, for callers that record every outcome themselves.
    pub fn once() -> Self {
        RetryPolicy {
            rounds_max: 0,
            give_up_after: Duration::ZERO,
            ..RetryPolicy::default()
        }
    }
}

/// Whether an attempt of unknown outcome may be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeat {
    /// It may be repeated: doing it twice is the same as once.
    Safely,
    /// It may be repeated only if it was certainly not done.
    OnlyIfNotDone,
}

/// The meaning of a failed attempt.
#[derive(Debug)]
pub(crate) enum Failure {
    Refused(Answer),
    /// The request itself cannot be sent.
    Invalid(String),
    NotDone {
        reason: String,
        answer: Option<Answer>,
    },
    Unknown {
        reason: String,
        answer: Option<Answer>,
    },
}

impl Failure {
    /// Judges an answer other than 2xx.
    pub(crate) fn of_answer(answer: Answer) -> Self {
        let reason = answer.to_string();
        match answer.status {
            StatusCode::SERVICE_UNAVAILABLE => Failure::NotDone {
                reason,
                answer: Some(answer),
            },
            status if status.is_server_error() => Failure::Unknown {
                reason,
                answer: Some(answer),
            },
            _ => Failure::Refused(answer),
        }
    }

    /// Judges an attempt without an answer.
    pub(crate) fn of_transport(base: &str, error: reqwest::Error) -> Self {
        let not_sent = error.is_connect();
        let what = if error.is_timeout() && !not_sent {
            "no answer in time".to_owned()
        } else {
            cause(&error.without_url())
        };
        let reason = format!("{base}: {what}");
        if not_sent {
            Failure::NotDone { reason, answer: None }
        } else {
            Failure::Unknown { reason, answer: None }
        }
    }

    /// Whether another node may succeed.
    pub(crate) fn is_of_the_node(&self) -> bool {
        matches!(self, Failure::NotDone { .. } | Failure::Unknown { .. })
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Failure::Refused(_) | Failure::Invalid(_) => None,
            Failure::NotDone { answer, .. } | Failure::Unknown { answer, .. } => answer.as_ref()?.retry_after,
        }
    }
}

/// The failed attempts of one request.
pub(crate) struct Attempts<'a> {
    policy: &'a RetryPolicy,
    nodes: u32,
    failed: u32,
    started: Instant,
    some_unknown: bool,
}

impl<'a> Attempts<'a> {
    pub(crate) fn new(policy: &'a RetryPolicy, nodes: usize) -> Self {
        let nodes = u32::try_from(nodes).unwrap_or(u32::MAX).max(1);
        Attempts {
            policy,
            nodes,
            failed: 0,
            started: Instant::now(),
            some_unknown: false,
        }
    }

    /// How long to wait before the next attempt, or the error to end with. `chance` is the jitter, from 0 to 1.
    pub(crate) fn after(&mut self, failure: Failure, repeat: Repeat, chance: f64) -> Result<Duration, Error> {
        self.failed += 1;
        self.some_unknown |= matches!(failure, Failure::Unknown { .. });
        let refused = !failure.is_of_the_node();
        let harmful = self.some_unknown && repeat == Repeat::OnlyIfNotDone;
        let exhausted = self.failed >= self.policy.rounds_max.saturating_mul(self.nodes).max(1);
        let pause = self.pause(failure.retry_after(), chance);
        let late = self.started.elapsed() + pause > self.policy.give_up_after;
        if refused || harmful || exhausted || late {
            return Err(self.ended_by(failure));
        }
        Ok(pause)
    }

    /// Zero before a node that was not asked in this round yet. Between rounds it grows exponentially, with jitter.
    fn pause(&self, retry_after: Option<Duration>, chance: f64) -> Duration {
        if !self.failed.is_multiple_of(self.nodes) {
            return Duration::ZERO;
        }
        let round = (self.failed / self.nodes).min(16);
        let grown = self
            .policy
            .pause_min
            .saturating_mul(1 << (round - 1))
            .max(retry_after.unwrap_or_default());
        grown.min(self.policy.pause_max).mul_f64(0.5 + chance / 2.0)
    }

    fn ended_by(&self, failure: Failure) -> Error {
        match failure {
            Failure::Refused(answer) => Error::Refused(answer),
            Failure::Invalid(reason) => Error::Invalid(reason),
            Failure::NotDone { reason, answer } if !self.some_unknown => Error::Unavailable { reason, answer },
            Failure::NotDone { reason, answer } | Failure::Unknown { reason, answer } => {
                Error::OutcomeUnknown { reason, answer }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16) -> Failure {
        let status = StatusCode::from_u16(status).expect("a status");
        Failure::of_answer(Answer {
            status,
            body: String::new(),
            retry_after: None,
        })
    }

    fn patient() -> RetryPolicy {
        RetryPolicy {
            give_up_after: Duration::from_secs(3600),
            ..RetryPolicy::default()
        }
    }

    #[test]
    fn statuses_fall_into_three_classes() {
        assert!(matches!(answer(503), Failure::NotDone { .. }));
        for status in [500, 502, 504] {
            assert!(matches!(answer(status), Failure::Unknown { .. }), "{status}");
        }
        for status in [301, 400, 401, 403, 404, 409, 413, 422, 429] {
            assert!(matches!(answer(status), Failure::Refused(_)), "{status}");
        }
    }

    #[test]
    fn an_unknown_outcome_is_repeated_only_when_that_is_safe() {
        let policy = patient();
        let mut attempts = Attempts::new(&policy, 3);
        assert!(attempts.after(answer(504), Repeat::Safely, 0.5).is_ok());
        let mut attempts = Attempts::new(&policy, 3);
        let end = attempts.after(answer(504), Repeat::OnlyIfNotDone, 0.5);
        assert!(matches!(end, Err(Error::OutcomeUnknown { .. })));
    }

    #[test]
    fn once_unknown_stays_unknown_until_a_server_decides() {
        let policy = RetryPolicy {
            rounds_max: 1,
            ..patient()
        };
        let mut attempts = Attempts::new(&policy, 2);
        assert!(attempts.after(answer(504), Repeat::Safely, 0.5).is_ok());
        let end = attempts.after(answer(503), Repeat::Safely, 0.5);
        assert!(matches!(end, Err(Error::OutcomeUnknown { .. })));

        let mut attempts = Attempts::new(&policy, 2);
        assert!(attempts.after(answer(504), Repeat::Safely, 0.5).is_ok());
        assert!(matches!(
            attempts.after(answer(403), Repeat::Safely, 0.5),
            Err(Error::Refused(_))
        ));
    }

    #[test]
    fn every_node_is_asked_before_the_first_pause_and_pauses_grow() {
        let policy = patient();
        let mut attempts = Attempts::new(&policy, 3);
        let pauses: Vec<u128> = (0..9)
            .map(|_| {
                attempts
                    .after(answer(503), Repeat::OnlyIfNotDone, 1.0)
                    .expect("another attempt")
                    .as_millis()
            })
            .collect();
        assert_eq!(pauses, [0, 0, 100, 0, 0, 200, 0, 0, 400]);
    }

    #[test]
    fn attempts_are_bounded() {
        let policy = patient();
        let mut attempts = Attempts::new(&policy, 1);
        let made = (1..).find(|_| attempts.after(answer(503), Repeat::Safely, 0.0).is_err());
        assert_eq!(made, Some(6));

        let policy = RetryPolicy::once();
        let end = Attempts::new(&policy, 3).after(answer(503), Repeat::Safely, 0.0);
        assert!(matches!(end, Err(Error::Unavailable { .. })));
    }

    #[test]
    fn retry_after_is_obeyed_within_reason() {
        let policy = patient();
        let told = |seconds| Failure::NotDone {
            reason: String::new(),
            answer: Some(Answer {
                status: StatusCode::SERVICE_UNAVAILABLE,
                body: String::new(),
                retry_after: Some(Duration::from_secs(seconds)),
            }),
        };
        let mut attempts = Attempts::new(&policy, 1);
        assert_eq!(
            attempts.after(told(1), Repeat::Safely, 1.0).ok(),
            Some(Duration::from_secs(1))
        );
        assert_eq!(
            attempts.after(told(900), Repeat::Safely, 1.0).ok(),
            Some(policy.pause_max)
        );
    }
}
