//! Opaque cursors of lists: `version | order | seq | MAC`, base64url without padding. The MAC covers the team and the
//! list (an inbox, or a reserved name for another list), so a cursor is valid only for the list it was issued for and
//! cannot be forged.

use agentpost_proto::id::TeamId;
use agentpost_raft_store::core::kv::Order;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

const VERSION: u8 = 1;
const MAC_BYTES: usize = 16;
const BYTES: usize = 1 + 1 + 8 + MAC_BYTES;

/// Creates and checks cursors. Clones are cheap.
#[derive(Clone)]
pub struct Cursors {
    keyed: Hmac<Sha256>,
}

/// The cursor is altered, belongs to another list or order, or is no cursor.
#[derive(Debug, PartialEq, Eq)]
pub struct Invalid;

impl Cursors {
    /// Uses the cluster's cursor key.
    pub fn new(key: &[u8; 32]) -> Self {
        // HMAC accepts keys of any length.
        #[allow(clippy::expect_used)]
        Self {
            keyed: Hmac::new_from_slice(key).expect("a key of 32 bytes"),
        }
    }

    /// The cursor after the entry `seq`.
    pub fn encode(&self, team: TeamId, agent: &str, order: Order, seq: u64) -> String {
        let mut bytes = [0; BYTES];
        bytes[0] = VERSION;
        bytes[1] = order_byte(order);
        bytes[2..10].copy_from_slice(&seq.to_be_bytes());
        let mac = self.mac(team, agent, &bytes[..10]).finalize().into_bytes();
        bytes[10..].copy_from_slice(&mac[..MAC_BYTES]);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The `seq` in the cursor `text`, if it was issued for this team, list and order.
    pub fn decode(&self, team: TeamId, agent: &str, order: Order, text: &str) -> Result<u64, Invalid> {
        if text.len() != BYTES.div_ceil(3) * 4 - 1 {
            return Err(Invalid);
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| Invalid)?;
        let (head, mac) = bytes.split_at_checked(10).ok_or(Invalid)?;
        self.mac(team, agent, head)
            .verify_truncated_left(mac)
            .map_err(|_| Invalid)?;
        if head[0] != VERSION || head[1] != order_byte(order) || mac.len() != MAC_BYTES {
            return Err(Invalid);
        }
        let seq: [u8; 8] = head[2..].try_into().map_err(|_| Invalid)?;
        Ok(u64::from_be_bytes(seq))
    }

    fn mac(&self, team: TeamId, agent: &str, head: &[u8]) -> Hmac<Sha256> {
        self.keyed
            .clone()
            .chain_update(head)
            .chain_update(team.0)
            .chain_update(agent)
    }
}

fn order_byte(order: Order) -> u8 {
    match order {
        Order::Ascending => b'a',
        Order::Descending => b'd',
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    const TEAM: TeamId = TeamId([7; 16]);

    #[test]
    fn cursors_are_bound_to_team_inbox_order_and_key() {
        let cursors = Cursors::new(&[1; 32]);
        let text = cursors.encode(TEAM, "alpha", Order::Ascending, 42);
        assert!(
            text.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        );
        assert_eq!(cursors.decode(TEAM, "alpha", Order::Ascending, &text), Ok(42));
        assert_eq!(
            cursors.decode(TeamId([8; 16]), "alpha", Order::Ascending, &text),
            Err(Invalid)
        );
        assert_eq!(cursors.decode(TEAM, "beta", Order::Ascending, &text), Err(Invalid));
        assert_eq!(cursors.decode(TEAM, "alpha", Order::Descending, &text), Err(Invalid));
        assert_eq!(
            Cursors::new(&[2; 32]).decode(TEAM, "alpha", Order::Ascending, &text),
            Err(Invalid)
        );
    }

    proptest! {
        #[test]
        fn round_trip(seq: u64, key: [u8; 32], agent in "[a-z]{1,9}") {
            let cursors = Cursors::new(&key);
            let text = cursors.encode(TEAM, &agent, Order::Descending, seq);
            prop_assert_eq!(cursors.decode(TEAM, &agent, Order::Descending, &text), Ok(seq));
        }

        #[test]
        fn one_changed_character_is_noticed(seq: u64, at in 0usize..35, by in 1u8..64) {
            const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
            let cursors = Cursors::new(&[1; 32]);
            let mut text = cursors.encode(TEAM, "alpha", Order::Ascending, seq).into_bytes();
            let old = ALPHABET.iter().position(|b| *b == text[at]).unwrap();
            text[at] = ALPHABET[(old + usize::from(by)) % 64];
            let text = String::from_utf8(text).unwrap();
            prop_assert_eq!(cursors.decode(TEAM, "alpha", Order::Ascending, &text), Err(Invalid));
        }

        #[test]
        fn anything_else_is_not_a_cursor(text in ".{0,64}") {
            prop_assert_eq!(Cursors::new(&[1; 32]).decode(TEAM, "alpha", Order::Ascending, &text), Err(Invalid));
        }
    }
}
