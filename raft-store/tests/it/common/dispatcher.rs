//! Commands of a dispatcher for random histories, some of them slightly wrong.

use agentpost_proto::command::operation::Op;
use agentpost_proto::command::{
    AttemptOutcome, AttemptRef, AttemptResult, CancelDelivery, Claim, CloseEndpoint, FanoutChunk, Grant, Outcome,
    Redrive, Takeover,
};
use agentpost_proto::id::TeamId;
use agentpost_proto::record::{Delivery, DeliveryState};
use agentpost_raft_store::core::kv::Order;
use agentpost_raft_store::core::query::delivery::{self, DeliveryQuery};
use agentpost_testkit::commands::team_id;
use proptest::prelude::*;

use crate::common::core::Core;
use crate::common::random::TEAMS;

/// A command to choose. The numbers select among the possibilities that the state offers.
#[derive(Debug, Clone)]
pub enum Act {
    Claim(usize, Miss),
    Outcome(usize, u8, Miss),
    Takeover(usize, Miss),
    Chunk(usize, Miss),
    Close(usize, Miss),
    Cancel(usize),
    Redrive(usize),
}

/// What is wrong with the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Miss {
    Nothing,
    Epoch,
    Number,
}

impl Act {
    pub fn is_internal(&self) -> bool {
        !matches!(self, Act::Cancel(_) | Act::Redrive(_))
    }
}

pub fn act() -> impl Strategy<Value = Act> {
    let miss = || prop_oneof![8 => Just(Miss::Nothing), 1 => Just(Miss::Epoch), 1 => Just(Miss::Number)];
    prop_oneof![
        8 => (0..100usize, miss()).prop_map(|(n, miss)| Act::Claim(n, miss)),
        8 => (0..100usize, 0..8u8, miss()).prop_map(|(n, result, miss)| Act::Outcome(n, result, miss)),
        3 => (0..100usize, miss()).prop_map(|(n, miss)| Act::Takeover(n, miss)),
        5 => (0..100usize, miss()).prop_map(|(n, miss)| Act::Chunk(n, miss)),
        3 => (0..100usize, miss()).prop_map(|(n, miss)| Act::Close(n, miss)),
        1 => (0..100usize).prop_map(Act::Cancel),
        2 => (0..100usize).prop_map(Act::Redrive),
    ]
}

/// The command, or `None` if the state offers none of this kind.
pub fn resolve(core: &Core, act: &Act) -> Option<Op> {
    let pick_delivery = |n: usize, state| {
        let offered = deliveries(core, state);
        offered.get(n % offered.len().max(1)).cloned()
    };
    let epoch = |miss| core.epoch - u64::from(miss == Miss::Epoch);
    Some(match *act {
        Act::Claim(n, miss) => {
            let offered = deliveries(core, DeliveryState::Scheduled);
            let first = n % offered.len().max(1);
            let grants: Vec<Grant> = (1..)
                .zip(offered.iter().skip(first).take(1 + n % 3))
                .map(|(node, (team, d))| Grant {
                    attempt: Some(attempt(*team, d, 1 + u32::from(miss == Miss::Number))),
                    node,
                })
                .collect();
            (!grants.is_empty()).then_some(Op::Claim(Claim {
                epoch: epoch(miss),
                grants,
            }))?
        }
        Act::Outcome(n, result, miss) => {
            let (team, delivery) = pick_delivery(n, DeliveryState::Claimed)?;
            let claimed = delivery.claim.unwrap_or_default().epoch;
            Op::Outcome(Outcome {
                outcomes: vec![AttemptOutcome {
                    attempt: Some(attempt(team, &delivery, u32::from(miss == Miss::Number))),
                    epoch: claimed + u64::from(miss == Miss::Epoch),
                    result: Some(result_of(result)),
                }],
            })
        }
        Act::Takeover(n, miss) => {
            let (team, delivery) = pick_delivery(n, DeliveryState::Claimed)?;
            Op::Takeover(Takeover {
                epoch: epoch(miss),
                attempts: vec![attempt(team, &delivery, u32::from(miss == Miss::Number))],
            })
        }
        Act::Chunk(n, miss) => {
            let jobs = delivery::fanout_jobs(&core.memory).unwrap();
            chunk(core, &jobs, n % jobs.len().max(1), miss)?
        }
        Act::Close(n, miss) => {
            let closings = delivery::closings(&core.memory).unwrap();
            let (team, generation) = closings.get(n % closings.len().max(1))?;
            Op::CloseEndpoint(CloseEndpoint {
                epoch: epoch(miss),
                team_id: team.to_bytes(),
                generation: generation + u64::from(miss == Miss::Number),
            })
        }
        Act::Cancel(n) => {
            let state = [DeliveryState::Scheduled, DeliveryState::Claimed][n % 2];
            let (_, delivery) = pick_delivery(n, state)?;
            Op::CancelDelivery(CancelDelivery {
                delivery_id: delivery.id,
                agent: delivery.agent,
                team_id: Default::default(),
            })
        }
        Act::Redrive(n) => {
            let (_, delivery) = pick_delivery(n, DeliveryState::Dead)?;
            Op::Redrive(Redrive {
                delivery_id: delivery.id,
                agent: delivery.agent,
                team_id: Default::default(),
            })
        }
    })
}

/// The next chunk of the first unfinished fan-out job.
pub fn next_chunk(core: &Core) -> Option<Op> {
    let jobs = delivery::fanout_jobs(&core.memory).unwrap();
    chunk(core, &jobs, 0, Miss::Nothing)
}

type Job = (TeamId, String, u64, agentpost_proto::record::FanoutJob);

fn chunk(core: &Core, jobs: &[Job], n: usize, miss: Miss) -> Option<Op> {
    let (team, topic, seq, job) = jobs.get(n)?;
    Some(Op::FanoutChunk(FanoutChunk {
        epoch: core.epoch - u64::from(miss == Miss::Epoch),
        team_id: team.to_bytes(),
        topic: topic.clone(),
        seq: *seq,
        from_serial: job.next_serial + u64::from(miss == Miss::Number),
    }))
}

fn deliveries(core: &Core, state: DeliveryState) -> Vec<(TeamId, Delivery)> {
    let query = DeliveryQuery {
        after: None,
        order: Order::Ascending,
        limit: 1000,
        state: Some(state),
        agent: None,
    };
    TEAMS
        .iter()
        .flat_map(|team| {
            let team = team_id(team);
            let page = delivery::page(&core.memory, team, &query).unwrap();
            page.deliveries.into_iter().map(move |d| (team, d))
        })
        .collect()
}

fn attempt(team: TeamId, delivery: &Delivery, beyond: u32) -> AttemptRef {
    AttemptRef {
        team_id: team.to_bytes(),
        number: delivery.number,
        attempt_no: delivery.attempt_no + beyond,
    }
}

fn result_of(n: u8) -> AttemptResult {
    let with = |status: u32| AttemptResult {
        status,
        error: "status".to_owned(),
        ..AttemptResult::default()
    };
    match n {
        0 | 1 => with(200),
        2 => with(410),
        3 => AttemptResult {
            non_retryable: true,
            ..with(489)
        },
        4 => AttemptResult {
            not_sent: true,
            ..AttemptResult::default()
        },
        5 => AttemptResult {
            retry_after_ms: 20_000,
            ..with(503)
        },
        _ => with(500),
    }
}
