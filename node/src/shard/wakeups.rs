//! Turns the effects of applied entries into hints for listeners.
//!
//! A hint says "read again", never what happened: however many effects arrive while a listener is busy, it wakes once.
//! A listener registers *before* it reads, so nothing is missed between its read and its wait. Without listeners, an
//! effect costs one atomic load; with listeners, a shared lock and two hash lookups. Hints for the leader's workers
//! also say where to look: [`work`].

pub mod work;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering, fence};

use parking_lot::RwLock;

use agentpost_proto::id::TeamId;
use agentpost_raft_store::core::effect::Effect;
use tokio::sync::watch;

use self::work::Work;

/// The hints of one shard. Clones are cheap and share the listeners.
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
    due: Arc<work::Board<(TeamId, u64)>>,
    closings: Arc<work::Board<(TeamId, u64)>>,
    fanouts: Arc<work::Board<(TeamId, String)>>,
}

#[derive(Default)]
struct Team {
    any: watch::Sender<()>,
    /// Listeners to finished publishes of a team.
    fanouts: watch::Sender<()>,
    inboxes: HashMap<String, watch::Sender<()>>,
}

enum Place {
    Inbox(TeamId, String),
    Team(TeamId),
    Fanouts(TeamId),
    Keys,
}

/// A listener. Register it before reading.
pub struct Listener {
    hints: watch::Receiver<()>,
    place: Place,
    board: Arc<Board>,
}

impl Wakeups {
    /// Wakes when this inbox has a new entry.
    pub fn inbox(&self, team: TeamId, agent: &str) -> Listener {
        self.board.listeners.fetch_add(1, Ordering::SeqCst);
        let mut teams = self.board.teams.write();
        let inboxes = &mut teams.entry(team).or_default().inboxes;
        let hints = inboxes.entry(agent.to_owned()).or_default().subscribe();
        self.listener(hints, Place::Inbox(team, agent.to_owned()))
    }

    /// Wakes when any inbox of the team has a new entry.
    pub fn team(&self, team: TeamId) -> Listener {
        self.board.listeners.fetch_add(1, Ordering::SeqCst);
        let mut teams = self.board.teams.write();
        let hints = teams.entry(team).or_default().any.subscribe();
        self.listener(hints, Place::Team(team))
    }

    /// Wakes when a publish of the team has reached all receivers.
    pub fn fanout(&self, team: TeamId) -> Listener {
        self.board.listeners.fetch_add(1, Ordering::SeqCst);
        let mut teams = self.board.teams.write();
        let hints = teams.entry(team).or_default().fanouts.subscribe();
        self.listener(hints, Place::Fanouts(team))
    }

    /// Endpoints whose earliest delivery has changed: team and generation.
    pub fn due(&self) -> Work<(TeamId, u64)> {
        self.board.due.listen()
    }

    /// Endpoints whose open deliveries must be closed: team and generation.
    pub fn closings(&self) -> Work<(TeamId, u64)> {
        self.board.closings.listen()
    }

    /// Topics with a publish that is delivered in chunks.
    pub fn fanouts(&self) -> Work<(TeamId, String)> {
        self.board.fanouts.listen()
    }

    /// Wakes when a key was revoked.
    pub fn keys(&self) -> Listener {
        self.listener(self.board.keys.subscribe(), Place::Keys)
    }

    /// Sends the hints of a batch of applied entries. It must be called after the batch's writes are visible.
    pub fn publish(&self, effects: &[Effect]) {
        // A listener that registers after this fence reads a state that contains the batch.
        fence(Ordering::SeqCst);
        let anyone = self.board.listeners.load(Ordering::SeqCst) > 0;
        let teams = anyone.then(|| self.board.teams.read());
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
                // `leadership` reads this from the state itself.
                Effect::EpochBegan { .. } => {}
                Effect::Published { team, .. } => {
                    if let Some(team) = teams.as_ref().and_then(|teams| teams.get(team)) {
                        team.any.send_replace(());
                    }
                }
                Effect::FanoutFinished { team, .. } => {
                    if let Some(team) = teams.as_ref().and_then(|teams| teams.get(team)) {
                        team.any.send_replace(());
                        team.fanouts.send_replace(());
                    }
                }
                Effect::FanoutQueued { team, topic } => self.board.fanouts.hint(|| (*team, topic.clone())),
                Effect::DeliveryDue { team, generation } => self.board.due.hint(|| (*team, *generation)),
                Effect::EndpointClosing { team, generation } => self.board.closings.hint(|| (*team, *generation)),
            }
        }
    }

    /// Wakes all listeners. After a snapshot was installed, anything may have changed.
    pub fn publish_all(&self) {
        self.board.keys.send_replace(());
        self.board.due.everywhere();
        self.board.closings.everywhere();
        self.board.fanouts.everywhere();
        for team in self.board.teams.read().values() {
            team.any.send_replace(());
            team.fanouts.send_replace(());
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
    /// Waits for a hint; returns at once if one arrived since the last call. Cancel-safe.
    pub async fn woken(&mut self) {
        // Cannot fail: `Wakeups` keeps every sender that has a listener.
        if self.hints.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Listener {
    /// Removes the slot of an inbox with its last listener.
    fn drop(&mut self) {
        let (team, agent) = match &self.place {
            Place::Inbox(team, agent) => (team, Some(agent)),
            Place::Team(team) | Place::Fanouts(team) => (team, None),
            Place::Keys => return,
        };
        let mut teams = self.board.teams.write();
        if let Some(slot) = teams.get_mut(team) {
            // This listener is still counted as a receiver of its own slot.
            if let Some(agent) = agent
                && slot.inboxes.get(agent).is_some_and(|inbox| inbox.receiver_count() == 1)
            {
                slot.inboxes.remove(agent);
            }
            let listeners = slot.any.receiver_count() + slot.fanouts.receiver_count();
            let others = listeners - usize::from(agent.is_none());
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

    use super::work::Places;
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
    async fn the_end_of_a_fan_out_wakes_its_publisher_and_readers_of_the_team() {
        let wakeups = Wakeups::default();
        let (mut fanout, mut team) = (wakeups.fanout(TEAM), wakeups.team(TEAM));
        wakeups.publish(&[appended("a"), Effect::Published { team: TEAM, seq: 1 }]);
        team.woken().await;
        assert!(fanout.woken().now_or_never().is_none());
        wakeups.publish(&[Effect::FanoutFinished { team: TEAM, seq: 1 }]);
        fanout.woken().await;
        team.woken().await;
        drop((fanout, team));
        assert!(wakeups.board.teams.read().is_empty());
    }

    #[tokio::test]
    async fn workers_are_told_where_to_look() {
        let wakeups = Wakeups::default();
        let mut due = wakeups.due();
        assert_eq!(due.next().await, Places::Everywhere);
        let generation = 4;
        wakeups.publish(&[
            Effect::DeliveryDue { team: TEAM, generation },
            Effect::EndpointClosing { team: TEAM, generation },
        ]);
        assert_eq!(due.next().await, Places::These(vec![(TEAM, 4)]));
        wakeups.publish_all();
        assert_eq!(due.next().await, Places::Everywhere);
    }

    #[tokio::test]
    async fn the_last_listener_clears_its_place() {
        let wakeups = Wakeups::default();
        let (first, mut second, team) = (wakeups.inbox(TEAM, "a"), wakeups.inbox(TEAM, "a"), wakeups.team(TEAM));
        drop(first);
        wakeups.publish(&[appended("a")]);
        assert!(second.woken().now_or_never().is_some());
        drop(second);
        assert_eq!(wakeups.board.teams.read().len(), 1);
        drop(team);
        assert!(wakeups.board.teams.read().is_empty());
        assert_eq!(wakeups.board.listeners.load(Ordering::SeqCst), 0);
    }
}
