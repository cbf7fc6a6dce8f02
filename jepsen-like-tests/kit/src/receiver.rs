//! A webhook receiver that answers from scripts and records each call.
//!
//! A script is a list of answers for one path; its last answer repeats. It advances with each call to the path, or
//! separately for each delivery. A path without a script gets the default answer: 200 unless a test changes it.
//! [`Server`] is the part without scripts and records, for programs that decide each answer themselves.

mod exchange;
mod server;
#[cfg(test)]
mod wire;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tokio::sync::watch;

pub use exchange::{Answer, Call};
pub use hyper::{HeaderMap, Method};
pub use server::Server;

/// A running receiver on a free port. Dropping it closes the port.
pub struct Receiver {
    server: Server,
    state: Arc<Mutex<State>>,
    count: watch::Receiver<usize>,
}

struct State {
    default: Answer,
    scripts: HashMap<String, Script>,
    count: usize,
    record: Record,
}

enum Record {
    Calls(Vec<Call>),
    /// A long run has too many calls for the memory of this process.
    Witness(Witness),
}

/// Gets each call before it is answered. If it panics, the call gets no answer.
pub type Witness = Box<dyn FnMut(&Call) + Send>;

struct Script {
    answers: Vec<Answer>,
    per_delivery: bool,
    /// Number of calls so far by delivery id, or under the empty id.
    counts: HashMap<String, usize>,
}

impl Receiver {
    /// Listens on loopback.
    pub async fn start() -> io::Result<Self> {
        Self::listen(Ipv4Addr::LOCALHOST.into(), Record::Calls(Vec::new())).await
    }

    /// Listens on `host` and passes each call to `witness` instead of recording it.
    pub async fn start_with_witness(host: IpAddr, witness: Witness) -> io::Result<Self> {
        Self::listen(host, Record::Witness(witness)).await
    }

    async fn listen(host: IpAddr, record: Record) -> io::Result<Self> {
        let state = Arc::new(Mutex::new(State {
            default: Answer::status(200),
            scripts: HashMap::new(),
            count: 0,
            record,
        }));
        let (counter, count) = watch::channel(0);
        let shared = state.clone();
        let server = Server::start((host, 0), move |call| {
            let (answer, calls) = lock(&shared).answer(call);
            // Two connections may get here in the reverse order of their counts.
            counter.send_if_modified(|count| {
                let is_more = calls > *count;
                *count = calls.max(*count);
                is_more
            });
            answer
        })
        .await?;
        Ok(Receiver { server, state, count })
    }

    /// The URL of a path such as `/hook`; the base URL for the empty path.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.server.url())
    }

    /// The time from which [`Call::at_us`] counts.
    pub fn started(&self) -> Instant {
        self.server.started()
    }

    /// Sets the answer of paths without a script.
    pub fn set_default(&self, answer: Answer) {
        lock(&self.state).default = answer;
    }

    /// Gives `path` a new script, which each call advances.
    ///
    /// # Panics
    /// If there are no answers; so do [`Self::script_per_delivery`] and [`Self::statuses`].
    pub fn script(&self, path: &str, answers: impl IntoIterator<Item = Answer>) {
        self.put_script(path, answers, false);
    }

    /// Gives `path` a new script that each delivery (`webhook-id`) gets from its beginning.
    pub fn script_per_delivery(&self, path: &str, answers: impl IntoIterator<Item = Answer>) {
        self.put_script(path, answers, true);
    }

    /// [`Self::script_per_delivery`] for answers that are only a status.
    pub fn statuses(&self, path: &str, statuses: &[u16]) {
        self.script_per_delivery(path, statuses.iter().map(|&status| Answer::status(status)));
    }

    fn put_script(&self, path: &str, answers: impl IntoIterator<Item = Answer>, per_delivery: bool) {
        let script = Script {
            answers: answers.into_iter().collect(),
            per_delivery,
            counts: HashMap::new(),
        };
        assert!(!script.answers.is_empty(), "a script has at least one answer");
        lock(&self.state).scripts.insert(path.to_owned(), script);
    }

    /// All recorded calls in the order of arrival.
    pub fn calls(&self) -> Vec<Call> {
        lock(&self.state).calls().to_vec()
    }

    /// The recorded calls to one path with any query.
    pub fn calls_to(&self, path: &str) -> Vec<Call> {
        let state = lock(&self.state);
        let calls = state.calls().iter().filter(|call| call.route() == path);
        calls.cloned().collect()
    }

    /// The number of calls so far.
    pub fn count(&self) -> usize {
        *self.count.borrow()
    }

    /// Waits until there are at least `calls` calls; an error if they do not come in time.
    pub async fn wait_for(&self, calls: usize, patience: Duration) -> Result<Vec<Call>> {
        let mut count = self.count.clone();
        let enough = tokio::time::timeout(patience, count.wait_for(|&count| count >= calls)).await;
        enough.with_context(|| format!("{} of {calls} calls within {patience:?}", self.count()))??;
        Ok(self.calls())
    }

    /// Waits until there are at least `count` calls to `path`.
    ///
    /// # Panics
    /// If they do not come within [`crate::PATIENCE`].
    #[track_caller]
    pub fn called(&self, path: &str, count: usize) -> impl Future<Output = Vec<Call>> {
        crate::eventually(format!("call number {count} of {path}"), async move || {
            let calls = self.calls_to(path);
            (calls.len() >= count).then_some(calls)
        })
    }
}

impl State {
    fn calls(&self) -> &[Call] {
        match &self.record {
            Record::Calls(calls) => calls,
            Record::Witness(_) => &[],
        }
    }

    /// Records the call. Returns its answer and the number of calls.
    fn answer(&mut self, call: Call) -> (Answer, usize) {
        let answer = match self.scripts.get_mut(call.route()) {
            Some(script) => script.next(&call),
            None => self.default.clone(),
        };
        match &mut self.record {
            Record::Calls(calls) => calls.push(call),
            Record::Witness(witness) => witness(&call),
        }
        self.count += 1;
        (answer, self.count)
    }
}

impl Script {
    fn next(&mut self, call: &Call) -> Answer {
        let id = match self.per_delivery {
            true => call.header("webhook-id").unwrap_or_default(),
            false => "",
        };
        let count = self.counts.entry(id.to_owned()).or_default();
        let at = (*count).min(self.answers.len() - 1);
        *count += 1;
        self.answers[at].clone()
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // The panic that poisoned the lock has already failed the test.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::wire::{post, read_until};
    use super::*;
    use crate::PATIENCE;
    use tokio::net::TcpStream;

    /// Posts as one attempt of a delivery and returns the status.
    async fn status_of(receiver: &Receiver, path: &str, delivery: &str) -> u16 {
        let address = receiver.url("").strip_prefix("http://").unwrap().to_owned();
        let mut stream = TcpStream::connect(address).await.unwrap();
        let headers = format!("webhook-id: {delivery}\r\n");
        post(&mut stream, path, &headers, "{\"a\":1}").await;
        let head = read_until(&mut stream, "\r\n\r\n").await;
        head.split(' ').nth(1).unwrap().parse().unwrap()
    }

    #[tokio::test]
    async fn a_path_follows_its_script_and_the_last_answer_repeats() {
        let receiver = Receiver::start().await.unwrap();
        receiver.set_default(Answer::status(204));
        receiver.script("/hook", [500, 410, 200].map(Answer::status));
        let mut statuses = Vec::new();
        for path in ["/hook", "/other", "/hook?x=1", "/hook", "/hook"] {
            statuses.push(status_of(&receiver, path, "dlv_1").await);
        }
        assert_eq!(statuses, [500, 204, 410, 200, 200]);
        assert_eq!(receiver.calls_to("/hook").len(), 4);
        let calls = receiver.wait_for(5, PATIENCE).await.unwrap();
        assert_eq!((calls.len(), calls[4].json()["a"].as_u64()), (5, Some(1)));
        assert!(receiver.wait_for(6, Duration::from_millis(1)).await.is_err());
        assert_eq!(receiver.called("/other", 1).await.len(), 1);
    }

    #[tokio::test]
    async fn each_delivery_gets_the_whole_script() {
        let receiver = Receiver::start().await.unwrap();
        receiver.statuses("/hook", &[500, 200]);
        let mut statuses = Vec::new();
        for delivery in ["dlv_1", "dlv_2", "dlv_1", "dlv_2"] {
            statuses.push(status_of(&receiver, "/hook", delivery).await);
        }
        assert_eq!(statuses, [500, 500, 200, 200]);
    }

    #[tokio::test]
    async fn a_witness_gets_each_call_before_it_is_answered() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let witness = seen.clone();
        let witness = Box::new(move |call: &Call| witness.lock().unwrap().push(call.path.clone()));
        let receiver = Receiver::start_with_witness(Ipv4Addr::LOCALHOST.into(), witness).await;
        let receiver = receiver.unwrap();
        for path in ["/a?b=c", "/a"] {
            status_of(&receiver, path, "dlv_1").await;
            assert_eq!(seen.lock().unwrap().last().unwrap(), path);
        }
        assert_eq!((receiver.count(), receiver.calls().len()), (2, 0));
    }
}
