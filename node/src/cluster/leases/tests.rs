//! The ledgers of three nodes against the real state machine, with lost replies, crashes, delays and clock jumps.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use agentpost_proto::command::operation::Op;
use agentpost_proto::command::{
    BootstrapAdmin, Command, CreateKey, CreateTeam, LeaseReturn, Permission, Reply, TeamLimits, UpdateTeam, reply,
};
use agentpost_proto::id::KeyId;
use agentpost_proto::record::LogId;
use agentpost_raft_store::core::apply::apply_command;
use agentpost_raft_store::core::kv::Memory;
use agentpost_raft_store::core::view::{HotCache, View};
use proptest::prelude::*;
use prost::Message as _;
use tokio::time::Instant;

use super::ledger::{LEASED_AGENTS_MAX, RETURNS_WAITING_MAX, SPENT_WITHIN};
use super::*;

const TEAM: TeamId = TeamId([7; 16]);
const KEY: KeyId = KeyId([8; 16]);
const ROOT: KeyId = KeyId([9; 16]);
const AGENTS: [&str; 2] = ["alice", "bob"];
const NODES: usize = 3;
/// Noon of some day.
const START_MS: u64 = 20_000 * 86_400_000 + 43_200_000;

/// The fate of a proposal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Answered,
    /// It was applied, but the reply was lost.
    AnswerLost,
    NotCommitted,
}

#[derive(Debug, Clone)]
enum Step {
    /// A read. If it needs a lease, the reply takes this long.
    Read(usize, usize, Fate, u64),
    GiveBack(usize, Fate),
    Crash(usize),
    Pass(u64),
    /// The wall clock of one node jumps.
    Skew(usize, i64),
    Limit(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let node = || 0..NODES;
    let fate = || {
        prop_oneof![
            6 => Just(Fate::Answered),
            1 => Just(Fate::AnswerLost),
            1 => Just(Fate::NotCommitted),
        ]
    };
    let delay = prop_oneof![9 => Just(0), 1 => 1_000..7_000u64];
    let passes = prop_oneof![6 => 0..3_000u64, 2 => Just(6_000u64), 1 => Just(86_400_000 / 2)];
    prop_oneof![
        30 => (node(), 0..AGENTS.len(), fate(), delay).prop_map(|(n, a, f, d)| Step::Read(n, a, f, d)),
        4 => (node(), fate()).prop_map(|(n, f)| Step::GiveBack(n, f)),
        1 => node().prop_map(Step::Crash),
        4 => passes.prop_map(Step::Pass),
        1 => (node(), -7_200_000..7_200_000i64).prop_map(|(n, ms)| Step::Skew(n, ms)),
        1 => (0..40u64).prop_map(Step::Limit),
    ]
}

struct World {
    memory: Memory,
    cache: HotCache,
    index: u64,
    began: Instant,
    passed_ms: u64,
    limit: u64,
    leases: u64,
    nodes: [Ledger; NODES],
    skew_ms: [i64; NODES],
    /// The reads by agent and day.
    spent: BTreeMap<(usize, u32), u64>,
    /// The units that were granted and then lost with a reply or by a crash.
    wasted: BTreeMap<(usize, u32), u64>,
}

impl World {
    fn new(limit: u64) -> Self {
        let mut world = World {
            memory: Memory::default(),
            cache: HotCache::default(),
            index: 0,
            began: Instant::now(),
            passed_ms: 0,
            limit,
            leases: 0,
            nodes: std::array::from_fn(|_| Ledger::default()),
            skew_ms: [0; NODES],
            spent: BTreeMap::new(),
            wasted: BTreeMap::new(),
        };
        let bootstrap = BootstrapAdmin {
            key_id: ROOT.to_bytes(),
            key_hash: vec![9; 32].into(),
            key_prefix: "root".to_owned(),
        };
        world.apply(None, Op::BootstrapAdmin(bootstrap));
        let team = CreateTeam {
            team_id: TEAM.to_bytes(),
            name: "t".to_owned(),
            limits: Some(TeamLimits {
                daily_reads: limit,
                ..TeamLimits::default()
            }),
        };
        world.apply(Some((TeamId::SYSTEM, ROOT)), Op::CreateTeam(team));
        let key = CreateKey {
            team_id: TEAM.to_bytes(),
            key_id: KEY.to_bytes(),
            key_hash: vec![8; 32].into(),
            name: "k".to_owned(),
            permissions: vec![Permission::Read as i32],
            ..CreateKey::default()
        };
        world.apply(Some((TeamId::SYSTEM, ROOT)), Op::CreateKey(key));
        world
    }

    fn apply(&mut self, by: Option<(TeamId, KeyId)>, op: Op) -> reply::Reply {
        let principal = by.map(|(team, key)| Principal {
            team_id: team.to_bytes(),
            key_id: key.to_bytes(),
        });
        let operation = Operation {
            principal,
            op: Some(op),
        };
        let command = Command {
            // The first node is the leader.
            wall_ms: self.wall_ms(0),
            operation: operation.encode_to_vec().into(),
            ..Command::default()
        };
        self.index += 1;
        let id = LogId {
            term: 1,
            node: 1,
            index: self.index,
        };
        let mut view = View::new(&self.memory, &mut self.cache).unwrap();
        let reply = apply_command(&mut view, &id, &command.encode_to_vec().into(), &mut Vec::new());
        let writes = view.into_writes();
        self.memory.write(writes);
        let Reply { reply } = reply.unwrap();
        reply.unwrap()
    }

    fn wall_ms(&self, node: usize) -> u64 {
        (START_MS + self.passed_ms).saturating_add_signed(self.skew_ms[node])
    }

    fn at(&self, node: usize) -> Moment {
        let applied_ms = query::applied(&self.memory).unwrap().wall_ms;
        Moment {
            day: time::day(applied_ms.max(self.wall_ms(node))),
            now: self.began + Duration::from_millis(self.passed_ms),
        }
    }

    fn run(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match *step {
            Step::Read(node, agent, fate, delay_ms) => self.read(node, agent, fate, delay_ms)?,
            Step::GiveBack(node, fate) => {
                let at = self.at(node);
                self.nodes[node].expire(at);
                self.give_back(node, fate);
            }
            Step::Crash(node) => {
                let mut crashed = std::mem::take(&mut self.nodes[node]);
                crashed.retire_all();
                for lease in crashed.take_returns() {
                    self.waste_return(&lease);
                }
            }
            Step::Pass(ms) => self.passed_ms += ms,
            Step::Skew(node, ms) => self.skew_ms[node] = ms,
            Step::Limit(limit) => {
                let update = UpdateTeam {
                    team_id: TEAM.to_bytes(),
                    daily_reads: Some(limit),
                    ..UpdateTeam::default()
                };
                self.apply(Some((TeamId::SYSTEM, ROOT)), Op::UpdateTeam(update));
                self.limit = limit;
            }
        }
        Ok(())
    }

    fn read(&mut self, node: usize, agent: usize, fate: Fate, delay_ms: u64) -> Result<(), TestCaseError> {
        let row = keys::read_count(TEAM, AGENTS[agent]);
        let at = self.at(node);
        let decision = decide(&mut self.nodes[node], &self.memory, TEAM, &row, at).unwrap();
        match decision {
            Decision::Taken(_) => return self.spend(agent, at),
            Decision::UsedUp(limit) => {
                prop_assert_eq!(limit, self.limit);
                return Ok(());
            }
            Decision::Ask if fate == Fate::NotCommitted => return Ok(()),
            Decision::Ask => {}
        }
        self.leases += 1;
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.leases.to_be_bytes());
        let op = LeaseReads {
            agent: AGENTS[agent].to_owned(),
            lease_id: id.to_vec().into(),
            node: node as u64,
            nodes: NODES as u32,
        };
        let granted = match self.apply(Some((TEAM, KEY)), Op::LeaseReads(op)) {
            reply::Reply::Lease(granted) => granted,
            // The node's clock is ahead of the replicated day, and that day's limit is used up.
            reply::Reply::Rejection(r) => {
                prop_assert_eq!(r.code(), ErrorCode::QuotaExceeded);
                return Ok(());
            }
            other => panic!("{other:?}"),
        };
        prop_assert!(granted.used <= granted.limit);
        if fate == Fate::AnswerLost {
            *self.wasted.entry((agent, granted.day)).or_default() += granted.units;
            return Ok(());
        }
        self.passed_ms += delay_ms;
        let held = Held {
            team: TEAM,
            id,
            day: granted.day,
            units: granted.units,
            asked_at: at.now,
        };
        let at = self.at(node);
        self.nodes[node].put(&row, held);
        if self.nodes[node].spend(&row, at).is_some() {
            prop_assert!(u128::from(delay_ms) < SPENT_WITHIN.as_millis());
            self.spend(agent, at)?;
        }
        Ok(())
    }

    fn spend(&mut self, agent: usize, at: Moment) -> Result<(), TestCaseError> {
        if self.limit == 0 {
            return Ok(());
        }
        let spent = self.spent.entry((agent, at.day)).or_default();
        *spent += 1;
        prop_assert!(*spent <= self.limit, "{} of {} reads", spent, self.limit);
        Ok(())
    }

    fn give_back(&mut self, node: usize, fate: Fate) {
        let leases = self.nodes[node].take_returns();
        if fate != Fate::NotCommitted {
            let op = ReturnLeases { leases: leases.clone() };
            self.apply(None, Op::ReturnLeases(op));
        }
        if fate != Fate::Answered {
            self.nodes[node].owe(leases);
        }
    }

    /// Counts the units of a return that will never be proposed, unless an earlier return whose reply was lost has
    /// returned them.
    fn waste_return(&mut self, lease: &LeaseReturn) {
        let row = keys::lease(lease.day, TEAM, &lease.lease_id);
        if let Some(row) = self.memory_row(&row) {
            let agent = AGENTS.iter().position(|name| *name == row.agent).unwrap();
            *self.wasted.entry((agent, lease.day)).or_default() += lease.unused;
        }
    }

    fn memory_row(&self, key: &[u8]) -> Option<agentpost_proto::record::Lease> {
        let row = self.memory.get(key).unwrap()?;
        Some(prost::Message::decode(row).unwrap())
    }

    /// Returns all held leases, and all returns that are still queued.
    fn settle(&mut self) {
        for node in 0..NODES {
            self.nodes[node].retire_all();
            self.give_back(node, Fate::Answered);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn no_agent_reads_more_than_its_limit_and_no_unit_is_lost_without_a_fault(
        limit in 1..40u64,
        steps in prop::collection::vec(step(), 0..300),
    ) {
        let mut world = World::new(limit);
        // Unlimited reads are not counted. A node with a wrong clock may spend units on another day.
        let mut plain = true;
        for step in &steps {
            world.run(step)?;
            plain &= world.limit > 0 && !matches!(step, Step::Skew(..));
        }
        world.settle();
        let today = time::day(world.wall_ms(0));
        for (agent, name) in AGENTS.iter().enumerate() {
            let count = query::team::day_count(&world.memory, &keys::read_count(TEAM, name)).unwrap();
            let of_day = |map: &BTreeMap<(usize, u32), u64>| map.get(&(agent, count.day)).copied().unwrap_or(0);
            // Units of a day that is over are not credited.
            if plain && count.day == today {
                prop_assert_eq!(count.used, of_day(&world.spent) + of_day(&world.wasted));
            }
        }
    }
}

/// A node can spend all units of a day if no other node reads, and again on the next day.
#[test]
fn one_node_can_spend_all_units() {
    let mut world = World::new(100);
    for day in 0..2 {
        for _ in 0..150 {
            world.run(&Step::Read(1, 0, Fate::Answered, 0)).unwrap();
        }
        let today = time::day(world.wall_ms(1));
        assert_eq!(world.spent[&(0, today)], 100, "day {day}");
        world.run(&Step::Pass(86_400_000)).unwrap();
    }
    // With three nodes a block is a twelfth of the remaining units, so the last units need more entries.
    assert!(world.leases < 100, "{} leases for 200 reads", world.leases);
}

#[test]
fn a_ledger_is_bounded() {
    let mut ledger = Ledger::default();
    let at = Moment {
        day: 1,
        now: Instant::now(),
    };
    let lease = |day| Held {
        team: TEAM,
        id: [1; 16],
        day,
        units: 2,
        asked_at: at.now,
    };
    let row = |n: usize| Bytes::from(n.to_be_bytes().to_vec());
    let max = LEASED_AGENTS_MAX;
    for n in 0..max {
        drop(ledger.asking(&row(n)).unwrap());
    }
    assert!(ledger.asking(&row(max)).is_none());
    assert!(ledger.asking(&row(0)).is_some());
    let waiting = ledger.asking(&row(1)).unwrap();
    ledger.put(&row(2), lease(1));
    ledger.expire(at);
    // Only agents with a lease or a request stay in the ledger, so there is room for others.
    assert!(ledger.asking(&row(max)).is_some());
    assert_eq!(ledger.unspent(&row(2), at), 2);
    drop(waiting);
    ledger.put(&row(2), lease(0));
    assert_eq!(ledger.unspent(&row(2), at), 0, "a lease of yesterday is worth nothing");
    assert_eq!(ledger.spend(&row(2), at), None);
    let owed: Vec<u64> = ledger.take_returns().iter().map(|lease| lease.unused).collect();
    assert_eq!(owed, [2, 2]);
    let many = vec![LeaseReturn::default(); RETURNS_WAITING_MAX + 1];
    ledger.owe(many);
    let mut returned = 0;
    while let batch @ 1.. = ledger.take_returns().len() {
        assert!(batch <= agentpost_proto::limits::LEASES_PER_ENTRY_MAX);
        returned += batch;
    }
    assert_eq!(returned, RETURNS_WAITING_MAX);
}
