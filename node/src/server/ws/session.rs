//! The life of a WebSocket session.
//!
//! **The problem.** A message must reach a listening agent within a millisecond. It must still reach the agent when the
//! socket breaks, when the node dies, and when the agent reads slowly or not at all. Ten thousand idle listeners must
//! cost a node very little.
//!
//! **The idea.** A session is a reader with a position, not a queue that others fill. The position is one number, the
//! seq up to which the session has read, and the state of every node contains the mail. So a session cannot lose a
//! message, needs no buffer for a slow client, and can be resumed on any node:
//!
//! ```text
//!             hint (Wakeups)                                acks
//!   apply ───────────────────►┐                      ┌──────────────► Acks ──► one operation per 50 ms
//!                             ▼                      │                         moves the cursors
//!   state ───── Feed ────► session ───── Link ─────► client
//!         batches after    ▲   position: after_seq      │
//!                          └─────── Requests ◄──────────┘
//! ```
//!
//! **The rules.**
//! - A session registers for hints, then reads, then sleeps. A lost hint delays a message until the next periodic read
//!   (a few seconds, with jitter so that sessions do not read in step); it never loses one.
//! - The handshake is linearizable: it sees every send, ack and revocation that was acknowledged before it. Afterwards
//!   the session reads the state of its own node, which only moves forward.
//! - The key is looked up again in the state that each batch is read from; a revoked or expired key ends the session with
//!   4001. Revocations wake sleeping sessions. A node without a leader would not learn of revocations, so after three seconds it sends its
//!   clients to another node.
//! - Acks are cumulative, clamped to what this socket was sent, never move back and are never answered with an error. A
//!   session without a cursor ignores them. [`super::progress`] has these rules; [`super::liveness`] describes what
//!   replaces the acks of clients that never send any.
//! - If events were removed before the session read them, the client gets `cursor_expired` before the events that
//!   follow; see [`super::feed`].
//! - While a batch waits for a place on the pool of reads, the session does all its other work. While a write waits for
//!   the client, it still handles the client's frames and watches the key. A write that waits too long ends the session with 4004; the client reconnects and resumes after its last ack.
//! - Requests ([`super::rpc`]) are executed concurrently with all that, one at a time. They read the state separately:
//!   the events that they return neither move the position nor count as delivered.
//! - When a team becomes blocked ([`super::quota`]), its open sessions end once, so that the clients learn of it.
//! - An `error` frame is sent only when the session is about to end.
//!
//! **Endings.** The error frame and the close frame have the same code (4001, 4002, 4004, 4005). The exception is 4003
//! with close code 1013, which means "not now" (no quorum or no free place). A node that stops, or has lost the
//! cluster, answers each waiting request and closes with 1012. Only 4001 is final for the vendor's clients; after any
//! other end they reconnect.
//!
//! **Left out.** Sessions do not share encoded events; each encodes its own, because agents mostly have separate
//! inboxes.

use std::pin::Pin;
use std::time::Duration;

use agentpost_proto::frame::{ClientFrame, ServerFrame};
use agentpost_proto::id::TeamId;
use agentpost_raft_store::core::kv::Fatal;
use axum::extract::ws::{Message, WebSocket};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::ack::Acks;
use super::admission::SessionPermit;
use super::feed::{Batch, Feed};
use super::handshake::{self, Opened};
use super::link::{End, GOODBYE, Inbound, Link, Received};
use super::progress::Progress;
use super::rpc::Requests;
use super::ws_state::{SessionOptions, WsState};
use super::{frame, quota};
use crate::base::metrics::Metrics;
use crate::server::auth::{self, Finding};
use crate::server::services::Services;
use crate::shard::read_pool::{ReadRefused, Share};
use crate::shard::wakeups::Listener;

/// How long a session may continue to write after its key was revoked.
const REVOKED_MAX: Duration = Duration::from_millis(500);
/// The longest pause before a refused read is tried again, in milliseconds. The shortest is half of it.
const REFUSED_PAUSE_MS: u64 = 200;

/// Runs one socket from the upgrade to its end.
pub async fn run(ws: WsState, socket: WebSocket, mut permit: SessionPermit) {
    let mut link = Link::new(socket, ws.options.stalled_max);
    let leave = permit.leave();
    let mut client = None;
    let (admitted, key) = oneshot::channel();
    // Rare futures are boxed, because every open session carries the size of the others.
    let revoked = Box::pin(revoked(&ws, key));
    let end = tokio::select! {
        biased;
        end = converse(&ws, &mut link, &mut permit, &mut client, admitted) => end,
        end = revoked => end,
        () = ws.lifetime.shutdown.cancelled() => End::Elsewhere("service restart"),
        () = leave.cancelled() => End::slow("a newer session took the place of this silent one"),
        () = cut_off(ws.isolated.clone()) => End::Elsewhere("this node has lost the cluster"),
    };
    tracing::debug!(?end, "WebSocket session ended");
    let stopping = async {
        ws.lifetime.shutdown.cancelled().await;
        sleep(GOODBYE).await;
    };
    let goodbye = Box::pin(async {
        if let Some(client) = &mut client {
            // A client that no longer reads gets only the close frame.
            let _ = timeout(GOODBYE, give_up(&mut link, client, &end)).await;
        }
        link.close(end, client.as_mut()).await;
    });
    // The permit is dropped only after this: a socket counts until it is closed.
    tokio::select! {
        () = goodbye => {}
        () = stopping => {}
    }
}

/// Drops the requests that can no longer be executed. A client that is sent to another node gets an answer to each.
async fn give_up(link: &mut Link, client: &mut Client<'_>, end: &End) -> Result<(), End> {
    let (why, told) = match end {
        End::Elsewhere(why) => (*why, true),
        End::Gone | End::Refused { .. } => ("the session has ended", false),
    };
    let answers = client.requests.give_up(why);
    for answer in answers.into_iter().filter(|_| told) {
        link.feed(Message::Text(answer), client).await?;
    }
    link.flush(client).await
}

/// Returns when the node has been without a leader for too long.
async fn cut_off(mut isolated: watch::Receiver<bool>) {
    if isolated.wait_for(|isolated| *isolated).await.is_err() {
        std::future::pending::<()>().await; // the watcher ends only with the node, and `shutdown` covers that
    }
}

/// Returns when the key was revoked and the session has not ended by itself, because it waits for a reader that has
/// stalled.
async fn revoked(ws: &WsState, admitted: oneshot::Receiver<[u8; 32]>) -> End {
    let Ok(key_hash) = admitted.await else {
        return std::future::pending().await; // the handshake failed
    };
    let mut keys = ws.services.replica.wakeups.keys();
    loop {
        let (state, wall_ms) = (ws.services.replica.reader.local(), ws.services.wall_time.now_ms());
        let refused = handshake::authenticate(&state, &key_hash, wall_ms).err();
        drop(state);
        if let Some(end) = refused {
            sleep(REVOKED_MAX).await;
            return end;
        }
        keys.woken().await;
    }
}

async fn converse<'a>(
    ws: &'a WsState,
    link: &mut Link,
    permit: &'a mut SessionPermit,
    client: &mut Option<Client<'a>>,
    admitted: oneshot::Sender<[u8; 32]>,
) -> End {
    // The handshake is a large and rare future, so it is boxed.
    let opened = match Box::pin(handshake::open(ws, link, permit)).await {
        Ok(opened) => opened,
        Err(end) => return end,
    };
    let _ = admitted.send(opened.key_hash);
    let client = client.insert(Client::new(ws, permit, &opened));
    match Session::new(ws, link, client, opened).run().await {
        Ok(never) => match never {},
        Err(end) => end,
    }
}

/// A read of the next batch. Its result is the batch and the events after it, or `None` if the key is not valid any more.
type Reading<'a> = Pin<Box<dyn Future<Output = Result<Option<(Feed, Batch)>, End>> + Send + 'a>>;

/// A session after its handshake.
struct Session<'a, 'c> {
    ws: &'a WsState,
    link: &'a mut Link,
    client: &'a mut Client<'c>,
    feed: Feed,
    mail: Listener,
    keys: Listener,
    team: TeamId,
    key_hash: [u8; 32],
    greeting: Vec<ServerFrame>,
    /// Whether the team was blocked when the session began, and still is.
    blocked: bool,
    /// Why the team became blocked, if it did. The session ends when nothing is left to send.
    ending: Option<String>,
    /// Whether there may be events after the position.
    behind: bool,
    /// The read of the next batch, while it waits or runs.
    reading: Option<Reading<'a>>,
    ping_at: Instant,
    look_at: Instant,
}

impl<'a, 'c> Session<'a, 'c> {
    fn new(ws: &'a WsState, link: &'a mut Link, client: &'a mut Client<'c>, opened: Opened) -> Self {
        let now = Instant::now();
        Session {
            ws,
            link,
            client,
            feed: opened.feed,
            mail: opened.mail,
            keys: opened.keys,
            team: opened.team,
            key_hash: opened.key_hash,
            blocked: opened.greeting.iter().any(is_block),
            ending: None,
            greeting: opened.greeting,
            behind: true,
            reading: None,
            ping_at: now + ws.options.ping_every,
            look_at: now + ws.options.look_every,
        }
    }

    /// Runs the session until it ends.
    async fn run(mut self) -> Result<std::convert::Infallible, End> {
        for greeting in std::mem::take(&mut self.greeting) {
            self.link
                .feed(Message::Text(frame::text(&greeting)), self.client)
                .await?;
        }
        self.link.flush(self.client).await?;
        loop {
            self.client.requests.begin(&self.feed);
            if let Some(answer) = self.client.requests.answer() {
                self.link.send(Message::Text(answer), self.client).await?;
                continue;
            }
            if !self.behind
                && self.client.requests.is_idle()
                && let Some(why) = self.ending.take()
            {
                return Err(End::quota(why));
            }
            if self.behind && self.reading.is_none() {
                let read = read_batch(&self.ws.services, self.team, self.key_hash, self.feed.clone());
                self.reading = Some(Box::pin(read));
            }
            let due = self.ping_at.min(self.look_at);
            tokio::select! {
                biased;
                received = self.link.receive(), if self.client.has_room() => self.client.take(received)?,
                () = self.mail.woken(), if !self.behind => self.behind = true,
                () = self.keys.woken() => self.authorize().await?,
                () = sleep_until(due) => self.on_time().await?,
                () = self.client.work() => {}
                read = ended(&mut self.reading) => self.deliver(read?).await?,
            }
        }
    }

    /// Looks the key up again: it may have been revoked or have expired.
    async fn authorize(&mut self) -> Result<(), End> {
        let refused = {
            let services = &self.ws.services;
            handshake::authenticate(
                &services.replica.reader.local(),
                &self.key_hash,
                services.wall_time.now_ms(),
            )
            .err()
        };
        match refused {
            None => Ok(()),
            Some(end) => Err(Box::pin(self.dismiss(end)).await),
        }
    }

    /// Ends a session whose key is not valid any more. If its own request revoked the key, the answer is sent first.
    async fn dismiss(&mut self, end: End) -> End {
        if self.client.requests.revokes_own_key() {
            self.client.work().await;
        }
        if let Some(answer) = self.client.requests.answer()
            && let Err(gone) = self.link.send(Message::Text(answer), self.client).await
        {
            return gone;
        }
        end
    }

    /// Sends one batch.
    async fn deliver(&mut self, read: Option<(Feed, Batch)>) -> Result<(), End> {
        let Some((feed, batch)) = read else {
            return Err(Box::pin(self.dismiss(handshake::refused())).await);
        };
        self.feed = feed;
        self.behind = batch.more;
        if batch.events.is_empty() {
            return Ok(());
        }
        self.ws.services.metrics.ws.events.inc_by(batch.events.len() as u64);
        for (seq, event) in batch.events {
            self.link.feed(Message::Text(event), self.client).await?;
            self.client.sent(seq);
        }
        self.link.flush(self.client).await
    }

    /// Checks whether the team became blocked. Events that exist by now are sent before the session ends.
    fn look_at_quota(&mut self) -> Result<(), End> {
        let services = &self.ws.services;
        let why = quota::why_blocked(&services.replica.reader.local(), self.team, services.wall_time.now_ms())
            .map_err(handshake::unreadable)?;
        self.blocked &= why.is_some();
        self.ending = why.filter(|_| !self.blocked);
        Ok(())
    }

    async fn on_time(&mut self) -> Result<(), End> {
        let now = Instant::now();
        let options = &self.ws.options;
        if now >= self.look_at {
            self.behind = true;
            self.client.tell_cursor(now, options);
            self.look_at_quota()?;
            let most_ms = options.look_every.as_millis() as u64;
            let pause_ms = self.ws.services.ids.jitter_ms(most_ms / 2, most_ms);
            self.look_at = now + Duration::from_millis(pause_ms);
        }
        if now >= self.ping_at {
            if self.client.progress.silence(now) >= options.silent_max {
                return Err(End::slow("no sign of life since many pings"));
            }
            self.ping_at = now + options.ping_every;
            let payload = self.client.progress.ping();
            self.link
                .send(Message::Ping(payload.to_vec().into()), self.client)
                .await?;
        }
        Ok(())
    }
}

/// Reads the batch after `feed` on the pool of reads, and looks the key up in the same state: it may have been revoked
/// while the read waited, and events that were stored after that are not for this session. If too many reads of the team
/// wait (one message can wake thousands of its sessions), it tries again after a pause.
async fn read_batch(
    services: &Services,
    team: TeamId,
    key_hash: [u8; 32],
    feed: Feed,
) -> Result<Option<(Feed, Batch)>, End> {
    loop {
        let (mut feed, wall_time) = (feed.clone(), services.wall_time.clone());
        let state = services.replica.reader.local();
        let read = state.read(Share::Team(team), move |state| {
            let (state, wall_ms) = (state.frozen_state(), wall_time.now_ms());
            let valid = match auth::find(&state, &key_hash, wall_ms)? {
                Finding::Valid(_) => Some((feed.batch(&state, wall_ms)?, feed)),
                Finding::Refused | Finding::Unknown => None,
            };
            Ok::<_, Unread>(valid.map(|(batch, feed)| (feed, batch)))
        });
        let read = read.await;
        drop(state);
        match read {
            Ok(read) => return Ok(read),
            Err(Unread::Fatal(fatal)) => return Err(handshake::unreadable(fatal)),
            Err(Unread::Refused(ReadRefused)) => {
                let pause_ms = services.ids.jitter_ms(REFUSED_PAUSE_MS / 2, REFUSED_PAUSE_MS);
                sleep(Duration::from_millis(pause_ms)).await;
            }
        }
    }
}

/// Why a batch was not read.
#[derive(Debug, thiserror::Error)]
enum Unread {
    #[error(transparent)]
    Fatal(#[from] Fatal),
    #[error(transparent)]
    Refused(#[from] ReadRefused),
}

/// Waits for the end of a read, if there is one. Cancel-safe.
async fn ended(reading: &mut Option<Reading<'_>>) -> Result<Option<(Feed, Batch)>, End> {
    let Some(read) = reading else {
        return std::future::pending().await;
    };
    let read = read.await;
    *reading = None;
    read
}

fn is_block(frame: &ServerFrame) -> bool {
    matches!(frame, ServerFrame::BillingBlock { .. })
}

/// The session's view of its client; handles the client's frames without waiting.
struct Client<'a> {
    permit: &'a SessionPermit,
    metrics: Metrics,
    acks: Acks,
    progress: Progress,
    requests: Requests<'a>,
}

impl<'a> Client<'a> {
    fn new(ws: &'a WsState, permit: &'a SessionPermit, opened: &Opened) -> Self {
        Client {
            permit,
            metrics: ws.services.metrics.clone(),
            acks: ws.acks.clone(),
            progress: Progress::new(opened.cursor.clone(), &opened.start, Instant::now()),
            requests: Requests::new(&ws.services, opened),
        }
    }

    fn sent(&mut self, seq: u64) {
        self.progress.sent(seq, Instant::now());
    }

    fn ack(&mut self, seq: u64) {
        self.metrics.ws.acks.inc();
        if let Some((cursor, mark)) = self.progress.ack(seq) {
            self.acks.put(cursor, mark);
        }
    }

    /// Reports to the cursor what time has proved: that events arrived, and that the cursor is in use.
    fn tell_cursor(&mut self, now: Instant, options: &SessionOptions) {
        let implied = self.progress.implied(now, options.implied_after);
        let touched = self.progress.touch(now, options.touch_every);
        for (cursor, mark) in implied.into_iter().chain(touched) {
            self.acks.put(cursor, mark);
        }
    }

    fn text(&mut self, text: &str) -> Result<(), End> {
        match frame::read(text).map_err(End::invalid)? {
            Some(ClientFrame::Ack { seq }) => self.ack(seq),
            Some(ClientFrame::Request { id, method, params }) => self.requests.put(id, &method, params, text.len()),
            Some(ClientFrame::Connect { .. }) => return Err(End::invalid("already connected")),
            None => {}
        }
        Ok(())
    }
}

impl Inbound for Client<'_> {
    fn has_room(&self) -> bool {
        self.requests.has_room()
    }

    fn take(&mut self, received: Received) -> Result<(), End> {
        let now = Instant::now();
        self.progress.heard(now);
        self.permit.heard(now);
        match received {
            Some(Ok(Message::Text(text))) => self.text(&text),
            Some(Ok(Message::Pong(payload))) => {
                self.progress.pong(&payload);
                Ok(())
            }
            Some(Ok(Message::Ping(_))) => Ok(()), // the WebSocket library answers it
            Some(Ok(Message::Binary(_))) => Err(End::invalid("frames are JSON text")),
            Some(Err(error)) => Err(End::invalid(format!("unreadable frame: {error}"))),
            Some(Ok(Message::Close(_))) | None => Err(End::Gone),
        }
    }

    fn take_late(&mut self, message: Message) {
        if let Message::Text(text) = message
            && let Ok(Some(ClientFrame::Ack { seq })) = frame::read(&text)
        {
            self.ack(seq);
        }
    }

    fn work(&mut self) -> impl Future<Output = ()> + Send {
        self.requests.work()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_of<F: Future>(_: impl FnOnce(WsState, WebSocket, SessionPermit) -> F) -> usize {
        std::mem::size_of::<F>()
    }

    #[test]
    fn an_idle_session_is_small() {
        // A node has ten thousand of these futures, so rare parts of it must be boxed.
        assert!(bytes_of(run) <= 6_600, "{}", bytes_of(run));
    }
}
