//! Effects in, coalesced hints out.
//!
//! A hint says "look again", never what happened: however many effects arrive while a listener is busy, it
//! wakes once. A listener registers *before* it reads, so nothing falls between its read and its wait. When
//! nobody listens, an effect costs one atomic load; when others listen, a shared lock and two hash lookups.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Arc, PoisonError, RwLock};

use agentpost_proto::id::TeamId;
use agentpost_raft_store::effect::Effect;
use tokio::sync::watch;

/// The switchboard of one shard. Cheap to clone.
#[derive(Clone, Default)]
pub struct Wakeups {
    board: Arc<Board>,
}

#[derive(Default)]
struct Board {
    /// Listeners to teams and inboxes.
    listeners: AtomicUsize,
    teams: RwLock<HashMap<TeamId, Team>>,
    keys: watch::Sender<()>,
}

#[derive(Default)]
struct Team {
    any: watch::Sender<()>,
    inboxes: HashMap<String, watch::Sender<()>>,
}

enum Place {
    Inbox(TeamId, String),
    Team(TeamId),
    Keys,
}

/// One subscription; register it before reading.
pub struct Listener {
    hints: watch::Receiver<()>,
    place: Place,
    board: Arc<Board>,
}

impl Wakeups {
    /// Wakes when this inbox grew.
    pub fn inbox(&self, team: TeamId, agent: &str) -> Listener {
        self.board.listeners.fetch_add(1, Ordering::SeqCst);
        let mut teams = self.board.teams.write().unwrap_or_else(PoisonError::into_inner);
        let inboxes = &mut teams.entry(team).or_default().inboxes;
        let hints = inboxes.entry(agent.to_owned()).or_default().subscribe();
        self.listener(hints, Place::Inbox(team, agent.to_owned()))
    }

    /// Wakes when any inbox of the team grew.
    pub fn team(&self, team: TeamId) -> Listener {
        self.board.listeners.fetch_add(1, Ordering::SeqCst);
        let mut teams = self.board.teams.write().unwrap_or_else(PoisonError::into_inner);
        let hints = teams.entry(team).or_default().any.subscribe();
        self.listener(hints, Place::Team(team))
    }

    /// Wakes when some key was revoked.
    pub fn keys(&self) -> Listener {
        self.listener(self.board.keys.subscribe(), Place::Keys)
    }

    /// Passes on what a batch of applied entries made possible. Called after its writes are visible.
    pub fn publish(&self, effects: &[Effect]) {
        // Whoever registers after this fence reads a state that holds the batch already.
        fence(Ordering::SeqCst);
        let anyone = self.board.listeners.load(Ordering::SeqCst) > 0;
        let teams = anyone.then(|| self.board.teams.read().unwrap_or_else(PoisonError::into_inner));
        for effect in effects {
            match effect {
                Effect::InboxAppended { team, agent, .. } => {
                    let Some(team) = teams.as_ref().and_then(|teams| teams.get(team)) else {
                        continue;
                    };
                    team.any.send_replace(());
                    if let Some(inbox) = team.inboxes.get(agent) {
                        inbox.send_replace(());
                    }
                }
                Effect::KeyRevoked(_) => {
                    self.board.keys.send_replace(());
                }
                // Leadership listens to the state itself.
                Effect::EpochBegan { .. } => {}
                // For the dispatcher and those who wait for a publish; see the listeners above.
                Effect::Published { .. }
                | Effect::FanoutQueued { .. }
                | Effect::FanoutFinished { .. }
                | Effect::DeliveryDue { .. }
                | Effect::EndpointClosing { .. } => {}
            }
        }
    }

    /// Wakes everyone: after a snapshot was installed nobody knows what became possible.
    pub fn publish_all(&self) {
        self.board.keys.send_replace(());
        for team in self.board.teams.read().unwrap_or_else(PoisonError::into_inner).values() {
            team.any.send_replace(());
            team.inboxes.values().for_each(|inbox| {
                inbox.send_replace(());
            });
        }
    }

    fn listener(&self, hints: watch::Receiver<()>, place: Place) -> Listener {
        Listener {
            hints,
            place,
            board: Arc::clone(&self.board),
        }
    }
}

impl Listener {
    /// Returns at the first hint since the last call; immediately if one is waiting. Cancel-safe.
    pub async fn woken(&mut self) {
        // The board holds every sender that has a listener.
        if self.hints.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Listener {
    /// The last listener of an inbox takes its slot away.
    fn drop(&mut self) {
        let (team, agent) = match &self.place {
            Place::Inbox(team, agent) => (team, Some(agent)),
            Place::Team(team) => (team, None),
            Place::Keys => return,
        };
        let mut teams = self.board.teams.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = teams.get_mut(team) {
            // This one still counts as a receiver of its own slot.
            if let Some(agent) = agent
                && slot.inboxes.get(agent).is_some_and(|inbox| inbox.receiver_count() == 1)
            {
                slot.inboxes.remove(agent);
            }
            let others = slot.any.receiver_count() - usize::from(agent.is_none());
            if others == 0 && slot.inboxes.is_empty() {
                teams.remove(team);
            }
        }
        drop(teams);
        self.board.listeners.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    const TEAM: TeamId = TeamId([1; 16]);

    fn appended(agent: &str) -> Effect {
        Effect::InboxAppended {
            team: TEAM,
            agent: agent.to_owned(),
            seq: 1,
        }
    }

    #[tokio::test]
    async fn hints_coalesce_and_reach_only_their_listeners() {
        let wakeups = Wakeups::default();
        let (mut a, mut b, mut team) = (wakeups.inbox(TEAM, "a"), wakeups.inbox(TEAM, "b"), wakeups.team(TEAM));
        wakeups.publish(&[appended("a"), appended("a")]);
        a.woken().await;
        team.woken().await;
        assert!(a.woken().now_or_never().is_none());
        assert!(b.woken().now_or_never().is_none());
        assert!(team.woken().now_or_never().is_none());
    }

    #[tokio::test]
    async fn a_hint_before_the_wait_is_not_lost() {
        let wakeups = Wakeups::default();
        let mut keys = wakeups.keys();
        wakeups.publish(&[Effect::KeyRevoked(agentpost_proto::id::KeyId([0; 16]))]);
        assert!(keys.woken().now_or_never().is_some());
        wakeups.publish_all();
        assert!(keys.woken().now_or_never().is_some());
    }

    #[tokio::test]
    async fn the_last_listener_clears_its_place() {
        let wakeups = Wakeups::default();
        let (first, mut second, team) = (wakeups.inbox(TEAM, "a"), wakeups.inbox(TEAM, "a"), wakeups.team(TEAM));
        drop(first);
        wakeups.publish(&[appended("a")]);
        assert!(second.woken().now_or_never().is_some());
        drop(second);
        assert_eq!(
            wakeups.board.teams.read().unwrap_or_else(PoisonError::into_inner).len(),
            1
        );
        drop(team);
        assert!(
            wakeups
                .board
                .teams
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .is_empty()
        );
        assert_eq!(wakeups.board.listeners.load(Ordering::SeqCst), 0);
    }
}
