//! The requests of a lane, made from a seed, and the check of the answers.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;

/// Bytes of a message body.
pub const BODY_BYTES: usize = 200;
/// The number of inboxes that get the load.
pub const INBOXES: u64 = 1_000;
/// Messages of a batch.
pub const BATCH: usize = agentpost::limits::BATCH_ITEMS_MAX;
/// The sending agent.
pub const SENDER: &str = "bench-sender";

/// The number of messages in a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    Single,
    Batch,
}

impl Shape {
    pub fn path(self) -> &'static str {
        match self {
            Shape::Single => "/v1/messages",
            Shape::Batch => "/v1/messages/batch",
        }
    }

    /// The number of messages that a 200 acknowledges. The answer to a batch holds `"success":true` once for each
    /// accepted message and nowhere else.
    pub fn acknowledged(self, answer: &[u8]) -> usize {
        match self {
            Shape::Single => usize::from(contains(answer, b"\"messageId\"")),
            Shape::Batch => count(answer, b"\"success\":true"),
        }
    }

    pub fn expected(self) -> usize {
        match self {
            Shape::Single => 1,
            Shape::Batch => BATCH,
        }
    }
}

/// The agents that get the messages of a load.
#[derive(Clone)]
pub enum Recipients {
    /// `{prefix}0` to `{prefix}{count - 1}`, chosen at random.
    Random { prefix: Arc<str>, count: u64 },
    /// `{prefix}0`, `{prefix}1` and so on; each gets a number of messages before the next one. All lanes count
    /// together.
    InTurn {
        prefix: Arc<str>,
        each: u64,
        sent: Arc<AtomicU64>,
    },
}

impl Recipients {
    pub fn random(prefix: &str, count: u64) -> Self {
        Recipients::Random {
            prefix: prefix.into(),
            count: count.max(1),
        }
    }

    pub fn in_turn(prefix: &str, each: u64) -> Self {
        Recipients::InTurn {
            prefix: prefix.into(),
            each: each.max(1),
            sent: Arc::default(),
        }
    }
}

/// The requests of one lane: an endless sequence that a seed repeats.
pub struct Source {
    shape: Shape,
    random: u64,
    lane: u32,
    made: u64,
    started: Instant,
    to: Recipients,
    /// Distinguishes the idempotency keys of this load from those of others; `None` for messages without a key.
    nonce: Option<u64>,
}

impl Source {
    /// Begins the sequence of `lane`. The times in bodies count from `started`.
    pub fn new(shape: Shape, seed: u64, lane: u32, started: Instant) -> Self {
        let random = (seed ^ 0x9E37_79B9_7F4A_7C15).wrapping_mul(u64::from(lane) * 2 + 1) | 1;
        Source {
            shape,
            random,
            lane,
            made: 0,
            started,
            to: Recipients::random("inbox-", INBOXES),
            nonce: None,
        }
    }

    /// The same sequence to other agents.
    pub fn to(mut self, to: Recipients) -> Self {
        self.to = to;
        self
    }

    /// The same sequence with an idempotency key for each message.
    pub fn keyed(mut self, nonce: u64) -> Self {
        self.nonce = Some(nonce);
        self
    }

    /// The idempotency key of message `id`, if messages have keys and this is the shape of the requests: a batch has the
    /// keys in its body, a single message has its key in a header.
    pub fn key_of(&self, id: u64, shape: Shape) -> Option<String> {
        let nonce = self.nonce.filter(|_| self.shape == shape)?;
        Some(format!("{nonce:x}-{id:x}"))
    }

    /// Chooses one of `count` at random.
    pub fn choose(&mut self, count: usize) -> usize {
        match count {
            0 | 1 => 0,
            count => (self.draw() % count as u64) as usize,
        }
    }

    /// The number of messages in its requests.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The next request, and the id of its first message.
    pub fn next(&mut self) -> (Bytes, u64) {
        let first = self.made + 1;
        let body = match self.shape {
            Shape::Single => {
                let mut out = Vec::with_capacity(BODY_BYTES + 64);
                self.append(&mut out);
                out
            }
            Shape::Batch => return (self.batch(Source::append), id(self.lane, first)),
        };
        (body.into(), id(self.lane, first))
    }

    fn batch(&mut self, mut append: impl FnMut(&mut Self, &mut Vec<u8>)) -> Bytes {
        let mut out = Vec::with_capacity(BATCH * (BODY_BYTES + 64) + 16);
        out.extend_from_slice(b"{\"messages\":[");
        for n in 0..BATCH {
            if n > 0 {
                out.push(b',');
            }
            append(self, &mut out);
        }
        out.extend_from_slice(b"]}");
        out.into()
    }

    /// A request with one message to a given agent.
    pub fn for_agent(&mut self, agent: &str) -> Bytes {
        let mut out = Vec::with_capacity(BODY_BYTES + 64);
        self.message(&mut out, "toAgentId", format_args!("{agent}"));
        out.into()
    }

    /// A request that publishes one message.
    pub fn for_topic(&mut self, topic: &str) -> Bytes {
        let mut out = Vec::with_capacity(BODY_BYTES + 64);
        self.message(&mut out, "topic", format_args!("{topic}"));
        out.into()
    }

    /// A batch; its messages go to these agents in turn.
    pub fn batch_to(&mut self, agents: &[String]) -> Bytes {
        let mut agents = agents.iter().cycle();
        self.batch(|source, out| {
            if let Some(agent) = agents.next() {
                source.message(out, "toAgentId", format_args!("{agent}"));
            }
        })
    }

    fn append(&mut self, out: &mut Vec<u8>) {
        let (prefix, number) = match &self.to {
            Recipients::Random { prefix, count } => {
                let (prefix, count) = (prefix.clone(), *count);
                (prefix, self.draw() % count)
            }
            Recipients::InTurn { prefix, each, sent } => (prefix.clone(), sent.fetch_add(1, Ordering::Relaxed) / each),
        };
        self.message(out, "toAgentId", format_args!("{prefix}{number}"));
    }

    fn message(&mut self, out: &mut Vec<u8>, address: &str, to: std::fmt::Arguments<'_>) {
        self.made += 1;
        let (id, at) = (id(self.lane, self.made), nanoseconds(self.started));
        let begin = write!(
            out,
            "{{\"{address}\":\"{to}\",\"type\":\"bench\",{}\"body\":\"{id:016x}{at:016x}",
            self.key_of(id, Shape::Batch)
                .map(|key| format!("\"idempotencyKey\":\"{key}\","))
                .unwrap_or_default()
        );
        debug_assert!(begin.is_ok(), "writing to memory");
        out.resize(out.len() + BODY_BYTES - 32, b'x');
        out.extend_from_slice(b"\"}");
    }

    /// Draws a number by xorshift, which is fast and spreads load well enough.
    fn draw(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

fn id(lane: u32, number: u64) -> u64 {
    u64::from(lane) << 40 | number
}

/// The id in a message body.
pub fn id_of(body: &str) -> Option<u64> {
    u64::from_str_radix(body.get(..16)?, 16).ok()
}

/// The time in a message body: nanoseconds since the start.
pub fn made_at(body: &str) -> Option<u64> {
    u64::from_str_radix(body.get(16..32)?, 16).ok()
}

/// Nanoseconds since an instant of this process.
pub fn nanoseconds(started: Instant) -> u64 {
    u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

fn contains(text: &[u8], needle: &[u8]) -> bool {
    text.windows(needle.len()).any(|window| window == needle)
}

fn count(text: &[u8], needle: &[u8]) -> usize {
    let mut found = 0;
    let mut rest = text;
    // The needle begins with a quote, and an answer has few of them: skipping to the next one is cheap.
    while let Some(at) = rest.iter().position(|&b| b == needle[0]) {
        rest = &rest[at..];
        if rest.starts_with(needle) {
            found += 1;
        }
        rest = &rest[1..];
    }
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use agentpost::api::abbababa::{BatchRequest, SendRequest};

    fn text(message: &SendRequest) -> String {
        serde_json::from_str(message.body.as_ref().unwrap().get()).unwrap()
    }

    #[test]
    fn a_single_request_is_a_message_of_200_bytes() {
        let mut source = Source::new(Shape::Single, 1, 3, Instant::now());
        let (request, first) = source.next();
        let message: SendRequest = serde_json::from_slice(&request).unwrap();
        let body = text(&message);
        assert_eq!(body.len(), BODY_BYTES);
        assert_eq!(id_of(&body), Some(first));
        assert!(made_at(&body).is_some());
        assert!(message.to_agent_id.unwrap().starts_with("inbox-"));
    }

    #[test]
    fn a_batch_holds_100_messages_with_rising_ids() {
        let mut source = Source::new(Shape::Batch, 1, 0, Instant::now());
        source.next();
        let (request, first) = source.next();
        let batch: BatchRequest = serde_json::from_slice(&request).unwrap();
        let ids: Vec<u64> = batch.messages.iter().map(|m| id_of(&text(m)).unwrap()).collect();
        assert_eq!(ids, (first..first + 100).collect::<Vec<u64>>());
        assert!(request.len() <= agentpost::limits::BATCH_BYTES_MAX);
    }

    #[test]
    fn a_batch_can_go_to_given_agents_and_a_message_to_a_topic() {
        let mut source = Source::new(Shape::Batch, 1, 0, Instant::now());
        let batch: BatchRequest = serde_json::from_slice(&source.batch_to(&["a".to_owned(), "b".to_owned()])).unwrap();
        let to: Vec<&str> = batch.messages.iter().filter_map(|m| m.to_agent_id.as_deref()).collect();
        assert_eq!((to.len(), to[0], to[1], to[2]), (100, "a", "b", "a"));
        let published: SendRequest = serde_json::from_slice(&source.for_topic("t")).unwrap();
        assert_eq!((published.topic.as_deref(), published.to_agent_id), (Some("t"), None));
    }

    #[test]
    fn recipients_can_come_in_turn_and_messages_can_have_keys() {
        let to = Recipients::in_turn("fresh-", 150);
        let mut lanes = [0, 1].map(|lane| {
            Source::new(Shape::Batch, 1, lane, Instant::now())
                .to(to.clone())
                .keyed(7)
        });
        let mut messages = Vec::new();
        for lane in &mut lanes {
            let batch: BatchRequest = serde_json::from_slice(&lane.next().0).unwrap();
            messages.extend(batch.messages);
        }
        let count = |agent: &str| {
            messages
                .iter()
                .filter(|m| m.to_agent_id.as_deref() == Some(agent))
                .count()
        };
        assert_eq!((count("fresh-0"), count("fresh-1")), (150, 50));
        let keys: std::collections::HashSet<_> = messages.iter().map(|m| m.idempotency_key.clone().unwrap()).collect();
        assert_eq!(keys.len(), 200);
        let mut single = Source::new(Shape::Single, 1, 0, Instant::now()).keyed(7);
        let (request, id) = single.next();
        assert!(!String::from_utf8(request.to_vec()).unwrap().contains("idempotencyKey"));
        assert_eq!(single.key_of(id, Shape::Single).as_deref(), Some("7-1"));
        assert_eq!(single.key_of(id, Shape::Batch), None);
    }

    #[test]
    fn a_seed_repeats_its_inboxes_and_lanes_differ() {
        let inboxes = |seed, lane| -> Vec<u64> {
            let mut source = Source::new(Shape::Single, seed, lane, Instant::now());
            (0..50).map(|_| source.draw() % INBOXES).collect()
        };
        assert_eq!(inboxes(1, 0), inboxes(1, 0));
        assert_ne!(inboxes(1, 0), inboxes(1, 1));
        assert_ne!(inboxes(1, 0), inboxes(2, 0));
    }

    #[test]
    fn answers_are_counted_by_message() {
        assert_eq!(
            Shape::Single.acknowledged(br#"{"success":true,"messageId":"msg_1"}"#),
            1
        );
        assert_eq!(Shape::Single.acknowledged(br#"{"success":true}"#), 0);
        let answer = br#"{"results":[{"status":200,"success":true,"messageId":"m"},{"status":400,"success":false,"error":"e"},{"status":200,"success":true,"messageId":"n"}]}"#;
        assert_eq!(Shape::Batch.acknowledged(answer), 2);
    }
}
