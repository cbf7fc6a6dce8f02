//! What the clients of a run asked for and were told, as it happened.
//!
//! `history.jsonl` has a line when an operation begins and one when it ends, so that what a run was in the middle of is
//! there when it dies. All times are nanoseconds of one monotonic clock since the run began: clients and harness are one
//! process, so the order of two lines is the order of what they tell.
//!
//! An operation ends in one of three ways. `ok`: it happened. `fail`: the server said that it surely did not (4xx, 503).
//! `info`: nobody knows, it may even happen later (timeout, reset, 504). One that never ended counts as `info`.

use std::collections::HashMap;
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
    /// Sends `key` to an inbox; answered with `id`.
    Send,
    /// Reads a page of an inbox from `from` on; answered with `items` and `cursor`.
    Read,
    /// The same when the faults are over, from the beginning to the end: `items` is everything.
    Audit,
    /// Marks `items` of an inbox as read.
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
            began: Instant::now(),
            lanes: Arc::default(),
            file: Arc::new(Mutex::new(BufWriter::new(file))),
        })
    }

    /// Nanoseconds since the run began.
    pub fn now(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
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
    let path = dir.join(HISTORY);
    let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut operations: Vec<Operation> = Vec::new();
    let mut open: HashMap<u32, usize> = HashMap::new();
    for (number, line) in (1..).zip(BufReader::new(file).lines()) {
        let event: Event = serde_json::from_str(&line?).with_context(|| format!("{} line {number}", path.display()))?;
        take(&mut operations, &mut open, event);
    }
    Ok(operations)
}

fn take(operations: &mut Vec<Operation>, open: &mut HashMap<u32, usize>, event: Event) {
    let why = event.err.unwrap_or_default();
    let outcome = match event.ph {
        Phase::Invoke => {
            open.insert(event.p, operations.len());
            operations.push(Operation {
                lane: event.p,
                node: event.node,
                op: event.op,
                k: event.k,
                asked: event.v,
                began: event.t,
                ended: None,
                outcome: Outcome::Info("it never ended".to_owned()),
            });
            return;
        }
        Phase::Ok => Outcome::Ok(event.v),
        Phase::Fail => Outcome::Fail(why),
        Phase::Info => Outcome::Info(why),
    };
    if let Some(place) = open.remove(&event.p) {
        operations[place].ended = Some(event.t);
        operations[place].outcome = outcome;
    }
}
