//! The calls that may still be running and whose end nobody reports to this leadership.
//!
//! A call outlives the leadership that claimed it, on any node, and its claim stays in the state until its outcome is
//! recorded or taken over. So does the claim of a call whose node this leadership has lost. Such a call counts against
//! the limits: otherwise a URL would get its full number of calls again with every change of leader. The calls of a
//! node that crashed count as well, until takeover closes their claims: nobody can tell a node that crashed from one
//! that was cut off and still calls. No event tells this node that such a claim is gone, so the claims are looked at
//! again from time to time.

use std::time::Duration;

use agentpost_raft_store::core::kv::{Fatal, Kv};
use agentpost_raft_store::core::query::delivery;
use tokio::time::Instant;

use super::fair_queue::Endpoint;
use super::open::Attempt;

/// Interval between two looks at the claims.
const LOOK: Duration = Duration::from_millis(200);

/// An attempt that holds a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HeldSlot {
    pub(super) attempt: Attempt,
    pub(super) endpoint: Endpoint,
    /// The node that makes the call.
    pub(super) node: u64,
}

/// The calls whose claims are looked at.
pub(super) struct Inherited {
    held: Vec<HeldSlot>,
    next_look: Instant,
}

impl Inherited {
    /// Reads all claims. None of them is of the current leadership, which has claimed nothing yet.
    pub(super) fn read(state: &impl Kv) -> Result<Self, Fatal> {
        let mut held = Vec::new();
        for (_, team, number) in delivery::claims(state)? {
            // Its outcome may be recorded between the two reads.
            let Some(delivery) = delivery::by_number(state, team, number)? else {
                continue;
            };
            held.push(HeldSlot {
                attempt: Attempt::newest(team, &delivery),
                endpoint: (team, delivery.generation),
                node: delivery.claim.unwrap_or_default().node,
            });
        }
        Ok(Inherited {
            held,
            next_look: Instant::now() + LOOK,
        })
    }

    /// The calls.
    pub(super) fn held(&self) -> &[HeldSlot] {
        &self.held
    }

    /// Adds calls whose node was lost.
    pub(super) fn add(&mut self, lost: Vec<HeldSlot>) {
        self.held.extend(lost);
    }

    /// The time of the next look; `None` if no claim is left.
    pub(super) fn next_look(&self) -> Option<Instant> {
        (!self.held.is_empty()).then_some(self.next_look)
    }

    /// Looks at the claims if it is time, and returns the calls whose claim is gone.
    pub(super) fn closed(&mut self, state: &impl Kv) -> Result<Vec<HeldSlot>, Fatal> {
        let now = Instant::now();
        if now < self.next_look {
            return Ok(Vec::new());
        }
        self.next_look = now + LOOK;
        let mut open = Vec::with_capacity(self.held.len());
        for HeldSlot { attempt, .. } in &self.held {
            open.push(delivery::is_claimed(
                state,
                attempt.team,
                attempt.number,
                attempt.attempt_no,
            )?);
        }
        let mut open = open.into_iter();
        Ok(self.held.extract_if(.., |_| open.next() == Some(false)).collect())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use agentpost_proto::id::TeamId;
    use agentpost_proto::record::{ClaimSlot, ClaimTable, Claimed, Delivery};
    use agentpost_raft_store::core::keys;
    use agentpost_raft_store::core::kv::Memory;
    use bytes::Bytes;
    use prost::Message as _;

    use super::*;

    const TEAM: TeamId = TeamId([1; 16]);

    /// Writes the table of claims, as (attempt number, number of the delivery), and these claims into the deliveries 1
    /// to 3. Node `10 + number` makes the call.
    fn write(memory: &mut Memory, claims: &[(u32, u64)]) {
        let mut put = |key, value: Vec<u8>| memory.write(vec![(key, Some(Bytes::from(value)))]);
        for number in 1..=3 {
            let claim = claims.iter().find(|(_, of)| *of == number);
            let delivery = Delivery {
                number,
                generation: 7 + number % 2,
                attempt_no: claim.map_or(4, |(no, _)| *no),
                claim: claim.map(|_| Claimed {
                    epoch: 9,
                    node: 10 + number,
                    ..Claimed::default()
                }),
                ..Delivery::default()
            };
            put(keys::delivery(TEAM, number), delivery.encode_to_vec());
        }
        let count = claims.len() as u64;
        let table = ClaimTable {
            slots: count,
            open: count,
            first_free: 0,
        };
        put(keys::claim_table(), table.encode_to_vec());
        for (slot, (_, number)) in (1..).zip(claims) {
            let held = ClaimSlot {
                epoch: 9,
                team_id: TEAM.to_bytes(),
                number: *number,
                next_free: 0,
            };
            put(keys::claim_slot(slot), held.encode_to_vec());
        }
    }

    fn held(attempt_no: u32, number: u64) -> HeldSlot {
        HeldSlot {
            attempt: Attempt {
                team: TEAM,
                number,
                attempt_no,
            },
            endpoint: (TEAM, 7 + number % 2),
            node: 10 + number,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_nobody_reports_counts_until_its_claim_is_closed() {
        let mut memory = Memory::default();
        // The last one has no delivery.
        write(&mut memory, &[(4, 1), (5, 2), (4, 4)]);
        let mut inherited = Inherited::read(&memory).unwrap();
        assert_eq!(inherited.held(), [held(4, 1), held(5, 2)]);
        inherited.add(vec![held(4, 3)]);

        // The second delivery is claimed again.
        write(&mut memory, &[(4, 1), (6, 2), (4, 3)]);
        assert_eq!(inherited.closed(&memory).unwrap(), [], "not yet time");
        tokio::time::advance(LOOK).await;
        assert_eq!(inherited.closed(&memory).unwrap(), [held(5, 2)]);
        write(&mut memory, &[(6, 2)]);
        tokio::time::advance(LOOK).await;
        assert_eq!(inherited.closed(&memory).unwrap(), [held(4, 1), held(4, 3)]);
        assert_eq!(inherited.next_look(), None);
    }
}
