//! A table of what each scope shows with each key: every case is a session on each of two nodes.

use std::collections::HashMap;

use agentpost_proto::limits;
use agentpost_testkit::socket::{Socket, refused};
use futures::future::join_all;
use serde_json::{Value, json};

use crate::common::office::{Office, connect};
use crate::common::web::{Call, Team};

/// The agent that a key is bound to (empty for none), and the key's scopes.
type Holder = (&'static str, &'static [&'static str]);

/// The messages of [`Keys::post`] that a session sees: each seq with `data.to`.
type Seen = &'static [(u64, &'static str)];

/// All messages as `*` sees them: direct ones from planner, coder and support, and two publishes to three subscribers, the
/// second by one of them.
const ALL: Seen = &[
    (1, "alpha"),
    (2, "beta"),
    (3, "alpha"),
    (4, "topic:news"),
    (5, "beta"),
    (6, "topic:news"),
];
const ALPHA: Seen = &[(1, "alpha"), (3, "alpha"), (4, "alpha"), (6, "alpha")];
const BOTH_INBOXES: Seen = &[
    (1, "alpha"),
    (2, "beta"),
    (3, "alpha"),
    (4, "topic:news"),
    (5, "beta"),
    (6, "alpha"),
];
const RESEARCH: Seen = &[(1, "alpha"), (2, "beta"), (4, "topic:news")];
const SUPPORT: Seen = &[(3, "alpha"), (5, "beta")];

const ANY: Holder = ("", &["*"]);
const OF_RESEARCH: Holder = ("", &["source:agents/research-"]);
const TWO_INBOXES: Holder = ("", &["agent_to:alpha", "agent_to:beta"]);
const OF_TYPE: Holder = ("", &["type:com.kite"]);
const OF_PUSHES: Holder = ("", &["type:push"]);
const BOUND: Holder = ("alpha", &["*"]);
const BOUND_TO_A_SOURCE: Holder = ("alpha", &["source:com.kite"]);

/// Key, requested scopes, and what the session sees.
const SHOWN: &[(Holder, &[&str], Seen)] = &[
    (ANY, &["*"], ALL),
    // An inbox is matched by the exact id. Its topic messages are addressed to the receiver.
    (ANY, &["agent_to:alpha"], ALPHA),
    (ANY, &["agent_to:alpha", "agent_to:alpha"], ALPHA),
    (ANY, &["agent_to:gamma"], &[(4, "gamma"), (6, "gamma")]),
    (ANY, &["agent_to:Alpha"], &[]),
    (ANY, &["agent_to:alph"], &[]),
    (ANY, &["agent_to:news"], &[]),
    (ANY, &["agent_to:topic:news"], &[]),
    // A part of the source, which ends with the sender.
    (ANY, &["source:research-"], RESEARCH),
    (ANY, &["source:agents/support"], SUPPORT),
    (ANY, &["source:Support"], &[]),
    (ANY, &["source:https://getkite.sh/agents/"], ALL),
    (ANY, &["source:com.kite"], ALL),
    (ANY, &["source:github"], &[]),
    // A part of the event type. The message type of the Abba Baba API does not count.
    (ANY, &["type:com.kite.agent.message"], ALL),
    (ANY, &["type:message"], ALL),
    (ANY, &["type:task.done"], &[]),
    (ANY, &["type:com.kite.agent.message.undeliverable"], &[]),
    // Several scopes show what any of them shows. A topic message that a wide scope shows has the wide form and comes once.
    (
        ANY,
        &["source:support", "source:coder"],
        &[(2, "beta"), (3, "alpha"), (5, "beta")],
    ),
    (
        ANY,
        &["type:push", "agent_to:beta"],
        &[(2, "beta"), (4, "beta"), (5, "beta")],
    ),
    (
        ANY,
        &["source:support", "agent_to:alpha"],
        &[(1, "alpha"), (3, "alpha"), (4, "alpha"), (5, "beta"), (6, "alpha")],
    ),
    (
        ANY,
        &["agent_to:alpha", "source:planner"],
        &[(1, "alpha"), (3, "alpha"), (4, "topic:news"), (6, "alpha")],
    ),
    (ANY, &["agent_to:alpha", "agent_to:beta"], BOTH_INBOXES),
    (ANY, &["agent_to:alpha", "*"], ALL),
    (ANY, &["agent_to:alpha", "type:kite", "source:nobody"], ALL),
    // With a key for some sources, a session sees what both its scopes and the key's show.
    (OF_RESEARCH, &["*"], RESEARCH),
    (OF_RESEARCH, &["type:com.kite"], RESEARCH),
    (OF_RESEARCH, &["source:kite.agent"], RESEARCH),
    (OF_RESEARCH, &["source:https://getkite.sh"], RESEARCH),
    (OF_RESEARCH, &["source:agents/research-coder"], &[(2, "beta")]),
    (OF_RESEARCH, &["source:planner"], &[(1, "alpha"), (4, "topic:news")]),
    (OF_RESEARCH, &["source:support"], &[]),
    (OF_RESEARCH, &["agent_to:alpha", "source:coder"], &[(2, "beta")]),
    // Keys for some inboxes.
    (TWO_INBOXES, &["*"], BOTH_INBOXES),
    (
        TWO_INBOXES,
        &["agent_to:beta", "agent_to:gamma"],
        &[(2, "beta"), (4, "beta"), (5, "beta")],
    ),
    (TWO_INBOXES, &["source:github", "agent_to:alpha"], ALPHA),
    // Keys for a type that all events have, and for a type that none has.
    (OF_TYPE, &["*"], ALL),
    (OF_TYPE, &["agent_to:alpha"], ALPHA),
    (OF_TYPE, &["source:support"], SUPPORT),
    (OF_PUSHES, &["*"], &[]),
    (OF_PUSHES, &["type:com.github.push"], &[]),
    // A key that is bound to an agent reads its inbox only; wider scopes are narrowed to it.
    (BOUND, &["*"], ALPHA),
    (BOUND, &["agent_to:alpha"], ALPHA),
    (BOUND, &["agent_to:beta", "*"], ALPHA),
    (BOUND, &["type:com.kite.agent.message"], ALPHA),
    (BOUND_TO_A_SOURCE, &["agent_to:beta", "agent_to:alpha"], ALPHA),
];

/// Keys and scopes that have nothing in common. The refusal is final for the vendor's clients.
const NOTHING_LEFT: &[(Holder, &[&str])] = &[
    (ANY, &[]),
    (OF_RESEARCH, &["agent_to:alpha"]),
    (OF_RESEARCH, &["type:push"]),
    (TWO_INBOXES, &["agent_to:gamma"]),
    (TWO_INBOXES, &["source:support"]),
    (OF_PUSHES, &["agent_to:alpha"]),
    (BOUND, &["agent_to:beta"]),
    (BOUND, &["source:support"]),
    (BOUND, &["type:push"]),
    (("alpha", &["agent_to:beta"]), &["*"]),
];

/// Invalid scopes, alone or beside a valid one.
const UNKNOWN: &[&[&str]] = &[
    &[""],
    &[" *"],
    &["**"],
    &["alpha"],
    &["topic:news"],
    &["agent_to"],
    &["agent_to:"],
    &["agent_to:a b"],
    &["agent_to:.."],
    &["AGENT_TO:alpha"],
    &["source:"],
    &["type:"],
    &["*", "from:x"],
];

/// One team and its keys.
struct Keys {
    office: Office,
    team: Team,
    keys: HashMap<Holder, Team>,
}

impl Keys {
    async fn key(&mut self, holder: Holder) -> Team {
        if let Some(key) = self.keys.get(&holder) {
            return key.clone();
        }
        let (agent, scopes) = holder;
        let agent = (!agent.is_empty()).then_some(agent);
        let wanted = json!({ "name": "k", "permissions": ["read"], "scopes": scopes, "agent_id": agent });
        let (_, key) = self.office.key(&self.team, wanted).await;
        self.keys.insert(holder, key.clone());
        key
    }

    /// Asserts that every node refuses this frame.
    async fn refuses(&self, frame: &Value, code: u16) {
        for url in &self.office.urls {
            let mut socket = Socket::open(url).await;
            socket.say(frame).await;
            assert_eq!(socket.ending().await, refused(code), "{}", frame["scopes"]);
        }
    }

    async fn mail(&self, from: &str, to: &str) {
        let mail = json!({ "from": from, "to": to, "body": "x" });
        let call = Call::post("/api/v1/agents/messages", &mail);
        call.bearer(&self.team.key).to(&self.office.urls[0]).await.ok();
    }

    async fn abbababa(&self, from: &str, path: &str, body: &Value) {
        let call = Call::post(format!("/v1/{path}"), body).key(&self.team.key).agent(from);
        call.to(&self.office.urls[1]).await.ok();
    }

    /// Sends the messages of [`ALL`] in that order.
    async fn post(&self) {
        self.mail("research-planner", "alpha").await;
        self.mail("research-coder", "beta").await;
        self.mail("support", "alpha").await;
        let news = json!({ "topic": "news", "type": "news.item", "body": {} });
        self.abbababa("research-planner", "messages", &news).await;
        let done = json!({ "toAgentId": "beta", "type": "task.done", "body": {} });
        self.abbababa("support", "messages", &done).await;
        self.abbababa("beta", "messages", &news).await;
    }
}

async fn next(socket: &mut Socket) -> (u64, String) {
    let frame = socket.frame().await;
    assert_eq!(frame["type"], "event", "{frame}");
    let to = frame["event"]["data"]["to"].as_str().unwrap();
    (frame["seq"].as_u64().unwrap(), to.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_scope_with_every_key_on_two_nodes() {
    let office = Office::start(2, "").await;
    let team = office.new_team("scopes").await;
    let mut keys = Keys {
        office,
        team,
        keys: HashMap::new(),
    };
    for agent in ["alpha", "beta", "gamma"] {
        let news = json!({ "topic": "news" });
        keys.abbababa(agent, "messages/subscribe", &news).await;
    }
    let mut sessions = Vec::new();
    for (holder, scopes, seen) in SHOWN {
        let key = keys.key(*holder).await;
        for url in &keys.office.urls {
            let (socket, _) = Socket::connect(url, connect(&key, scopes, None)).await;
            sessions.push((socket, format!("{scopes:?} with a key of {holder:?} on {url}"), *seen));
        }
    }
    keys.post().await;
    let looks = sessions.iter_mut().map(async |(socket, about, seen)| {
        for (seq, to) in *seen {
            assert_eq!(next(socket).await, (*seq, (*to).to_owned()), "{about}");
        }
        socket.silent().await;
    });
    join_all(looks).await;

    for (holder, scopes) in NOTHING_LEFT {
        let key = keys.key(*holder).await;
        keys.refuses(&connect(&key, scopes, None).frame(), 4001).await;
    }
    let any = keys.key(ANY).await;
    for scopes in UNKNOWN {
        keys.refuses(&connect(&any, scopes, None).frame(), 4002).await;
    }
    oversized_and_malformed_scope_lists_are_refused(&keys, &any).await;
}

async fn oversized_and_malformed_scope_lists_are_refused(keys: &Keys, key: &Team) {
    let frame = |scopes: Value| {
        let mut frame = connect(key, &[], None).frame();
        frame["scopes"] = scopes;
        frame
    };
    let sources: Vec<String> = (0..limits::SCOPES_MAX).map(|n| format!("source:nobody-{n}")).collect();
    let mut most = sources.clone();
    most[limits::SCOPES_MAX - 1] = "agent_to:gamma".to_owned();
    let mut longest = format!("type:{}", "x".repeat(limits::SCOPE_BYTES_MAX - "type:".len()));
    for fits in [json!(most), json!([longest])] {
        let mut socket = Socket::open(&keys.office.urls[1]).await;
        socket.say(&frame(fits)).await;
        assert_eq!(socket.frame().await["type"], "connected");
    }
    longest.push('x');
    let too_many = [sources, vec!["*".to_owned()]].concat();
    for bad in [json!(too_many), json!([longest]), json!("*"), json!([1]), json!({})] {
        keys.refuses(&frame(bad), 4002).await;
    }
    let mut missing = frame(json!([]));
    missing.as_object_mut().unwrap().remove("scopes");
    keys.refuses(&missing, 4001).await;
}
