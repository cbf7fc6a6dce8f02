//! A webhook receiver that answers from a script and remembers every call, or has somebody remember it: the witness of
//! the fault tests.
//!
//! Paths are independent. A path without a script gets the default answer, 200 unless changed. A script is a list of
//! answers and one for all calls after it; it advances with each call to the path, or separately for each delivery.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use agentpost::receiver::Server;
pub use agentpost::receiver::{Answer, Call};
use anyhow::{Context, Result};
use tokio::sync::watch;

/// A running receiver on a port of its own. It ends with the value.
pub struct Receiver {
    /// `http://HOST:PORT`.
    pub url: String,
    server: Server,
    state: Arc<Mutex<State>>,
    count: watch::Receiver<usize>,
}

struct State {
    default: Answer,
    scripts: HashMap<String, Script>,
    taken: usize,
    memory: Memory,
}

/// Who remembers the calls.
enum Memory {
    Here(Vec<Call>),
    /// Somebody else: a long run has too many for this process.
    RequestOutcome(Witness),
}

/// Is told of each call before it is answered. A witness that cannot write panics: the call ends without an answer.
pub type Witness = Box<dyn FnMut(&Call) + Send>;

struct Script {
    answers: Vec<Answer>,
    then: Answer,
    pace: Pace,
    /// Calls so far, by delivery id or under the empty one.
    taken: HashMap<String, usize>,
}

/// What moves a script on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// Each call to the path.
    Calls,
    /// Each call of the same delivery (`webhook-id`): every delivery meets the whole script.
    CallsOfADelivery,
}

impl Receiver {
    /// Listens on loopback.
    pub async fn start() -> Result<Self> {
        Self::listen(Ipv4Addr::LOCALHOST.into(), Memory::Here(Vec::new())).await
    }

    /// Listens on an address and remembers no call itself.
    pub async fn start_with_witness(host: IpAddr, witness: Witness) -> Result<Self> {
        Self::listen(host, Memory::RequestOutcome(witness)).await
    }

    async fn listen(host: IpAddr, memory: Memory) -> Result<Self> {
        let state = Arc::new(Mutex::new(State {
            default: Answer::status(200),
            scripts: HashMap::new(),
            taken: 0,
            memory,
        }));
        let (counted, count) = watch::channel(0);
        let shared = state.clone();
        let server = Server::start((host, 0), move |call| {
            let (answer, calls) = lock(&shared).take(call);
            // Two connections may tell their counts the other way round.
            counted.send_if_modified(|count| {
                let more = calls > *count;
                *count = calls.max(*count);
                more
            });
            answer
        })
        .await?;
        Ok(Receiver {
            url: server.url(),
            server,
            state,
            count,
        })
    }

    /// The URL of a path such as `/hook`.
    pub fn url_of(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    /// What [`Call::at_us`] counts from.
    pub fn started(&self) -> std::time::Instant {
        self.server.started()
    }

    /// Answers calls to paths without a script so.
    pub fn set_default(&self, answer: Answer) {
        lock(&self.state).default = answer;
    }

    /// Gives a path a script in the place of the one it had.
    pub fn script(&self, path: &str, pace: Pace, answers: impl IntoIterator<Item = Answer>, then: Answer) {
        let script = Script {
            answers: answers.into_iter().collect(),
            then,
            pace,
            taken: HashMap::new(),
        };
        lock(&self.state).scripts.insert(path.to_owned(), script);
    }

    /// [`Receiver::script`] for plain statuses; every delivery meets all of them.
    pub fn statuses(&self, path: &str, statuses: &[u16], then: u16) {
        let answers = statuses.iter().map(|&status| Answer::status(status));
        self.script(path, Pace::CallsOfADelivery, answers, Answer::status(then));
    }

    /// All calls so far that it remembers, in the order in which they were taken.
    pub fn calls(&self) -> Vec<Call> {
        lock(&self.state).calls().to_vec()
    }

    /// Those to one path, whatever their query.
    pub fn calls_to(&self, path: &str) -> Vec<Call> {
        let state = lock(&self.state);
        let of_path = |call: &&Call| bare(&call.path) == path;
        state.calls().iter().filter(of_path).cloned().collect()
    }

    /// How many calls there were.
    pub fn count(&self) -> usize {
        *self.count.borrow()
    }

    /// Waits until there were so many calls; an error when they do not come in time.
    pub async fn wait_for(&self, calls: usize, patience: Duration) -> Result<Vec<Call>> {
        let mut count = self.count.clone();
        let enough = tokio::time::timeout(patience, count.wait_for(|&count| count >= calls)).await;
        enough.with_context(|| format!("{} of {calls} calls within {patience:?}", self.count()))??;
        Ok(self.calls())
    }
}

impl State {
    fn calls(&self) -> &[Call] {
        match &self.memory {
            Memory::Here(calls) => calls,
            Memory::RequestOutcome(_) => &[],
        }
    }

    /// Records the call; returns its answer and the number of calls.
    fn take(&mut self, call: Call) -> (Answer, usize) {
        let answer = match self.scripts.get_mut(bare(&call.path)) {
            Some(script) => script.next(&call),
            None => self.default.clone(),
        };
        match &mut self.memory {
            Memory::Here(calls) => calls.push(call),
            Memory::RequestOutcome(witness) => witness(&call),
        }
        self.taken += 1;
        (answer, self.taken)
    }
}

impl Script {
    fn next(&mut self, call: &Call) -> Answer {
        let of = match self.pace {
            Pace::Calls => "",
            Pace::CallsOfADelivery => call.header("webhook-id").unwrap_or_default(),
        };
        let taken = self.taken.entry(of.to_owned()).or_default();
        *taken += 1;
        self.answers.get(*taken - 1).unwrap_or(&self.then).clone()
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // A panic while it is held has already failed the test.
    state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn bare(path: &str) -> &str {
    path.split('?').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use agentpost::Client;
    use agentpost::client::Request;
    use agentpost::retry::RetryPolicy;

    const PATIENCE: Duration = Duration::from_secs(30);

    /// Posts and returns the status.
    async fn post(receiver: &Receiver, path: &str, body: &str) -> u16 {
        let client = Client::builder(&receiver.url)
            .retry(RetryPolicy::once())
            .build()
            .unwrap();
        let request = Request::post(path).json(&body).unwrap();
        match client.request(&request).await {
            Ok(answer) => answer.status.as_u16(),
            Err(error) => error.answer().unwrap().status.as_u16(),
        }
    }

    #[tokio::test]
    async fn a_path_answers_from_its_script_and_then_as_told() {
        let receiver = Receiver::start().await.unwrap();
        receiver.set_default(Answer::status(204));
        receiver.script(
            "/hook",
            Pace::Calls,
            [Answer::status(500), Answer::status(410)],
            Answer::status(200),
        );
        let mut statuses = Vec::new();
        for path in ["/hook", "/other", "/hook?x=1", "/hook", "/hook"] {
            statuses.push(post(&receiver, path, "b").await);
        }
        assert_eq!(statuses, [500, 204, 410, 200, 200]);
        assert_eq!(receiver.calls_to("/hook").len(), 4);
        assert_eq!(receiver.wait_for(5, PATIENCE).await.unwrap().len(), 5);
        assert!(receiver.wait_for(6, Duration::from_millis(1)).await.is_err());
    }

    #[test]
    fn each_delivery_meets_the_whole_script() {
        let mut script = Script {
            answers: vec![Answer::status(500)],
            then: Answer::status(200),
            pace: Pace::CallsOfADelivery,
            taken: HashMap::new(),
        };
        let mut call = |id: &str| {
            let mut headers = agentpost::receiver::HeaderMap::new();
            headers.insert("webhook-id", id.parse().unwrap());
            let call = Call {
                method: agentpost::receiver::Method::POST,
                path: "/".to_owned(),
                headers,
                body: "".into(),
                at_us: 0,
                wall_ms: 0,
            };
            script.next(&call).code()
        };
        assert_eq!(
            [call("dlv_1"), call("dlv_2"), call("dlv_1"), call("dlv_2")],
            [500, 500, 200, 200]
        );
    }

    #[tokio::test]
    async fn a_witness_is_told_of_each_call_before_it_is_answered() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let witness = told.clone();
        let witness = Box::new(move |call: &Call| witness.lock().unwrap().push(call.path.clone()));
        let receiver = Receiver::start_with_witness(Ipv4Addr::LOCALHOST.into(), witness).await;
        let receiver = receiver.unwrap();
        for path in ["/a?b=c", "/a"] {
            post(&receiver, path, "body").await;
            assert_eq!(told.lock().unwrap().last().unwrap(), path);
        }
        assert_eq!((receiver.count(), receiver.calls().len()), (2, 0));
    }
}
