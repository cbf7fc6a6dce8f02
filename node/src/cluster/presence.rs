//! Presence: how many open WebSocket sessions of this node listen to each agent.
//!
//! A node knows only its own sockets; the others ask it when a client wants to know
//! ([`ClusterHandle::sessions`](crate::cluster::status::ClusterHandle::sessions)). Nothing is replicated or cached. A
//! count lacks the sessions of a node that does not answer, and names that node; but a node that died or was cut off
//! leaves no stale listeners behind.

use std::collections::HashMap;
use std::sync::Arc;

use agentpost_proto::id::{AgentId, TeamId};
use parking_lot::{Mutex, MutexGuard};

/// The listeners of one node. Clones are cheap and share them.
#[derive(Clone, Default)]
pub struct Presence {
    teams: Arc<Mutex<Teams>>,
}

/// The number of sessions of each agent that has any.
type Teams = HashMap<TeamId, HashMap<String, u32>>;

/// One session. It is counted until this is dropped.
pub struct Listening {
    presence: Presence,
    team: TeamId,
    agents: Vec<AgentId>,
}

impl Presence {
    /// Counts a session that listens to these agents. Each agent must be named once.
    pub fn listen(&self, team: TeamId, agents: Vec<AgentId>) -> Listening {
        let mut teams = self.lock();
        for agent in &agents {
            let of_team = teams.entry(team).or_default();
            *of_team.entry(agent.as_str().to_owned()).or_default() += 1;
        }
        drop(teams);
        Listening {
            presence: self.clone(),
            team,
            agents,
        }
    }

    /// The number of sessions that listen to each of these agents, in their order.
    pub fn sessions(&self, team: TeamId, agents: &[String]) -> Vec<u32> {
        let teams = self.lock();
        let of_team = teams.get(&team);
        let sessions = |agent: &String| of_team.and_then(|agents| agents.get(agent)).copied().unwrap_or(0);
        agents.iter().map(sessions).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Teams> {
        self.teams.lock()
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let mut teams = self.presence.lock();
        let Some(of_team) = teams.get_mut(&self.team) else {
            return;
        };
        for agent in &self.agents {
            if let Some(sessions) = of_team.get_mut(agent.as_str()) {
                *sessions -= 1;
                if *sessions == 0 {
                    of_team.remove(agent.as_str());
                }
            }
        }
        if of_team.is_empty() {
            teams.remove(&self.team);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const ONE: TeamId = TeamId([1; 16]);
    const OTHER: TeamId = TeamId([2; 16]);

    fn agents(ids: &[&str]) -> Vec<AgentId> {
        ids.iter().map(|id| id.parse().unwrap()).collect()
    }

    fn counted(presence: &Presence, team: TeamId) -> Vec<u32> {
        presence.sessions(team, &["a".to_owned(), "b".to_owned(), "c".to_owned()])
    }

    #[test]
    fn sessions_count_for_each_agent_of_their_team_and_leave_nothing_behind() {
        let presence = Presence::default();
        let both = presence.listen(ONE, agents(&["a", "b"]));
        let one = presence.listen(ONE, agents(&["a"]));
        let other = presence.listen(OTHER, agents(&["a", "c"]));
        let nobody = presence.listen(OTHER, agents(&[]));
        assert_eq!(counted(&presence, ONE), [2, 1, 0]);
        assert_eq!(counted(&presence, OTHER), [1, 0, 1]);
        drop(both);
        assert_eq!(counted(&presence, ONE), [1, 0, 0]);
        drop((one, other));
        assert_eq!(counted(&presence, ONE), [0, 0, 0]);
        assert!(presence.lock().is_empty());
        drop(nobody);
    }
}
