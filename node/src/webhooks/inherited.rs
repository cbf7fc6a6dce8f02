//! The calls of earlier leaderships that may still be running.
//!
//! A call outlives the leadership that claimed it, on this node or on another one, and its claim stays in the state
//! until its outcome is recorded or taken over. Such a call counts against the limits of the fair queue: otherwise a
//! URL would get its full number of calls again with every change of leader. The calls of a leader that crashed count as
//! well, until takeover closes their claims: nobody can tell a node that crashed from one that was cut off and still
//! calls. No event tells this node that a claim of another node is gone, so the claims are looked at again from time to
//! time.

use std::time::Duration;

use agentpost_proto::id::TeamId;
use agentpost_raft_store::core::kv::{Fatal, Kv};
use agentpost_raft_store::core::query::delivery;
use tokio::time::Instant;

use super::fair_queue::Endpoint;

/// Interval between two looks at the claims.
const LOOK: Duration = Duration::from_millis(200);

/// The claims of earlier leaderships.
pub(super) struct Inherited {
    claims: Vec<Claim>,
    next_look: Instant,
}

struct Claim {
    endpoint: Endpoint,
    epoch: u64,
    team: TeamId,
    number: u64,
}

impl Inherited {
    /// Reads all claims. None of them is of the current leadership, which has claimed nothing yet.
    pub(super) fn read(state: &impl Kv) -> Result<Self, Fatal> {
        let mut claims = Vec::new();
        for (epoch, team, number) in delivery::claims(state)? {
            // Its outcome may be recorded between the two reads.
            let Some(delivery) = delivery::by_number(state, team, number)? else {
                continue;
            };
            claims.push(Claim {
                endpoint: (team, delivery.generation),
                epoch,
                team,
                number,
            });
        }
        Ok(Inherited {
            claims,
            next_look: Instant::now() + LOOK,
        })
    }

    /// The endpoint of each claim.
    pub(super) fn endpoints(&self) -> impl Iterator<Item = Endpoint> {
        self.claims.iter().map(|claim| claim.endpoint)
    }

    /// The time of the next look; `None` if no claim is left.
    pub(super) fn next_look(&self) -> Option<Instant> {
        (!self.claims.is_empty()).then_some(self.next_look)
    }

    /// Looks at the claims if it is time, and returns the endpoint of each one that is gone.
    pub(super) fn closed(&mut self, state: &impl Kv) -> Result<Vec<Endpoint>, Fatal> {
        let now = Instant::now();
        if now < self.next_look {
            return Ok(Vec::new());
        }
        self.next_look = now + LOOK;
        let mut open = Vec::with_capacity(self.claims.len());
        for claim in &self.claims {
            open.push(delivery::is_claimed(state, claim.epoch, claim.team, claim.number)?);
        }
        let mut open = open.into_iter();
        let closed = self.claims.extract_if(.., |_| open.next() == Some(false));
        Ok(closed.map(|claim| claim.endpoint).collect())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use agentpost_proto::record::{ClaimSlot, ClaimTable, Claimed, Delivery};
    use agentpost_raft_store::core::keys;
    use agentpost_raft_store::core::kv::Memory;
    use bytes::Bytes;
    use prost::Message as _;

    use super::*;

    const TEAM: TeamId = TeamId([1; 16]);

    /// Writes the table of claims, as (epoch, number of the delivery), and these claims into the deliveries 1 to 3.
    fn write(memory: &mut Memory, claims: &[(u64, u64)]) {
        let mut put = |key, value: Vec<u8>| memory.write(vec![(key, Some(Bytes::from(value)))]);
        for number in 1..=3 {
            let claim = claims.iter().find(|(_, of)| *of == number);
            let delivery = Delivery {
                number,
                generation: 7 + number % 2,
                claim: claim.map(|(epoch, _)| Claimed {
                    epoch: *epoch,
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
        for (slot, (epoch, number)) in (1..).zip(claims) {
            let held = ClaimSlot {
                epoch: *epoch,
                team_id: TEAM.to_bytes(),
                number: *number,
                next_free: 0,
            };
            put(keys::claim_slot(slot), held.encode_to_vec());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_of_any_earlier_epoch_counts_until_its_claim_is_closed() {
        let mut memory = Memory::default();
        // The last one has no delivery.
        write(&mut memory, &[(4, 1), (5, 2), (5, 3), (5, 4)]);
        let mut inherited = Inherited::read(&memory).unwrap();
        let endpoints: Vec<_> = inherited.endpoints().collect();
        assert_eq!(endpoints, [(TEAM, 8), (TEAM, 7), (TEAM, 8)]);

        // The second delivery is claimed again by this leadership.
        write(&mut memory, &[(4, 1), (6, 2), (5, 3)]);
        assert_eq!(inherited.closed(&memory).unwrap(), [], "not yet time");
        tokio::time::advance(LOOK).await;
        assert_eq!(inherited.closed(&memory).unwrap(), [(TEAM, 7)]);
        write(&mut memory, &[(6, 2)]);
        tokio::time::advance(LOOK).await;
        assert_eq!(inherited.closed(&memory).unwrap(), [(TEAM, 8), (TEAM, 8)]);
        assert_eq!(inherited.next_look(), None);
    }
}
