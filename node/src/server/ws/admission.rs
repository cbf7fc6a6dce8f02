//! The limits on open sessions: per node and per inbox.
//!
//! A client that lost its network leaves behind a socket that looks alive for minutes. So when an inbox is full, the
//! session that has been silent longest is closed if it missed a ping; otherwise the new session is refused for now.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use agentpost_proto::id::{AgentId, TeamId};
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::base::metrics::Metrics;
use crate::cluster::presence::{Listening, Presence};

/// Upper bound on the WebSockets of a node, each of which costs some 50 KiB when idle. Further ones are answered with
/// 503 before the upgrade.
const SESSIONS_MAX: usize = 10_000;
/// Upper bound on the sessions of one inbox on a node: enough for every process of an agent, too few to exhaust the
/// node.
pub const SESSIONS_PER_AGENT_MAX: usize = 16;

/// The sessions of one node. Cheap to clone.
#[derive(Clone)]
pub struct Admission {
    shared: Arc<Shared>,
}

struct Shared {
    started: Instant,
    metrics: Metrics,
    presence: Presence,
    sessions: AtomicUsize,
    inboxes: Mutex<HashMap<Inbox, Vec<Arc<Occupant>>>>,
}

type Inbox = (TeamId, String);

/// The part of a session that other sessions see.
#[derive(Debug, Default)]
struct Occupant {
    /// When the client last sent something, in milliseconds since the start of the node.
    heard_ms: AtomicU64,
    leave: CancellationToken,
}

/// The permit for one session; dropping it releases the place.
pub struct SessionPermit {
    shared: Arc<Shared>,
    occupant: Arc<Occupant>,
    inbox: Option<Inbox>,
    listening: Option<Listening>,
}

impl Admission {
    /// Creates the limits with no session open; `presence` counts the agents that listen.
    pub fn new(metrics: Metrics, presence: Presence) -> Self {
        let shared = Shared {
            started: Instant::now(),
            metrics,
            presence,
            sessions: AtomicUsize::new(0),
            inboxes: Mutex::default(),
        };
        Admission {
            shared: Arc::new(shared),
        }
    }

    /// Whether no session is open.
    pub fn is_empty(&self) -> bool {
        self.shared.sessions.load(Ordering::Relaxed) == 0
    }

    /// Takes a permit; `None` if the node is full.
    pub fn enter(&self) -> Option<SessionPermit> {
        let below = |count: usize| (count < SESSIONS_MAX).then_some(count + 1);
        self.shared
            .sessions
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, below)
            .ok()?;
        self.shared.metrics.ws.sessions.inc();
        let permit = SessionPermit {
            shared: Arc::clone(&self.shared),
            occupant: Arc::default(),
            inbox: None,
            listening: None,
        };
        permit.heard(Instant::now());
        Some(permit)
    }
}

impl SessionPermit {
    /// Takes a place at an inbox. Returns false if all places belong to sessions whose clients sent something within
    /// `silent`.
    pub fn listen(&mut self, team: TeamId, agent: &str, silent: Duration) -> bool {
        let inbox = (team, agent.to_owned());
        let mut inboxes = self.shared.inboxes.lock();
        let present = inboxes.entry(inbox.clone()).or_default();
        if present.len() >= SESSIONS_PER_AGENT_MAX && !self.make_room(present, silent) {
            return false;
        }
        present.push(Arc::clone(&self.occupant));
        self.inbox = Some(inbox);
        true
    }

    /// Counts the session as a listener of each of these agents until the permit is dropped. There is no limit per
    /// agent here, unlike for places at an inbox: a session may name several agents, and none of them may shut it out.
    pub fn show(&mut self, team: TeamId, agents: Vec<AgentId>) {
        self.listening = Some(self.shared.presence.listen(team, agents));
    }

    fn make_room(&self, present: &mut Vec<Arc<Occupant>>, silent: Duration) -> bool {
        let heard = |occupant: &Arc<Occupant>| Duration::from_millis(occupant.heard_ms.load(Ordering::Relaxed));
        let oldest = (0..present.len()).min_by_key(|at| heard(&present[*at]));
        match oldest {
            Some(at) if self.shared.started.elapsed().saturating_sub(heard(&present[at])) >= silent => {
                present.remove(at).leave.cancel();
                true
            }
            _ => false,
        }
    }

    /// The client sent something.
    pub fn heard(&self, now: Instant) {
        let since = now.saturating_duration_since(self.shared.started);
        self.occupant
            .heard_ms
            .store(since.as_millis() as u64, Ordering::Relaxed);
    }

    /// A token that is cancelled when this session must make room for another.
    pub fn leave(&self) -> CancellationToken {
        self.occupant.leave.clone()
    }
}

impl Drop for SessionPermit {
    fn drop(&mut self) {
        self.shared.sessions.fetch_sub(1, Ordering::Relaxed);
        self.shared.metrics.ws.sessions.dec();
        let Some(inbox) = self.inbox.take() else { return };
        let mut inboxes = self.shared.inboxes.lock();
        if let Some(present) = inboxes.get_mut(&inbox) {
            present.retain(|other| !Arc::ptr_eq(other, &self.occupant));
            if present.is_empty() {
                inboxes.remove(&inbox);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const SILENT: Duration = Duration::from_secs(60);
    const TEAM: TeamId = TeamId([1; 16]);

    fn full_inbox(admission: &Admission) -> Vec<SessionPermit> {
        let mut permits: Vec<SessionPermit> = (0..SESSIONS_PER_AGENT_MAX)
            .map(|_| admission.enter().unwrap())
            .collect();
        assert!(permits.iter_mut().all(|permit| permit.listen(TEAM, "a", SILENT)));
        permits
    }

    #[tokio::test(start_paused = true)]
    async fn places_at_an_inbox_are_bounded_and_released() {
        let admission = Admission::new(Metrics::new(), Presence::default());
        let permits = full_inbox(&admission);
        let mut late = admission.enter().unwrap();
        assert!(!late.listen(TEAM, "a", SILENT));
        assert!(admission.enter().unwrap().listen(TEAM, "b", SILENT));
        drop(permits);
        assert!(late.listen(TEAM, "a", SILENT));
        drop(late);
        assert!(admission.is_empty());
        assert!(admission.shared.inboxes.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_session_makes_room() {
        let admission = Admission::new(Metrics::new(), Presence::default());
        let permits = full_inbox(&admission);
        tokio::time::advance(SILENT).await;
        for permit in &permits[1..] {
            permit.heard(Instant::now());
        }
        assert!(admission.enter().unwrap().listen(TEAM, "a", SILENT));
        let gone: Vec<bool> = permits.iter().map(|permit| permit.leave().is_cancelled()).collect();
        assert_eq!(gone.iter().filter(|gone| **gone).count(), 1);
        assert!(gone[0]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_listener_counts_until_its_permit_is_dropped() {
        let presence = Presence::default();
        let admission = Admission::new(Metrics::new(), presence.clone());
        let seen = || presence.sessions(TEAM, &["a".to_owned(), "b".to_owned()]);
        let mut permits = full_inbox(&admission);
        for permit in &mut permits {
            permit.show(TEAM, vec!["a".parse().unwrap()]);
        }
        // The session listens to two agents, takes no place at either inbox, and a full inbox does not refuse it.
        let mut several = admission.enter().unwrap();
        several.show(TEAM, vec!["a".parse().unwrap(), "b".parse().unwrap()]);
        let full = SESSIONS_PER_AGENT_MAX as u32;
        assert_eq!(seen(), [full + 1, 1]);
        assert!(!admission.enter().unwrap().listen(TEAM, "a", SILENT));
        // A session that must make room counts until its socket is closed.
        tokio::time::advance(SILENT).await;
        assert!(admission.enter().unwrap().listen(TEAM, "a", SILENT));
        assert_eq!(seen(), [full + 1, 1]);
        drop((permits, several));
        assert_eq!(seen(), [0, 0]);
    }

    #[tokio::test]
    async fn sessions_of_a_node_are_bounded() {
        let admission = Admission::new(Metrics::new(), Presence::default());
        let permits: Vec<SessionPermit> = std::iter::from_fn(|| admission.enter()).collect();
        assert_eq!(permits.len(), SESSIONS_MAX);
        drop(permits);
        assert!(admission.enter().is_some());
    }
}
