//! A core with one team, and short functions for the commands of a delivery.

use agentpost_proto::command::operation::Op;
use agentpost_proto::command::{
    AttemptOutcome, AttemptRef, AttemptResult, BeginEpoch, Claim, CloseEndpoint, ErrorCode, Grant, Outcome, Permission,
    Principal, RegisterWebhook, Rejection, Takeover, TeamLimits, WebhookEvent, reply::Reply as R,
};
use agentpost_proto::id::TeamId;
use agentpost_proto::record::{Delivery, DeliveryState};
use agentpost_raft_store::core::effect::Effect;
use agentpost_raft_store::core::kv::Order;
use agentpost_raft_store::core::query;
use agentpost_raft_store::core::query::delivery::{self, DeliveryQuery};
use agentpost_raft_store::core::query::inbox::PageQuery;
use agentpost_testkit::commands::{bootstrap, create_key, create_team, principal, send, team_id};
use serde_json::Value;

use crate::common::core::Core;

/// The node that makes all calls.
pub const NODE: u64 = 2;
/// Bob's webhook.
pub const URL: &str = "https://bob.example/hook";

/// A core with one team in which bob has a webhook.
pub struct World {
    pub core: Core,
    sent: u32,
}

impl World {
    pub fn new() -> Self {
        let mut world = World {
            core: Core {
                wall_ms: 1_000,
                cluster_ms: 1_000,
                ..Core::default()
            },
            sent: 0,
        };
        world.begin_epoch();
        world.by(None, bootstrap("root"));
        let root = Some(principal("system", "root"));
        world.by(root.clone(), create_team("acme", Some(TeamLimits::default())));
        for (key, permission, agent) in [
            ("w", Permission::Write, ""),
            ("admin", Permission::Admin, ""),
            ("bob", Permission::Write, "bob"),
            ("alice", Permission::Write, "alice"),
            ("carol", Permission::Write, "carol"),
        ] {
            world.by(root.clone(), Op::CreateKey(create_key("acme", key, permission, agent)));
        }
        world.register(URL);
        world
    }

    pub fn by(&mut self, by: Option<Principal>, op: Op) -> (R, Vec<Effect>) {
        let (reply, effects) = self.core.apply(by, op);
        (reply.reply.unwrap(), effects)
    }

    pub fn done(&mut self, key: &str, op: Op) -> R {
        match self.by(Some(principal("acme", key)), op).0 {
            R::Rejection(r) => panic!("rejected: {}", r.message),
            reply => reply,
        }
    }

    pub fn refused(&mut self, key: &str, op: Op) -> ErrorCode {
        match self.by(Some(principal("acme", key)), op).0 {
            R::Rejection(r) => r.code(),
            reply => panic!("not refused: {reply:?}"),
        }
    }

    pub fn begin_epoch(&mut self) {
        self.by(None, Op::BeginEpoch(BeginEpoch { node: 1, term: 1 }));
        self.core.epoch = self.core.index;
    }

    pub fn pass(&mut self, ms: u64) {
        self.core.wall_ms += ms;
        self.core.cluster_ms += ms;
    }

    pub fn register(&mut self, url: &str) {
        let op = RegisterWebhook {
            agent: "bob".to_owned(),
            webhook_id: vec![7; 16].into(),
            url: url.to_owned(),
            events: vec![WebhookEvent::MessageReceived as i32],
        };
        self.done("bob", Op::RegisterWebhook(op));
    }

    /// Sends a message from alice to bob, and returns the number of its delivery.
    pub fn send(&mut self) -> u64 {
        self.send_until(0)
    }

    /// Sends a message from alice to bob that expires, and returns the number of its delivery.
    pub fn send_until(&mut self, expires_at_ms: u64) -> u64 {
        self.sent += 1;
        let op = agentpost_proto::command::Send {
            expires_at_ms,
            ..send(&format!("m{}", self.sent), "alice", "bob")
        };
        self.done("w", Op::Send(op));
        query::team::head(&self.core.memory, self.team()).unwrap().last_delivery
    }

    pub fn team(&self) -> TeamId {
        team_id("acme")
    }

    pub fn delivery(&self, number: u64) -> Delivery {
        delivery::by_number(&self.core.memory, self.team(), number)
            .unwrap()
            .unwrap()
    }

    pub fn attempt(&self, number: u64, attempt_no: u32) -> AttemptRef {
        AttemptRef {
            team_id: self.team().to_bytes(),
            number,
            attempt_no,
        }
    }

    pub fn attempts(&mut self, op: Op) -> bool {
        match self.by(None, op).0 {
            R::Attempts(reply) => reply.done[0],
            R::Rejection(Rejection { code, .. }) if code == ErrorCode::Stale as i32 => false,
            reply => panic!("{reply:?}"),
        }
    }

    pub fn claim_in(&mut self, epoch: u64, number: u64, attempt_no: u32) -> bool {
        let attempt = Some(self.attempt(number, attempt_no));
        let grants = vec![Grant { attempt, node: NODE }];
        self.attempts(Op::Claim(Claim { epoch, grants }))
    }

    pub fn claim(&mut self, number: u64, attempt_no: u32) -> bool {
        self.claim_in(self.core.epoch, number, attempt_no)
    }

    pub fn outcome_in(&mut self, epoch: u64, number: u64, attempt_no: u32, result: AttemptResult) -> bool {
        let outcome = AttemptOutcome {
            attempt: Some(self.attempt(number, attempt_no)),
            epoch,
            result: Some(result),
        };
        self.attempts(Op::Outcome(Outcome {
            outcomes: vec![outcome],
        }))
    }

    pub fn outcome(&mut self, number: u64, attempt_no: u32, result: AttemptResult) -> bool {
        self.outcome_in(self.core.epoch, number, attempt_no, result)
    }

    /// Claims the next attempt and fails it with a status. Returns the delay until the attempt after it.
    pub fn fail(&mut self, number: u64, result: AttemptResult) -> u64 {
        let before = self.delivery(number);
        self.core.cluster_ms = self.core.cluster_ms.max(before.due_ms);
        assert!(self.claim(number, before.attempt_no + 1));
        assert!(self.outcome(number, before.attempt_no + 1, result));
        self.delivery(number).due_ms.saturating_sub(self.core.cluster_ms)
    }

    pub fn takeover(&mut self, number: u64, attempt_no: u32) -> bool {
        let (epoch, attempts) = (self.core.epoch, vec![self.attempt(number, attempt_no)]);
        self.attempts(Op::Takeover(Takeover { epoch, attempts }))
    }

    pub fn close(&mut self, generation: u64) -> (u32, bool) {
        let op = CloseEndpoint {
            epoch: self.core.epoch,
            team_id: self.team().to_bytes(),
            generation,
        };
        match self.by(None, Op::CloseEndpoint(op)).0 {
            R::Close(reply) => (reply.closed, reply.finished),
            reply => panic!("{reply:?}"),
        }
    }

    /// The bodies of the notices in the sender's inbox.
    pub fn notices(&self) -> Vec<Value> {
        let page = PageQuery {
            after_seq: None,
            order: Order::Ascending,
            skip: 0,
            limit: 1_000,
            state: None,
            from: Some("system"),
            topic: None,
            wall_ms: 0,
        };
        let page = query::inbox::page(&self.core.memory, self.team(), "alice", &page).unwrap();
        let notices = page.items.into_iter().map(|item| item.message);
        notices
            .inspect(|notice| assert_eq!(notice.r#type, "delivery.failed"))
            .inspect(|notice| assert_eq!(notice.id[..6], [0; 6], "never the greatest id of its team"))
            .map(|notice| serde_json::from_slice(&notice.body).unwrap())
            .collect()
    }

    pub fn dead(&self) -> Vec<u64> {
        let query = DeliveryQuery {
            after: None,
            order: Order::Descending,
            limit: 1_000,
            state: Some(DeliveryState::Dead),
            agent: None,
        };
        let page = delivery::page(&self.core.memory, self.team(), &query).unwrap();
        page.deliveries.iter().map(|d| d.number).collect()
    }
}
