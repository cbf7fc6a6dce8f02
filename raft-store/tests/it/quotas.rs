//! Every quota, compared with an exact model over days, months and changed limits: what is within the limit is accepted
//! and numbered, what is not is rejected and never counted.

use std::collections::BTreeMap;

use agentpost_proto::command::operation::Op;
use agentpost_proto::command::reply::Reply as R;
use agentpost_proto::command::send_outcome::Outcome;
use agentpost_proto::command::{
    ErrorCode, Face, LeaseReads, LeaseReply, LeaseReturn, Permission, RegisterWebhook, Rejection, ReturnLeases,
    SendBatch, SendReply, Subscribe, TeamLimits, UpdateTeam, WebhookEvent,
};
use agentpost_proto::time;
use agentpost_raft_store::core::{keys, query};
use agentpost_testkit::commands::{self, create_key, create_team, id_of, principal, send, team_id};
use proptest::prelude::*;

use crate::common::core::Core;

const AGENTS: [&str; 2] = ["alice", "bob"];
const DAY_MS: u64 = 86_400_000;
/// 2026-01-31T12:00:00Z.
const START_MS: u64 = 1_769_860_800_000;

#[derive(Debug, Clone)]
enum Step {
    /// A send through the Kite API with an unbound key counts only for the team.
    Sends(usize, Face, usize),
    Webhook(usize),
    /// Whether it has a URL.
    Subscribe(usize, bool),
    /// The agent, and the number of nodes.
    Lease(usize, u32),
    /// The number of a lease of this history, and how many of its units are returned.
    Return(prop::sample::Index, u64),
    Pass(u64),
    Limits(TeamLimits),
}

fn limits() -> impl Strategy<Value = TeamLimits> {
    let limit = || prop_oneof![6 => 1..8u64, 1 => Just(0u64)];
    (
        limit(),
        prop_oneof![6 => 1..200u64, 1 => Just(0)],
        limit(),
        prop_oneof![6 => 1..30u64, 1 => Just(0)],
        prop::option::weighted(0.2, Just(5)),
    )
        .prop_map(|(sends, reads, registrations, events, price)| TeamLimits {
            daily_sends: sends,
            daily_reads: reads,
            daily_webhook_registrations: registrations,
            monthly_events: events,
            overage_price_atomic: price,
        })
}

fn step() -> impl Strategy<Value = Step> {
    let agent = || 0..AGENTS.len();
    let face = prop::sample::select(vec![Face::Abbababa, Face::Kite]);
    let pass = prop_oneof![8 => 0..3_600_000u64, 2 => Just(DAY_MS / 2), 1 => Just(20 * DAY_MS)];
    prop_oneof![
        8 => (agent(), face, 1..5usize).prop_map(|(a, f, n)| Step::Sends(a, f, n)),
        4 => agent().prop_map(Step::Webhook),
        3 => (agent(), any::<bool>()).prop_map(|(a, url)| Step::Subscribe(a, url)),
        6 => (agent(), 0..4u32).prop_map(|(a, n)| Step::Lease(a, n)),
        4 => (any::<prop::sample::Index>(), 0..70u64).prop_map(|(i, n)| Step::Return(i, n)),
        3 => pass.prop_map(Step::Pass),
        1 => limits().prop_map(Step::Limits),
    ]
}

/// A granted lease that was not returned yet.
struct Out {
    agent: usize,
    day: u32,
    id: String,
    units: u64,
    returned: bool,
}

struct World {
    core: Core,
    limits: TeamLimits,
    named: u64,
    sends: BTreeMap<(usize, u32), u64>,
    registrations: BTreeMap<(usize, u32), u64>,
    reads: BTreeMap<(usize, u32), u64>,
    events: BTreeMap<u32, u64>,
    /// The same events by day.
    events_of_day: BTreeMap<u32, u64>,
    leases: Vec<Out>,
}

impl World {
    fn new(limits: TeamLimits) -> Self {
        let mut core = Core {
            wall_ms: START_MS,
            ..Core::default()
        };
        let root = Some(principal("system", "root"));
        core.apply(None, commands::bootstrap("root"));
        core.apply(root.clone(), create_team("acme", Some(limits)));
        core.apply(root, Op::CreateKey(create_key("acme", "w", Permission::Write, "")));
        World {
            core,
            limits,
            named: 0,
            sends: BTreeMap::new(),
            registrations: BTreeMap::new(),
            reads: BTreeMap::new(),
            events: BTreeMap::new(),
            events_of_day: BTreeMap::new(),
            leases: Vec::new(),
        }
    }

    fn name(&mut self) -> String {
        self.named += 1;
        format!("n{}", self.named)
    }

    fn ask(&mut self, op: Op) -> R {
        self.core.apply(Some(principal("acme", "w")), op).0.reply.unwrap()
    }

    fn day(&self) -> u32 {
        time::day(self.core.wall_ms)
    }

    fn run(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match step {
            Step::Sends(agent, face, count) => self.sends(*agent, *face, *count),
            Step::Webhook(agent) => {
                let op = RegisterWebhook {
                    agent: AGENTS[*agent].to_owned(),
                    webhook_id: id_of(&self.name()).to_vec().into(),
                    url: format!("https://example.com/{}", self.named % 3),
                    events: vec![WebhookEvent::MessageReceived as i32],
                };
                let reply = match self.ask(Op::RegisterWebhook(op)) {
                    R::Webhook(webhook) => Ok((webhook.registrations_used, webhook.registrations_limit)),
                    R::Rejection(rejection) => Err(rejection),
                    other => panic!("{other:?}"),
                };
                self.registered(*agent, reply)
            }
            Step::Subscribe(agent, with_url) => {
                let op = Subscribe {
                    agent: AGENTS[*agent].to_owned(),
                    topic: "news".to_owned(),
                    subscription_id: id_of(&self.name()).to_vec().into(),
                    url: with_url.then(|| format!("https://example.com/{}", self.named % 3)),
                };
                match self.ask(Op::Subscribe(op)) {
                    R::Subscription(s) if *with_url => {
                        self.registered(*agent, Ok((s.registrations_used, s.registrations_limit)))
                    }
                    R::Rejection(rejection) if *with_url => self.registered(*agent, Err(rejection)),
                    R::Subscription(s) => {
                        prop_assert_eq!(s.registrations_used, 0, "only a URL is registered");
                        Ok(())
                    }
                    other => panic!("{other:?}"),
                }
            }
            Step::Lease(agent, nodes) => self.lease(*agent, *nodes),
            Step::Return(which, unused) => self.give_back(which, *unused),
            Step::Pass(ms) => {
                self.core.wall_ms += ms;
                Ok(())
            }
            Step::Limits(limits) => {
                let op = UpdateTeam {
                    team_id: team_id("acme").to_bytes(),
                    daily_sends: Some(limits.daily_sends),
                    daily_reads: Some(limits.daily_reads),
                    daily_webhook_registrations: Some(limits.daily_webhook_registrations),
                    monthly_events: Some(limits.monthly_events),
                    overage_price_atomic: limits.overage_price_atomic,
                    clear_overage_price: limits.overage_price_atomic.is_none(),
                    strict_recipients: None,
                };
                self.core.apply(Some(principal("system", "root")), Op::UpdateTeam(op));
                self.limits = *limits;
                Ok(())
            }
        }
    }

    fn sends(&mut self, agent: usize, face: Face, count: usize) -> Result<(), TestCaseError> {
        let items = (0..count).map(|_| {
            let mut op = send(&self.name(), AGENTS[agent], "carol");
            op.face = face as i32;
            op
        });
        let sends: Vec<_> = items.collect();
        let outcomes: Vec<Outcome> = match self.ask(Op::SendBatch(SendBatch { sends })) {
            R::SendBatch(batch) => batch.outcomes.into_iter().map(|o| o.outcome.unwrap()).collect(),
            other => panic!("{other:?}"),
        };
        prop_assert_eq!(outcomes.len(), count);
        for outcome in outcomes {
            self.sent(agent, face, outcome)?;
        }
        Ok(())
    }

    fn sent(&mut self, agent: usize, face: Face, outcome: Outcome) -> Result<(), TestCaseError> {
        let TeamLimits {
            daily_sends,
            monthly_events,
            overage_price_atomic: price,
            ..
        } = self.limits;
        let counted = face == Face::Abbababa;
        let day = self.day();
        let events = self.events.entry(time::month(self.core.wall_ms)).or_default();
        let sends = self.sends.entry((agent, day)).or_default();
        let over = monthly_events != 0 && *events >= monthly_events;
        let refused_month = over && price.is_none();
        let refused_day = counted && daily_sends != 0 && *sends >= daily_sends;
        match outcome {
            Outcome::Sent(sent) => {
                prop_assert!(!refused_month && !refused_day, "beyond a limit: {:?}", sent);
                *events += 1;
                *self.events_of_day.entry(day).or_default() += 1;
                *sends += u64::from(counted);
                let expected = SendReply {
                    events_used: *events,
                    events_limit: monthly_events,
                    amount_charged_atomic: if over { price.unwrap() } else { 0 },
                    sends_used: if counted { *sends } else { 0 },
                    sends_limit: daily_sends,
                    ..sent.clone()
                };
                prop_assert_eq!(sent, expected);
                Ok(())
            }
            Outcome::Rejection(rejection) => {
                prop_assert!(refused_month || refused_day, "{:?}", rejection);
                let until = if refused_month {
                    time::next_month_ms(self.core.wall_ms).div_ceil(1000)
                } else {
                    time::next_midnight_s(self.core.wall_ms)
                };
                self.refused(&rejection, until)
            }
        }
    }

    fn refused(&self, rejection: &Rejection, until_s: u64) -> Result<(), TestCaseError> {
        prop_assert_eq!(rejection.code(), ErrorCode::QuotaExceeded);
        let wait_ms = (until_s * 1000 - self.core.wall_ms).div_ceil(1000);
        prop_assert_eq!(rejection.retry_after_s, wait_ms);
        Ok(())
    }

    fn registered(&mut self, agent: usize, reply: Result<(u64, u64), Rejection>) -> Result<(), TestCaseError> {
        let limit = self.limits.daily_webhook_registrations;
        let day = self.day();
        let count = self.registrations.entry((agent, day)).or_default();
        let full = limit != 0 && *count >= limit;
        match reply {
            Ok(counted) => {
                prop_assert!(!full);
                *count += 1;
                prop_assert_eq!(counted, (*count, limit));
                Ok(())
            }
            Err(rejection) => {
                prop_assert!(full, "{:?}", rejection);
                self.refused(&rejection, time::next_midnight_s(self.core.wall_ms))
            }
        }
    }

    fn lease(&mut self, agent: usize, nodes: u32) -> Result<(), TestCaseError> {
        let (limit, day, id) = (self.limits.daily_reads, self.day(), self.name());
        let op = LeaseReads {
            agent: AGENTS[agent].to_owned(),
            lease_id: id_of(&id).to_vec().into(),
            node: 1,
            nodes,
        };
        let reply = self.ask(Op::LeaseReads(op.clone()));
        let used = self.reads.entry((agent, day)).or_default();
        let lease = match reply {
            R::Lease(lease) => lease,
            R::Rejection(rejection) => {
                prop_assert!(limit != 0 && *used >= limit, "{:?}", rejection);
                return self.refused(&rejection, time::next_midnight_s(self.core.wall_ms));
            }
            other => panic!("{other:?}"),
        };
        if limit == 0 {
            prop_assert_eq!((lease.units, lease.limit), (0, 0));
            return Ok(());
        }
        prop_assert!((1..=64).contains(&lease.units));
        *used += lease.units;
        prop_assert!(*used <= limit);
        let expected = LeaseReply {
            units: lease.units,
            day,
            used: *used,
            limit,
        };
        prop_assert_eq!(lease, expected);
        // Repeating the command returns the same grant.
        let again = self.ask(Op::LeaseReads(op));
        prop_assert_eq!(again, R::Lease(expected));
        self.leases.push(Out {
            agent,
            day,
            id,
            units: expected.units,
            returned: false,
        });
        Ok(())
    }

    fn give_back(&mut self, which: &prop::sample::Index, unused: u64) -> Result<(), TestCaseError> {
        if self.leases.is_empty() {
            return Ok(());
        }
        let today = self.day();
        let lease = which.get_mut(&mut self.leases);
        let op = LeaseReturn {
            team_id: team_id("acme").to_bytes(),
            day: lease.day,
            lease_id: id_of(&lease.id).to_vec().into(),
            unused,
        };
        if !lease.returned && lease.day == today && unused <= lease.units {
            *self.reads.get_mut(&(lease.agent, lease.day)).unwrap() -= unused;
        }
        lease.returned = true;
        let leases = vec![op.clone(), op];
        let (reply, _) = self.core.apply(None, Op::ReturnLeases(ReturnLeases { leases }));
        prop_assert!(matches!(reply.reply, Some(R::Done(_))));
        Ok(())
    }

    /// Checks that the state's counters of today equal the model's.
    fn check(&self) -> Result<(), TestCaseError> {
        let today = self.day();
        let events = query::team::events_today(&self.core.memory, team_id("acme"), self.core.wall_ms).unwrap();
        prop_assert_eq!(events, self.events_of_day.get(&today).copied().unwrap_or(0));
        for (agent, name) in AGENTS.iter().enumerate() {
            let team = team_id("acme");
            for (row, counted) in [
                (keys::send_count(team, name), &self.sends),
                (keys::registration_count(team, name), &self.registrations),
                (keys::read_count(team, name), &self.reads),
            ] {
                let count = query::team::day_count(&self.core.memory, &row).unwrap();
                let used = if count.day == today { count.used } else { 0 };
                prop_assert_eq!(used, counted.get(&(agent, today)).copied().unwrap_or(0));
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn every_quota_is_exact(limits in limits(), steps in prop::collection::vec(step(), 0..200)) {
        let mut world = World::new(limits);
        for step in &steps {
            world.run(step)?;
            world.check()?;
        }
    }
}
