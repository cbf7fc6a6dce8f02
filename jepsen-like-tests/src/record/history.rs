//! The history of a run: what each client requested and what it was answered.
//!
//! `history.jsonl` has one line when an operation begins and one when it ends, so a run that dies keeps its
//! unfinished operations. All times are nanoseconds since the start of the run, measured with one monotonic clock.
//! Clients and harness run in one process, so the order of two lines is the order of their events.
//!
//! An operation ends in one of three ways. `ok`: it took effect. `fail`: the server said that it certainly did not
//! take effect (4xx, 503). `info`: the outcome is unknown, and the operation may even take effect later (timeout,
//! reset, 504). An operation that never ended counts as `info`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, BufWriter, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

pub const HISTORY: &str = "history.jsonl";

/// One line of the history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    pub t: u64,
    /// The lane, that is, a client that performs one operation at a time.
    pub p: u32,
    /// The node that received the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<usize>,
    pub ph: Phase,
    pub op: Op,
    /// The object of the operation: an inbox, a topic or a key.
    pub k: String,
    /// The request when the operation begins, the response when it ends.
    pub v: Fields,
    /// The error of an operation that failed or whose outcome is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub err: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    Invoke,
    Ok,
    Fail,
    Info,
}

/// The kinds of operations. `k` is the inbox unless stated otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Sends `key`, or the batch `items`, to an inbox; the response is `id`, or `items`. `name` is set if the body
    /// differs from the one first sent under that key.
    Send,
    /// Reads a page of at most `n` messages of an inbox, starting at the cursor `from`; the response is `items` and
    /// `cursor`. `name` holds the view and the consistency, see [`super::mailbox::page_view`].
    Read,
    /// Reads a whole inbox after the faults have ended: `items` is its complete content.
    Audit,
    /// Marks the message `id` of an inbox as read.
    Ack,
    /// Subscribes the agent `name` to the topic `k`.
    Subscribe,
    /// Unsubscribes the agent `name` from the topic `k`.
    Unsubscribe,
    /// Publishes `key` to the topic `k` as the agent `name`; the response is `id`.
    Publish,
    /// One WebSocket session of the agent `k`, resumed after `seq`. The frames that arrive together end one operation
    /// and are its `items`.
    Frame,
    /// Acknowledges `seq` on that session.
    FrameAck,
    /// Reads a whole inbox after the faults have ended. `k`, the topics and the keys of such messages begin with the
    /// team and `/`.
    Inbox,
    /// Spends one unit of the quota `k` under `key`; the response is `id`, and `n` is the number of used units if the
    /// API reports it.
    Spend,
    /// Sets the limit of the quota `k` to `n`.
    Limit,
    /// Lists all that was spent of the quota `k` after the faults have ended: `items` in order, with the day or month
    /// as `seq`.
    Spent,
    /// Creates the key `k`; `n` is its lifetime in nanoseconds, if it has one.
    KeyCreate,
    /// Revokes the key `k`.
    KeyRevoke,
    /// Uses the key `k`. `name` is `read`, `local`, `socket`, `write` (which sends `key`), or `listen`, which lasts
    /// as long as a session is open.
    KeyUse,
    /// The team `name` requests something that is not its own by the route `k`. With an `id` the operation must never
    /// be `ok`: `foreign` belongs to the other team, `absent` does not exist, `forbidden` exceeds the rights of the
    /// key. Without an `id`, `items` is what the response showed, which must belong to the team.
    Probe,
    /// Changes the members of the cluster: `name` is the change, `n` the node.
    Member,
}

/// The arguments or results of an operation. The [`Op`] defines which fields are used.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Fields {
    /// The name that a client gave its message, unique in the run; used as the idempotency key and as the body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The message id that the server assigned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The cursor in the request for a page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The cursor in the response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub items: Vec<Item>,
    /// A sequence number of the team.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl Fields {
    pub fn key(key: impl Into<String>) -> Self {
        Fields {
            key: Some(key.into()),
            ..Fields::default()
        }
    }

    pub fn id(id: impl Into<String>) -> Self {
        Fields {
            id: Some(id.into()),
            ..Fields::default()
        }
    }

    pub fn items(items: Vec<Item>) -> Self {
        Fields {
            items,
            ..Fields::default()
        }
    }
}

/// A message as a client received it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// The server's id; empty before the server assigned one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// The name that its sender gave it, taken from the body; empty if the body has none (a failure notice).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub key: String,
    /// Its sequence number, if the API reports it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
}

/// How an operation ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The operation took effect.
    Ok(Fields),
    /// The operation certainly did not take effect.
    Fail(String),
    /// The outcome is unknown.
    Info(String),
}

/// The time of an event that never happened.
pub const NEVER: u64 = u64::MAX;

/// How an operation ended, without the response or the error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutcomeKind {
    /// The operation took effect.
    Ok,
    /// The operation certainly did not take effect.
    Fail,
    /// The outcome is unknown.
    Info,
}

impl Outcome {
    /// The kind of the outcome.
    pub fn kind(&self) -> OutcomeKind {
        match self {
            Outcome::Ok(_) => OutcomeKind::Ok,
            Outcome::Fail(_) => OutcomeKind::Fail,
            Outcome::Info(_) => OutcomeKind::Info,
        }
    }
}

/// An operation from its begin to its end.
#[derive(Debug, Clone, PartialEq)]
pub struct Operation {
    pub lane: u32,
    /// The node that received the request.
    pub node: Option<usize>,
    pub op: Op,
    /// The object of the operation, see [`Event::k`].
    pub k: String,
    pub asked: Fields,
    pub began: u64,
    /// `None` if the operation never ended.
    pub ended: Option<u64>,
    pub outcome: Outcome,
}

impl Operation {
    /// The response, if the operation took effect.
    pub fn answered(&self) -> Option<&Fields> {
        match &self.outcome {
            Outcome::Ok(fields) => Some(fields),
            _ => None,
        }
    }
}

/// Writes the history. Cloning is cheap.
#[derive(Clone)]
pub struct Recorder {
    dir: Arc<Path>,
    began: Instant,
    lanes: Arc<AtomicU32>,
    file: Arc<Mutex<BufWriter<File>>>,
}

impl Recorder {
    /// Creates the history of a run in its directory and starts the clock of the run.
    pub fn create(dir: &Path) -> Result<Self> {
        let path = dir.join(HISTORY);
        let file = File::create_new(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Recorder {
            dir: dir.into(),
            began: Instant::now(),
            lanes: Arc::default(),
            file: Arc::new(Mutex::new(BufWriter::new(file))),
        })
    }

    /// Nanoseconds since the run began.
    pub fn now(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    /// The directory of the run.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Creates the lane of a new client.
    pub fn lane(&self) -> Lane {
        Lane {
            recorder: self.clone(),
            p: self.lanes.fetch_add(1, Ordering::Relaxed),
            doing: None,
        }
    }

    pub fn flush(&self) -> Result<()> {
        Ok(self.file.lock().flush()?)
    }

    fn write(&self, event: &Event) {
        let line = serde_json::to_vec(event).map(|mut line| {
            line.push(b'\n');
            line
        });
        let mut file = self.file.lock();
        let written = line.map_err(Into::into).and_then(|line| file.write_all(&line));
        // A history with missing lines would make valid runs look invalid, so the run must not go on.
        written.unwrap_or_else(|error| panic!("the history cannot be written: {error}"));
    }
}

/// A client that performs one operation at a time.
pub struct Lane {
    recorder: Recorder,
    p: u32,
    doing: Option<(Option<usize>, Op, String)>,
}

impl Lane {
    /// The number of the lane.
    pub fn number(&self) -> u32 {
        self.p
    }

    /// Records the begin of an operation at a node.
    pub fn invoke(&mut self, node: Option<usize>, op: Op, k: impl Into<String>, asked: Fields) {
        let doing = (node, op, k.into());
        self.write(&doing, Phase::Invoke, asked, None);
        self.doing = Some(doing);
    }

    /// Records the end of the operation.
    pub fn end(&mut self, outcome: Outcome) {
        let Some(doing) = self.doing.take() else {
            return;
        };
        match outcome {
            Outcome::Ok(fields) => self.write(&doing, Phase::Ok, fields, None),
            Outcome::Fail(why) => self.write(&doing, Phase::Fail, Fields::default(), Some(why)),
            Outcome::Info(why) => self.write(&doing, Phase::Info, Fields::default(), Some(why)),
        }
    }

    fn write(&self, (node, op, k): &(Option<usize>, Op, String), ph: Phase, v: Fields, err: Option<String>) {
        self.recorder.write(&Event {
            t: self.recorder.now(),
            p: self.p,
            node: *node,
            ph,
            op: *op,
            k: k.clone(),
            v,
            err,
        });
    }
}

/// Reads the operations of a run in the order in which they began.
pub fn load(dir: &Path) -> Result<Vec<Operation>> {
    let mut operations = Vec::new();
    each(dir, |operation| operations.push(operation))?;
    operations.sort_by_key(|operation| operation.began);
    Ok(operations)
}

/// Passes each operation of a run to `take` when it ends, and unfinished operations last, so a long history need not
/// fit in memory.
pub fn each(dir: &Path, mut take: impl FnMut(Operation)) -> Result<()> {
    let path = dir.join(HISTORY);
    let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut file = BufReader::with_capacity(1 << 20, file);
    let mut open: BTreeMap<u32, Operation> = BTreeMap::new();
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        if file.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        let event: Event =
            serde_json::from_slice(&line).with_context(|| format!("{} line {number}", path.display()))?;
        if let Some(ended) = step(&mut open, event) {
            take(ended);
        }
    }
    open.into_values().for_each(take);
    Ok(())
}

/// The operation that this event ends, or the unfinished one that the lane abandoned when it began this one.
fn step(open: &mut BTreeMap<u32, Operation>, event: Event) -> Option<Operation> {
    let why = event.err.unwrap_or_default();
    let outcome = match event.ph {
        Phase::Invoke => {
            return open.insert(
                event.p,
                Operation {
                    lane: event.p,
                    node: event.node,
                    op: event.op,
                    k: event.k,
                    asked: event.v,
                    began: event.t,
                    ended: None,
                    outcome: Outcome::Info("the operation never ended".to_owned()),
                },
            );
        }
        Phase::Ok => Outcome::Ok(event.v),
        Phase::Fail => Outcome::Fail(why),
        Phase::Info => Outcome::Info(why),
    };
    let mut operation = open.remove(&event.p)?;
    operation.ended = Some(event.t);
    operation.outcome = outcome;
    Some(operation)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_passed_when_they_end_and_unfinished_ones_last() {
        let dir = tempfile::tempdir().unwrap();
        let recorder = Recorder::create(dir.path()).unwrap();
        let mut lanes = [recorder.lane(), recorder.lane(), recorder.lane()];
        for (lane, inbox) in lanes.iter_mut().zip(["a", "b", "c"]) {
            lane.invoke(Some(1), Op::Send, inbox, Fields::key(format!("k-{inbox}")));
        }
        lanes[2].end(Outcome::Ok(Fields::id("m")));
        lanes[1].end(Outcome::Fail("no".to_owned()));
        recorder.flush().unwrap();
        let mut ended = Vec::new();
        each(dir.path(), |operation| ended.push((operation.k, operation.outcome))).unwrap();
        assert_eq!(
            ended,
            [
                ("c".to_owned(), Outcome::Ok(Fields::id("m"))),
                ("b".to_owned(), Outcome::Fail("no".to_owned())),
                ("a".to_owned(), Outcome::Info("the operation never ended".to_owned())),
            ]
        );
        let begun: Vec<String> = load(dir.path()).unwrap().into_iter().map(|o| o.k).collect();
        assert_eq!(begun, ["a", "b", "c"]);
    }
}
