//! The steps of a history, and the subscriptions of its sessions.

use proptest::prelude::*;

pub const AGENTS: [&str; 3] = ["a", "b", "c"];
pub const TOPIC: &str = "news";
pub const SENDERS: [&str; 2] = ["p", "q"];
pub const SOURCE_PREFIX: &str = "https://x/agents/";
/// The agent whose inbox is nearly full, and the number of entries that fit before the oldest one is dropped.
pub const BOUNDED: &str = "b";
pub const BOUNDED_ENTRIES: u64 = 5;

/// The number of named cursors that the team may still create.
pub const CURSORS_LEFT: u32 = 3;

/// What a session requests and, stated independently, what it must see.
pub struct Subscription {
    pub scopes: &'static [&'static str],
    pub client_id: Option<&'static str>,
    /// The agent that the key is bound to; empty for none.
    pub bound: &'static str,
    pub sees: Sees,
}

#[derive(Debug, Clone, Copy)]
pub struct Sees {
    /// Sees all messages of this sender in their wide form; the empty sender stands for all senders.
    pub from: Option<&'static str>,
    /// Also sees the messages to these agents.
    pub inboxes: &'static [&'static str],
}

const fn inboxes(inboxes: &'static [&'static str]) -> Sees {
    Sees { from: None, inboxes }
}

const fn from(sender: &'static str) -> Sees {
    Sees {
        from: Some(sender),
        inboxes: &[],
    }
}

const fn subscription(
    scopes: &'static [&'static str],
    client_id: Option<&'static str>,
    bound: &'static str,
    sees: Sees,
) -> Subscription {
    Subscription {
        scopes,
        client_id,
        bound,
        sees,
    }
}

pub static SUBSCRIPTIONS: [Subscription; 10] = [
    subscription(&["agent_to:a"], None, "", inboxes(&["a"])),
    subscription(&["agent_to:b"], None, "", inboxes(&["b"])),
    subscription(&["agent_to:a"], None, "a", inboxes(&["a"])),
    subscription(&["agent_to:a"], Some("phone"), "", inboxes(&["a"])),
    subscription(&["agent_to:a", "agent_to:b"], Some("pair"), "", inboxes(&["a", "b"])),
    subscription(&["*"], None, "", from("")),
    subscription(&["*"], Some("archive"), "", from("")),
    // The same client name with a bound key is another cursor.
    subscription(&["*"], Some("phone"), "c", inboxes(&["c"])),
    subscription(&["source:agents/p"], Some("from-p"), "", from("p")),
    subscription(
        &["source:agents/p", "agent_to:a"],
        Some("mixed"),
        "",
        Sees {
            from: Some("p"),
            inboxes: &["a"],
        },
    ),
];

/// How a client acknowledges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// It acknowledges what it has read.
    Honest,
    /// It never acknowledges, but answers pings.
    Never,
    /// It acknowledges any number.
    Inventor,
}

/// The fate of a proposal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proposal {
    Stored,
    /// It did not reach the log, and its node knows that.
    Failed,
    /// It is in the log, but its node does not know that.
    Unknown,
}

/// The subscriptions and nodes of one history. They are few, so that sessions share cursors and nodes.
#[derive(Debug, Clone)]
pub struct Stage {
    pub subscriptions: Vec<usize>,
    pub nodes: usize,
}

pub fn stage() -> impl Strategy<Value = Stage> {
    let subscriptions = prop::sample::subsequence((0..SUBSCRIPTIONS.len()).collect::<Vec<_>>(), 1..=4);
    (subscriptions, 1..=3usize).prop_map(|(subscriptions, nodes)| Stage { subscriptions, nodes })
}

/// Sessions, nodes and subscriptions are numbers modulo their count.
#[derive(Debug, Clone)]
pub enum Step {
    Send {
        from: usize,
        to: usize,
        expires: bool,
    },
    Publish {
        from: usize,
        expires: bool,
    },
    Subscribe {
        agent: usize,
        on: bool,
    },
    MarkRead {
        agent: usize,
        nth: usize,
    },
    Connect {
        subscription: usize,
        node: usize,
        manner: Manner,
        meanwhile: usize,
    },
    /// The socket breaks. The node may still read the client's last frames.
    Cut {
        session: usize,
        heard: bool,
    },
    /// The node reads its state and writes to the socket.
    Deliver {
        session: usize,
    },
    /// The client reads some frames.
    Read {
        session: usize,
        count: usize,
    },
    /// The client acknowledges the event that it read this many events ago, or any number.
    Ack {
        session: usize,
        ago: usize,
        number: u64,
    },
    /// The node reads the client's frames.
    Hear {
        session: usize,
    },
    Ping {
        session: usize,
    },
    /// One full exchange: the node writes all events and pings, the client reads and answers.
    Exchange {
        session: usize,
    },
    Look {
        session: usize,
    },
    Propose {
        node: usize,
        proposal: Proposal,
    },
    CatchUp {
        node: usize,
        count: usize,
    },
    Pass {
        ms: u64,
    },
    Sweep,
    Kill {
        node: usize,
        behind: usize,
    },
}

const SECOND: u64 = 1000;
const DAY: u64 = 24 * 3600 * SECOND;

pub fn step() -> impl Strategy<Value = Step> {
    let any = || 0..1000usize;
    let node = || 0..6usize;
    let manner = || {
        prop_oneof![
            3 => Just(Manner::Honest),
            2 => Just(Manner::Never),
            1 => Just(Manner::Inventor)
        ]
    };
    let proposal = prop_oneof![
        4 => Just(Proposal::Stored),
        1 => Just(Proposal::Failed),
        1 => Just(Proposal::Unknown)
    ];
    let ms = prop_oneof![
        4 => Just(SECOND),
        6 => Just(61 * SECOND),
        2 => Just(DAY + 1),
        1 => Just(20 * DAY),
        1 => Just(61 * DAY),
    ];
    let number = prop_oneof![3 => 0..40u64, 1 => Just(u64::MAX)];
    prop_oneof![
        8 => (any(), any(), prop::bool::weighted(0.3)).prop_map(|(from, to, expires)| Step::Send { from, to, expires }),
        3 => (any(), prop::bool::weighted(0.3)).prop_map(|(from, expires)| Step::Publish { from, expires }),
        1 => (any(), prop::bool::ANY).prop_map(|(agent, on)| Step::Subscribe { agent, on }),
        2 => (any(), any()).prop_map(|(agent, nth)| Step::MarkRead { agent, nth }),
        6 => (any(), node(), manner(), 0..3usize)
            .prop_map(|(subscription, node, manner, meanwhile)| Step::Connect { subscription, node, manner, meanwhile }),
        4 => (any(), prop::bool::ANY).prop_map(|(session, heard)| Step::Cut { session, heard }),
        8 => any().prop_map(|session| Step::Deliver { session }),
        8 => (any(), 1..8usize).prop_map(|(session, count)| Step::Read { session, count }),
        6 => (any(), 0..3usize, number).prop_map(|(session, ago, number)| Step::Ack { session, ago, number }),
        6 => any().prop_map(|session| Step::Hear { session }),
        2 => any().prop_map(|session| Step::Ping { session }),
        6 => any().prop_map(|session| Step::Exchange { session }),
        4 => any().prop_map(|session| Step::Look { session }),
        4 => (node(), proposal).prop_map(|(node, proposal)| Step::Propose { node, proposal }),
        6 => (node(), 1..6usize).prop_map(|(node, count)| Step::CatchUp { node, count }),
        3 => ms.prop_map(|ms| Step::Pass { ms }),
        3 => Just(Step::Sweep),
        1 => (node(), 0..30usize).prop_map(|(node, behind)| Step::Kill { node, behind }),
    ]
}
