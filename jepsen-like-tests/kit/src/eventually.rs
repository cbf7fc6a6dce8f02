//! Polling: a test waits for a state, never for a time.

use std::fmt::Display;
use std::panic::Location;
use std::time::Duration;

use anyhow::{Result, anyhow};
use tokio::time::{sleep, timeout};

/// Longer than anything takes on a machine that is busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two polls.
const PAUSE: Duration = Duration::from_millis(20);

/// Polls until `probe` returns `Some`. `what` completes the sentence "waited for …".
///
/// # Panics
/// After [`PATIENCE`], with `what` and the line of the caller.
#[track_caller]
pub fn eventually<T>(what: impl Display, probe: impl AsyncFnMut() -> Option<T>) -> impl Future<Output = T> {
    let caller = Location::caller();
    async move {
        match within(PATIENCE, what, probe).await {
            Ok(found) => found,
            Err(error) => panic!("{caller}: {error}"),
        }
    }
}

/// Polls until `probe` returns `Some`; the error after `patience` names `what`.
pub async fn within<T>(patience: Duration, what: impl Display, mut probe: impl AsyncFnMut() -> Option<T>) -> Result<T> {
    let poll = async {
        loop {
            if let Some(found) = probe().await {
                return found;
            }
            sleep(PAUSE).await;
        }
    };
    let late = |_| anyhow!("waited {patience:?} in vain for {what}");
    timeout(patience, poll).await.map_err(late)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn polls_until_there_is_something() {
        let mut polls = 0;
        let found = within(PATIENCE, "the third poll", async || {
            polls += 1;
            (polls == 3).then_some(polls)
        });
        assert_eq!(found.await.unwrap(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn the_error_names_what_did_not_come_even_if_a_probe_hangs() {
        let error = within(PATIENCE, "a miracle", async || None::<()>).await.unwrap_err();
        assert_eq!(error.to_string(), "waited 60s in vain for a miracle");
        let hangs = within(PATIENCE, "an answer", std::future::pending::<Option<()>>);
        assert_eq!(hangs.await.unwrap_err().to_string(), "waited 60s in vain for an answer");
    }

    #[tokio::test(start_paused = true)]
    async fn the_panic_names_the_line_that_waited() {
        let line = line!() + 1;
        let panic = tokio::spawn(eventually("a miracle", async || None::<()>))
            .await
            .unwrap_err();
        let text = panic.into_panic().downcast::<String>().unwrap();
        assert_eq!(
            *text,
            format!("{}:{line}:34: waited 60s in vain for a miracle", file!())
        );
    }
}
