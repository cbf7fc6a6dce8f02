//! The rules of the dispatcher, over what can be seen from outside: what the receiver was sent, and what the cluster
//! says became of it.
//!
//! | rule | checked here | what cannot be seen, and where it is checked |
//! |---|---|---|
//! | D1 | an attempt arrives at most once | |
//! | D2 | a call belongs to an attempt that was granted and was not recorded as unsent | that its claim was committed first: the model |
//! | D3 | every granted attempt is accounted for | counters beyond the history that is kept: core properties |
//! | D4 | an attempt is recorded once | |
//! | D5 | a step fails once, steps rise by one | |
//! | D6, G4 | calls ≤ 4 + unknown; a delivery has at most one unknown attempt for each lost leader | |
//! | D7 | dead ⇔ one dead letter ⇔ one notice, never also delivered | |
//! | D8 | no call before its time; lateness is measured | |
//! | D9 | epochs of calls never go back | claims that led to no call: the model |
//! | D10 | nothing is left open; equal state hashes are asked of the cluster | empty indexes: core properties |
//! | D11 | no call to a deleted URL after 30 s | |
//! | D12 | without an unclean change nothing is unknown and nothing arrives twice | |

mod attempts;
mod calls;
mod ends;
#[cfg(test)]
mod made_up;
mod times;

pub use self::times::lateness_ms;
use crate::deliveries::Evidence;

/// Every violation of D1 to D12.
pub fn check(evidence: &Evidence) -> Vec<String> {
    [
        calls::check(evidence),
        attempts::check(evidence),
        ends::check(evidence),
        times::check(evidence),
    ]
    .concat()
}
