//! What the clients of a run asked for and were told, as it happened.
//!
//! `history.jsonl` has a line when an operation begins and one when it ends, so that what a run was in the middle of is
//! there when it dies. All times are nanoseconds of one monotonic clock since the run began: clients and harness are one
//! process, so the order of two lines is the order of what they tell.
//!
//! An operation ends in one of three ways. `ok`: it happened. `fail`: the server said that it surely did not (4xx, 503).
//! `info`: nobody knows, it may even happen later (timeout, reset, 504). One that never ended counts as `info`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, BufWriter, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// The file in a run's directory.
pub const HISTORY: &str = "history.jsonl";

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Nanoseconds since the run began.
    pub t: u64,
    /// The lane: a client that does one thing at a time.
    pub p: u32,
    /// The node that was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<usize>,
    /// Begin or end.
    pub ph: Phase,
    /// What is done.
    pub op: Op,
    /// What it is done to: an inbox, a topic, a key.
    pub k: String,
    /// What was asked, or what was answered.
    pub v: Fields,
    /// Why it failed or is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub err: Option<String>,
}

/// Where an operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Phase {
    Invoke,
    Ok,
    Fail,
    Info,
}

/// What clients do. `k` is the inbox unless said otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Sends `key`, or `items`, to an inbox; answered with `id`, or `items`. `name` says if the body is not the one that
    /// the key was used for at first.
    Send,
    /// Reads a page of an inbox from `from` on, `n` messages at most; answered with `items` and `cursor`. `name` says which
    /// messages and how fresh: `workload/mailbox.rs`.
    Read,
    /// The same when the faults are over, from the beginning to the end: `items` is everything.
    Audit,
    /// Marks the message `id` of an inbox as read.
    Ack,
    /// Subscribes the agent `name` to the topic `k`.
    Subscribe,
    /// Ends that.
    Unsubscribe,
    /// Publishes `key` to the topic `k` as the agent `name`; answered with `id`.
    Publish,
    /// A WebSocket session of the agent `k`, resumed after `seq`: each frame that arrives ends an operation, `items` has it.
    Frame,
    /// Acknowledges `seq` on that session.
    FrameAck,
    /// All of an inbox when the faults are over. `k`, topics and the keys of such mail begin with their team and `/`.
    Inbox,
    /// Spends one unit of the quota `k` under `key`; answered with `id`, and in `n` with what is used if the face says so.
    Spend,
    /// Sets the limit of the quota `k` to `n`.
    Limit,
    /// All that was spent of the quota `k` when the faults are over: `items` in order, `seq` is the day or month.
    Spent,
    /// Creates the key `k`, for `n` nanoseconds if that is given.
    KeyCreate,
    /// Revokes the key `k`.
    KeyRevoke,
    /// Uses the key `k`: `name` is `read`, `local`, `socket`, `write`, which sends `key`, or `listen`, which lasts for as
    /// long as a session is open.
    KeyUse,
    /// Asks in the team `name` for something that is not its own by the route `k`. With the `id` of that it must never be
    /// `ok`, with the id `absent` nothing is asked for that exists; without one `items` are the team's own.
    Probe,
    /// Changes the members of the cluster: `name` says how, `n` which node.
    Member,
}

/// What an operation names. Which fields count depends on the [`Op`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Fields {
    /// The name that a client gave its message, unique in the run: idempotency key and body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The message id that the server gave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The cursor that a page was asked with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The cursor that a page was answered with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Messages.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub items: Vec<Item>,
    /// A place in the team's order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// A number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<u64>,
    /// A name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl Fields {
    /// With a client's name of its message.
    pub fn key(key: impl Into<String>) -> Self {
        Fields {
            key: Some(key.into()),
            ..Fields::default()
        }
    }

    /// With the server's id of a message.
    pub fn id(id: impl Into<String>) -> Self {
        Fields {
            id: Some(id.into()),
            ..Fields::default()
        }
    }

    /// With messages.
    pub fn items(items: Vec<Item>) -> Self {
        Fields {
            items,
            ..Fields::default()
        }
    }
}

/// A message as somebody got it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// The server's id; empty before the server gave one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// The sender's name of it, from the body; empty if the body has none (a notice).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub key: String,
    /// Its place, where the face tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
}

/// How an operation ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It happened.
    Ok(Fields),
    /// It surely did not.
    Fail(String),
    /// Nobody knows.
    Info(String),
}

/// An operation from begin to end.
#[derive(Debug, Clone, PartialEq)]
pub struct Operation {
    /// The lane.
    pub lane: u32,
    /// The node that was asked.
    pub node: Option<usize>,
    /// What was done.
    pub op: Op,
    /// To what.
    pub k: String,
    /// What was asked.
    pub asked: Fields,
    /// When it began.
    pub began: u64,
    /// When it ended; never, if nobody knows.
    pub ended: Option<u64>,
    /// How.
    pub outcome: Outcome,
}

impl Operation {
    /// What was answered, if it happened.
    pub fn answered(&self) -> Option<&Fields> {
        match &self.outcome {
            Outcome::Ok(fields) => Some(fields),
            _ => None,
        }
    }
}

/// Writes the history. Cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    dir: Arc<Path>,
    began: Instant,
    lanes: Arc<AtomicU32>,
    file: Arc<Mutex<BufWriter<File>>>,
}

impl Recorder {
    /// Begins a history in the directory; the run's clock begins here.
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

    /// The run's directory, for what else is written down.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A new client.
    pub fn lane(&self) -> Lane {
        Lane {
            recorder: self.clone(),
            p: self.lanes.fetch_add(1, Ordering::Relaxed),
            doing: None,
        }
    }

    /// Writes out what is buffered.
    pub fn flush(&self) -> Result<()> {
        Ok(self.file.lock().unwrap_or_else(PoisonError::into_inner).flush()?)
    }

    fn write(&self, event: &Event) {
        let line = serde_json::to_vec(event).map(|mut line| {
            line.push(b'\n');
            line
        });
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let written = line.map_err(Into::into).and_then(|line| file.write_all(&line));
        // A history with holes would call good runs bad: nothing that follows counts.
        written.unwrap_or_else(|error| panic!("the history cannot be written: {error}"));
    }
}

/// One client: it does one thing at a time.
pub struct Lane {
    recorder: Recorder,
    p: u32,
    doing: Option<(Option<usize>, Op, String)>,
}

impl Lane {
    /// Its number.
    pub fn number(&self) -> u32 {
        self.p
    }

    /// Begins an operation at a node.
    pub fn invoke(&mut self, node: Option<usize>, op: Op, k: impl Into<String>, asked: Fields) {
        let doing = (node, op, k.into());
        self.write(&doing, Phase::Invoke, asked, None);
        self.doing = Some(doing);
    }

    /// Ends it.
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

/// Reads the operations of a run, in the order in which they began.
pub fn load(dir: &Path) -> Result<Vec<Operation>> {
    let mut operations = Vec::new();
    each(dir, |operation| operations.push(operation))?;
    operations.sort_by_key(|operation| operation.began);
    Ok(operations)
}

/// Gives each operation of a run when it ends, and those that never did at last: a long history need not be in memory.
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

/// The operation that ends with this event, or that the lane had not ended when it began the next one.
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
                    outcome: Outcome::Info("it never ended".to_owned()),
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
    fn operations_come_when_they_end_and_those_that_never_did_at_last() {
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
                ("a".to_owned(), Outcome::Info("it never ended".to_owned())),
            ]
        );
        let begun: Vec<String> = load(dir.path()).unwrap().into_iter().map(|o| o.k).collect();
        assert_eq!(begun, ["a", "b", "c"]);
    }
}
