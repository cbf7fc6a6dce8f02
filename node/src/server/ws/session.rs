//! The life of a WebSocket session.
//!
//! **The problem.** A message has to reach a listening agent within a millisecond, and still reach it when the
//! socket breaks, the node dies, or the agent reads slowly or not at all. And ten thousand listeners that read
//! nothing must cost a node next to nothing.
//!
//! **The idea.** A session is not a queue that others fill; it is a reader with a place. It holds one number, the
//! seq up to which it has read, and every node's state holds the mail. So nothing can be lost on the way to a
//! session, nothing is buffered for a slow one, and any node can continue what another began:
//!
//! ```text
//!             hint (Wakeups)                                acks
//!   apply ───────────────────►┐                      ┌──────────────► Acks ──► one operation per 50 ms
//!                             ▼                      │                         moves the cursors
//!   state ───── Feed ────► session ───── Link ─────► client
//!         batches after    ▲   place: after_seq         │
//!                          └─────── Requests ◄──────────┘
//! ```
//!
//! **The rules.**
//! - Register for hints, then read, then sleep. A lost hint costs the time to the next look (a few seconds, with
//!   jitter so that sessions do not look in step), never a message.
//! - The handshake is linearizable: it sees every send that was acknowledged before it, and every ack and
//!   revocation. Afterwards the session reads the state of its own node, which only moves forward.
//! - Before each batch the key is looked up again: a revoked or expired one ends the session with 4001. Sleeping
//!   sessions are woken by revocations. A node that has lost its leader would not hear of them; after three
//!   seconds it sends its clients to another node.
//! - Acks are cumulative, clamped to what this socket was sent, never move back and are never answered with an
//!   error. A session without a cursor ignores them. [`super::progress`] has these rules, [`super::liveness`] tells
//!   what stands in for the acks of clients that never send any.
//! - What was removed before the session came to it is told (`cursor_expired`) before what follows; see [`super::feed`].
//! - While a write waits for the reader, frames from the client are still taken in, and the key is still watched.
//!   When it waits for too long the session ends with 4004; the client comes back and resumes where its acks ended.
//! - Requests ([`super::rpc`]) are carried out beside all that, one at a time. They read the state for themselves:
//!   what they show neither moves the place nor counts as delivered.
//! - A team that becomes blocked ([`super::quota`]) is told once, by an end.
//! - An `error` frame is sent only when the session is about to end.
//!
//! **Endings.** Error frame and close code are the same number (4001, 4002, 4004, 4005), except 4003 with 1013 for
//! "not now" (no quorum, no place). A node that stops, or has lost the cluster, closes with 1012, after an answer to
//! each request that waits. Only 4001 is final for the vendor's clients; from all others they come back.
//!
//! **Left out.** Fan-out of one encoded event to many sessions (each encodes for itself: agents mostly have inboxes of
//! their own).

use std::time::Duration;

use agentpost_proto::frame::{ClientFrame, ServerFrame};
use agentpost_proto::id::TeamId;
use axum::extract::ws::{Message, WebSocket};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::ack::Acks;
use super::admission::SessionPermit;
use super::feed::Feed;
use super::handshake::{self, Opened};
use super::link::{End, GOODBYE, Inbound, Link, Received};
use super::progress::Progress;
use super::rpc::Requests;
use super::ws_state::{SessionOptions, WsState};
use super::{frame, quota};
use crate::base::metrics::Metrics;
use crate::shard::wakeups::Listener;

/// How long a session may still write when its key was revoked.
const REVOKED_MAX: Duration = Duration::from_millis(500);

/// One socket from the upgrade to its end.
pub async fn run(ws: WsState, socket: WebSocket, mut permit: SessionPermit) {
    let mut link = Link::new(socket, ws.options.stalled_max);
    let leave = permit.leave();
    let mut client = None;
    let (admitted, key) = oneshot::channel();
    // Boxed, as all that is rare: every open session carries the rest.
    let revoked = Box::pin(revoked(&ws, key));
    let end = tokio::select! {
        biased;
        end = converse(&ws, &mut link, &mut permit, &mut client, admitted) => end,
        end = revoked => end,
        () = ws.lifetime.shutdown.cancelled() => End::Elsewhere("service restart"),
        () = leave.cancelled() => End::slow("a newer session took the place of this silent one"),
        () = cut_off(ws.isolated.clone()) => End::Elsewhere("this node has lost the cluster"),
    };
    tracing::debug!(?end, "session ended");
    let stopping = async {
        ws.lifetime.shutdown.cancelled().await;
        sleep(GOODBYE).await;
    };
    let goodbye = Box::pin(async {
        if let Some(client) = &mut client {
            // A client that takes nothing any more is told by the close frame alone.
            let _ = timeout(GOODBYE, give_up(&mut link, client, &end)).await;
        }
        link.close(end, client.as_mut()).await;
    });
    // The permit is given back only now: a socket counts until it is closed.
    tokio::select! {
        () = goodbye => {}
        () = stopping => {}
    }
}

/// Drops what was asked and cannot be carried out any more. Who is sent elsewhere gets an answer to each.
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
        std::future::pending::<()>().await; // the watcher ends with the node, and shutdown tells that
    }
}

/// Returns when the key of the session was revoked and the session has not ended by itself: it waits for a reader
/// that takes nothing.
async fn revoked(ws: &WsState, admitted: oneshot::Receiver<[u8; 32]>) -> End {
    let Ok(key_hash) = admitted.await else {
        return std::future::pending().await; // it was not let in
    };
    let mut keys = ws.services.replica.wakeups.keys();
    loop {
        let refused = handshake::authenticate(ws, &*ws.services.replica.reader.local(), &key_hash).err();
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
    // Boxed: the handshake is long and rare.
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

/// After the handshake.
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
    /// The client was greeted while its team was blocked, and it still is.
    blocked: bool,
    /// The team became blocked: why. The session ends when nothing is left to send.
    ending: Option<String>,
    /// There may be events after the place.
    behind: bool,
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
            ping_at: now + ws.options.ping_every,
            look_at: now + ws.options.look_every,
        }
    }

    /// Until something ends it.
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
            let due = self.ping_at.min(self.look_at);
            tokio::select! {
                biased;
                received = self.link.receive(), if self.client.has_room() => self.client.take(received)?,
                () = self.mail.woken(), if !self.behind => self.behind = true,
                () = self.keys.woken() => self.authorize().await?,
                () = sleep_until(due) => self.on_time().await?,
                () = self.client.work() => {}
                () = std::future::ready(()), if self.behind => self.deliver().await?,
            }
        }
    }

    /// The key may have been revoked, or have expired, since the last look.
    async fn authorize(&mut self) -> Result<(), End> {
        let refused = {
            let state = self.ws.services.replica.reader.local();
            handshake::authenticate(self.ws, &*state, &self.key_hash).err()
        };
        match refused {
            None => Ok(()),
            Some(end) => Err(Box::pin(self.dismiss(end)).await),
        }
    }

    /// Who asked for it is told first that it is done.
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
    async fn deliver(&mut self) -> Result<(), End> {
        self.authorize().await?;
        let batch = {
            let state = self.ws.services.replica.reader.local();
            self.feed.batch(&*state).map_err(handshake::unreadable)?
        };
        self.behind = batch.more;
        if batch.events.is_empty() {
            // A narrow scope in a large team passes over many events: let others run.
            tokio::task::yield_now().await;
            return Ok(());
        }
        self.ws.services.metrics.ws_events.inc_by(batch.events.len() as u64);
        for (seq, event) in batch.events {
            self.link.feed(Message::Text(event), self.client).await?;
            self.client.sent(seq);
        }
        self.link.flush(self.client).await
    }

    /// The team may have used up its month since the last look. What is there by now is sent before the end.
    fn look_at_quota(&mut self) -> Result<(), End> {
        let services = &self.ws.services;
        let why = quota::why_blocked(
            &*services.replica.reader.local(),
            self.team,
            services.wall_time.now_ms(),
        )
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

fn is_block(frame: &ServerFrame) -> bool {
    matches!(frame, ServerFrame::BillingBlock { .. })
}

/// What the session knows of its client; takes in frames without waiting.
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
        self.metrics.ws_acks.inc();
        if let Some((cursor, mark)) = self.progress.ack(seq) {
            self.acks.put(cursor, mark);
        }
    }

    /// What time has proved: that events arrived, and that the cursor is in use.
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
            Some(Ok(Message::Ping(_))) => Ok(()), // answered beneath us
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
        // Ten thousand of them are to be had: what is rare belongs into a box.
        assert!(bytes_of(run) <= 6_600, "{}", bytes_of(run));
    }
}
