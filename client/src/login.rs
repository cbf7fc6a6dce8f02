//! The device login: a machine without a key shows a code, an administrator lets it in, and the machine gets a key of
//! its own. This is the machine's side. The administrator's side is [`crate::operator::Operator::waiting_login`] and
//! the calls after it.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use agentpost::Agentpost;
//! use agentpost::login::Login;
//!
//! let post = Agentpost::builder("http://127.0.0.1:7700").build()?;
//! let login = Login::start(post.http().clone(), Some("build server".to_owned())).await?;
//! println!("Open {} and enter the code {}", login.code().verification_url, login.code().user_code);
//! let key = login.key().await?;
//! println!("team {}", key.team_id);
//! # Ok(())
//! # }
//! ```

use std::ops::ControlFlow;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::Error;
use crate::api::kite::{
    DeviceCode, DeviceKey, DeviceToken, LOGIN_DENIED, LOGIN_EXPIRED, LOGIN_PENDING, LOGIN_SLOW_DOWN, StartLogin,
};
use crate::http::{Http, Request};
use crate::retry::Repeat;

/// The time between two requests if the server names none.
const INTERVAL: Duration = Duration::from_secs(5);
/// Bounds of the interval that a server names.
const INTERVAL_MIN: Duration = Duration::from_secs(1);
const INTERVAL_MAX: Duration = Duration::from_secs(60);
/// Each `slow_down` makes the interval longer by this.
const SLOWER: Duration = Duration::from_secs(5);
/// The longest time that a device waits, which is also the life of a code if the server names none.
const LIFE_MAX: Duration = Duration::from_secs(30 * 60);

/// Why a device has no key.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// Nobody let it in before the code expired.
    #[error("Device code expired")]
    Expired,
    /// The code is used up, and the answer that may have held the key was lost. There may be a key whose secret nobody
    /// has.
    #[error("the server's answer with the key was lost")]
    Lost,
    /// An administrator turned it away.
    #[error("Authorization denied")]
    Denied,
    /// An error that asking again does not cure.
    #[error(transparent)]
    Client(#[from] Error),
}

/// A device that waits to be let in.
pub struct Login {
    client: Http,
    code: DeviceCode,
    ends_at: Instant,
}

impl Login {
    /// Asks for a code. `device` is the name that the machine shows to the administrator.
    ///
    /// # Errors
    /// See [`crate::http::Http::call`].
    pub async fn start(client: Http, device: Option<String>) -> Result<Self, Error> {
        let request = Request::post("/api/auth/device-code").json(&StartLogin { client: device })?;
        // A code that nobody enters expires.
        let code: DeviceCode = client.call(request.repeat(Repeat::Safely)).await?;
        let life = code.expires_in.map_or(LIFE_MAX, Duration::from_secs).min(LIFE_MAX);
        Ok(Login {
            client,
            code,
            ends_at: Instant::now() + life,
        })
    }

    /// The code that the machine shows to a person, and the page to enter it on.
    pub fn code(&self) -> &DeviceCode {
        &self.code
    }

    /// Asks, at the server's pace, until an administrator has decided. An answer that decides nothing does not end it,
    /// nor does a node that does not answer. Dropping the future may lose a key that was just made.
    ///
    /// # Errors
    /// See [`Failed`].
    pub async fn key(self) -> Result<DeviceKey, Failed> {
        let mut course = Course::new(self.code.interval);
        let mut pause = course.interval;
        loop {
            sleep(pause).await;
            // It asks once more when the time is up: the code may have been approved in its last seconds.
            let last = Instant::now() >= self.ends_at;
            let device_code = self.code.device_code.clone();
            let request = Request::post("/api/auth/device-token").json(&DeviceToken { device_code })?;
            match course.after(self.client.call(request).await, last) {
                ControlFlow::Break(end) => return end,
                ControlFlow::Continue(next) => pause = next,
            }
        }
    }
}

/// The state of the login after the answers so far.
#[derive(Debug)]
struct Course {
    interval: Duration,
    /// Whether the last answer was lost, which may have held the key.
    unsure: bool,
}

impl Course {
    fn new(seconds: Option<u64>) -> Self {
        let interval = seconds.map_or(INTERVAL, Duration::from_secs);
        Course {
            interval: interval.clamp(INTERVAL_MIN, INTERVAL_MAX),
            unsure: false,
        }
    }

    /// The result, or the pause before the next request.
    fn after(
        &mut self,
        answer: Result<DeviceKey, Error>,
        last: bool,
    ) -> ControlFlow<Result<DeviceKey, Failed>, Duration> {
        let error = match answer {
            Ok(key) => return ControlFlow::Break(Ok(key)),
            Err(Error::Invalid(reason)) => return ControlFlow::Break(Err(Error::Invalid(reason).into())),
            Err(error) => error,
        };
        let mut pause = self.interval;
        match error.answer().and_then(|answer| answer.message()).as_deref() {
            Some(LOGIN_DENIED) => return ControlFlow::Break(Err(Failed::Denied)),
            Some(LOGIN_EXPIRED) if self.unsure && !last => return ControlFlow::Break(Err(Failed::Lost)),
            Some(LOGIN_EXPIRED) => return ControlFlow::Break(Err(Failed::Expired)),
            Some(LOGIN_PENDING) => self.unsure = false,
            Some(LOGIN_SLOW_DOWN) => {
                self.unsure = false;
                self.interval = (self.interval + SLOWER).min(INTERVAL_MAX);
                pause = self.interval;
            }
            _ => {
                self.unsure |= matches!(error, Error::OutcomeUnknown { .. } | Error::Malformed(_));
                let told = error.answer().and_then(|answer| answer.retry_after);
                pause = pause.max(told.unwrap_or_default()).min(INTERVAL_MAX);
            }
        }
        if last {
            return ControlFlow::Break(Err(Failed::Expired));
        }
        ControlFlow::Continue(pause)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::error::Answer;
    use reqwest::StatusCode;

    fn refused(status: u16, body: &str, retry_after: Option<u64>) -> Result<DeviceKey, Error> {
        Err(Error::Refused(Answer {
            status: StatusCode::from_u16(status).unwrap(),
            body: body.to_owned(),
            retry_after: retry_after.map(Duration::from_secs),
        }))
    }

    fn said(error: &str) -> Result<DeviceKey, Error> {
        refused(400, &format!("{{\"error\":\"{error}\"}}"), None)
    }

    fn unknown() -> Result<DeviceKey, Error> {
        let reason = String::new();
        Err(Error::OutcomeUnknown { reason, answer: None })
    }

    /// Seconds until the next question.
    fn pause(course: &mut Course, answer: Result<DeviceKey, Error>) -> u64 {
        match course.after(answer, false) {
            ControlFlow::Continue(pause) => pause.as_secs(),
            ControlFlow::Break(end) => panic!("ended with {end:?}"),
        }
    }

    fn end(course: &mut Course, answer: Result<DeviceKey, Error>, last: bool) -> Result<DeviceKey, Failed> {
        match course.after(answer, last) {
            ControlFlow::Continue(pause) => panic!("goes on after {pause:?}"),
            ControlFlow::Break(end) => end,
        }
    }

    #[test]
    fn the_server_sets_the_pace_within_bounds() {
        for (told, seconds) in [(None, 5), (Some(0), 1), (Some(7), 7), (Some(86_400), 60)] {
            assert_eq!(Course::new(told).interval.as_secs(), seconds, "{told:?}");
        }
        let course = &mut Course::new(Some(2));
        assert_eq!(pause(course, said(LOGIN_PENDING)), 2);
        assert_eq!(pause(course, said(LOGIN_SLOW_DOWN)), 7);
        assert_eq!(pause(course, said(LOGIN_SLOW_DOWN)), 12);
        assert_eq!(pause(course, said(LOGIN_PENDING)), 12, "slower from then on");
        let busy = "{\"error\":\"too many\",\"retry_after_secs\":30}";
        assert_eq!(pause(course, refused(429, busy, Some(30))), 30);
        assert_eq!(pause(course, refused(429, busy, Some(9_999))), 60);
    }

    #[test]
    fn undecided_answers_are_polled_again() {
        let course = &mut Course::new(None);
        for (status, body) in [
            (404, ""),
            (502, "<html>"),
            (400, "{\"error\":\"news\"}"),
            (400, "{\"error\":7}"),
        ] {
            assert_eq!(pause(course, refused(status, body, None)), 5, "{status} {body}");
        }
        assert_eq!(pause(course, unknown()), 5);
        assert_eq!(pause(course, Err(Error::Malformed(String::new()))), 5);
    }

    #[test]
    fn decisions_end_it() {
        let key = DeviceKey {
            api_key: "k".to_owned().into(),
            team_id: "t".to_owned(),
        };
        let course = &mut Course::new(None);
        assert_eq!(end(course, Ok(key), false).unwrap().team_id, "t");
        let denied = refused(403, "{\"error\":\"access_denied\"}", None);
        assert!(matches!(end(course, denied, false), Err(Failed::Denied)));
        assert!(matches!(end(course, said(LOGIN_EXPIRED), false), Err(Failed::Expired)));
        assert!(matches!(end(course, said(LOGIN_PENDING), true), Err(Failed::Expired)));
    }

    #[test]
    fn a_code_used_up_after_a_lost_answer_is_told_from_an_old_one() {
        let course = &mut Course::new(None);
        pause(course, unknown());
        assert!(matches!(end(course, said(LOGIN_EXPIRED), false), Err(Failed::Lost)));
        assert!(matches!(end(course, said(LOGIN_EXPIRED), true), Err(Failed::Expired)));
        // Still pending: the lost answer held no key.
        pause(course, said(LOGIN_PENDING));
        assert!(matches!(end(course, said(LOGIN_EXPIRED), false), Err(Failed::Expired)));
    }
}
