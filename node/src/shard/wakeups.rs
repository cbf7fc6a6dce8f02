//! Effects in, coalesced hints out.

use agentpost_proto::id::TeamId;

/// Cheap to clone.
#[derive(Clone)]
pub struct Wakeups {}

/// One subscription; register it before reading.
pub struct Listener {}

impl Wakeups {
    /// Wakes when this inbox grew.
    pub fn inbox(&self, team: TeamId, agent: &str) -> Listener {
        unimplemented!("{team} {agent}")
    }

    /// Wakes when any inbox of the team grew.
    pub fn team(&self, team: TeamId) -> Listener {
        unimplemented!("{team}")
    }

    /// Wakes when some key was revoked.
    pub fn keys(&self) -> Listener {
        unimplemented!()
    }
}

impl Listener {
    /// Returns at the first hint since the last call; immediately if one is waiting.
    pub async fn woken(&mut self) {
        unimplemented!()
    }
}
