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
//!         batches after        place: after_seq
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
//!   error. A session without a cursor ignores them. [`super::liveness`] tells what stands in for the acks of
//!   clients that never send any.
//! - While a write waits for the reader, frames from the client are still taken in. When it waits for too long
//!   the session ends with 4004; the client comes back and resumes where its acks ended.
//! - An `error` frame is sent only when the session is about to end.
//!
//! **Endings.** Error frame and close code are the same number (4001, 4002, 4004), except 4003 with 1013 for "not
//! now" (no quorum, no place). A node that stops closes with 1012. Only 4001 is final for the vendor's clients;
//! from all others they come back.
//!
//! **Left out.** RPC methods over the socket, answered as not supported; fan-out of one encoded event to many
//! sessions (each encodes for itself: agents mostly have inboxes of their own).

use std::collections::VecDeque;
use std::time::Duration;

use agentpost_proto::frame::{ClientFrame, ServerFrame};
use agentpost_proto::limits;
use axum::extract::ws::{Message, WebSocket};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::ack::{Acks, Proof};
use super::admission::Seat;
use super::feed::Feed;
use super::handshake::{self, Opened};
use super::link::{End, GOODBYE, Inbound, Link, Received};
use super::liveness::Liveness;
use super::resume::CursorName;
use super::{Hub, frame};
use crate::metrics::Metrics;
use crate::shard::wakeups::Listener;

/// One socket from the upgrade to its end.
pub async fn run(hub: Hub, socket: WebSocket, mut seat: Seat) {
    let mut link = Link::new(socket, hub.options.stalled_max);
    let leave = seat.leave();
    let mut client = None;
    let end = tokio::select! {
        biased;
        end = converse(&hub, &mut link, &mut seat, &mut client) => end,
        () = hub.services.cluster.shutdown.cancelled() => End::Elsewhere("service restart"),
        () = leave.cancelled() => End::slow("a newer session took the place of this silent one"),
        () = cut_off(hub.isolated.clone()) => End::Elsewhere("this node has lost the cluster"),
    };
    tracing::debug!(?end, "session ended");
    let stopping = async {
        hub.services.cluster.shutdown.cancelled().await;
        sleep(GOODBYE).await;
    };
    // The seat is given back only now: a socket counts until it is closed.
    tokio::select! {
        () = link.close(end, client.as_mut()) => {}
        () = stopping => {}
    }
}

/// Returns when the node has been without a leader for too long.
async fn cut_off(mut isolated: watch::Receiver<bool>) {
    if isolated.wait_for(|isolated| *isolated).await.is_err() {
        std::future::pending::<()>().await; // the watcher ends with the node, and shutdown tells that
    }
}

async fn converse<'a>(hub: &Hub, link: &mut Link, seat: &'a mut Seat, client: &mut Option<Client<'a>>) -> End {
    // Boxed: the handshake is long and rare, and its state would be carried by every open session.
    let opened = match Box::pin(handshake::open(hub, link, seat)).await {
        Ok(opened) => opened,
        Err(end) => return end,
    };
    let client = client.insert(Client::new(hub, seat, &opened));
    match Session::new(hub, link, client, opened).run().await {
        Ok(never) => match never {},
        Err(end) => end,
    }
}

/// After the handshake.
struct Session<'a, 'c> {
    hub: &'a Hub,
    link: &'a mut Link,
    client: &'a mut Client<'c>,
    feed: Feed,
    mail: Listener,
    keys: Listener,
    key_hash: [u8; 32],
    greeting: Vec<ServerFrame>,
    /// There may be events after the place.
    behind: bool,
    ping_at: Instant,
    look_at: Instant,
}

impl<'a, 'c> Session<'a, 'c> {
    fn new(hub: &'a Hub, link: &'a mut Link, client: &'a mut Client<'c>, opened: Opened) -> Self {
        let now = Instant::now();
        Session {
            hub,
            link,
            client,
            feed: opened.feed,
            mail: opened.mail,
            keys: opened.keys,
            key_hash: opened.key_hash,
            greeting: opened.greeting,
            behind: true,
            ping_at: now + hub.options.ping_every,
            look_at: now + hub.options.look_every,
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
            while let Some(answer) = self.client.answers.pop_front() {
                self.link.send(Message::Text(frame::text(&answer)), self.client).await?;
            }
            let due = self.ping_at.min(self.look_at);
            tokio::select! {
                biased;
                received = self.link.receive() => self.client.take(received)?,
                () = self.mail.woken(), if !self.behind => self.behind = true,
                () = self.keys.woken() => self.authorize()?,
                () = sleep_until(due) => self.on_time().await?,
                () = std::future::ready(()), if self.behind => self.deliver().await?,
            }
        }
    }

    /// The key may have been revoked, or have expired, since the last look.
    fn authorize(&self) -> Result<(), End> {
        let state = self.hub.services.reader.local();
        handshake::authenticate(self.hub, &*state, &self.key_hash).map(drop)
    }

    /// Sends one batch.
    async fn deliver(&mut self) -> Result<(), End> {
        self.authorize()?;
        let batch = {
            let state = self.hub.services.reader.local();
            self.feed.batch(&*state).map_err(handshake::unreadable)?
        };
        self.behind = batch.more;
        if batch.events.is_empty() {
            // A narrow scope in a large team passes over many events: let others run.
            tokio::task::yield_now().await;
            return Ok(());
        }
        self.hub.services.metrics.ws_events.inc_by(batch.events.len() as u64);
        for (seq, event) in batch.events {
            self.link.feed(Message::Text(event), self.client).await?;
            self.client.sent(seq);
        }
        self.link.flush(self.client).await
    }

    async fn on_time(&mut self) -> Result<(), End> {
        let now = Instant::now();
        let options = &self.hub.options;
        if now >= self.look_at {
            self.behind = true;
            self.client.imply(now, options.implied_after);
            let most_ms = options.look_every.as_millis() as u64;
            let pause_ms = self.hub.services.ids.jitter_ms(most_ms / 2, most_ms);
            self.look_at = now + Duration::from_millis(pause_ms);
        }
        if now >= self.ping_at {
            if self.client.liveness.silence(now) >= options.silent_max {
                return Err(End::slow("no sign of life since many pings"));
            }
            self.ping_at = now + options.ping_every;
            let payload = self.client.liveness.ping(self.client.delivered_seq);
            self.link
                .send(Message::Ping(payload.to_vec().into()), self.client)
                .await?;
        }
        Ok(())
    }
}

/// What the session knows of its client; takes in frames without waiting.
struct Client<'a> {
    seat: &'a Seat,
    metrics: Metrics,
    acks: Acks,
    /// Moved by acks; none in a live session.
    cursor: Option<CursorName>,
    /// The cursor has seen a real ack.
    acked: bool,
    /// Where acks of this session have moved it.
    acked_seq: u64,
    /// The newest event that was written to this socket.
    delivered_seq: u64,
    liveness: Liveness,
    answers: VecDeque<ServerFrame>,
}

impl<'a> Client<'a> {
    fn new(hub: &Hub, seat: &'a Seat, opened: &Opened) -> Self {
        Client {
            seat,
            metrics: hub.services.metrics.clone(),
            acks: hub.acks.clone(),
            cursor: opened.cursor.clone(),
            acked: opened.start.acked,
            acked_seq: opened.start.after_seq,
            delivered_seq: opened.start.after_seq,
            liveness: Liveness::new(Instant::now()),
            answers: VecDeque::new(),
        }
    }

    fn sent(&mut self, seq: u64) {
        self.delivered_seq = seq;
        if self.cursor.is_some() && !self.acked {
            self.liveness.sent(seq, Instant::now());
        }
    }

    fn ack(&mut self, seq: u64) {
        self.metrics.ws_acks.inc();
        let Some(cursor) = &self.cursor else { return };
        let seq = seq.min(self.delivered_seq).max(self.acked_seq);
        // The first ack counts even if it moves nothing: from then on acks alone do.
        if seq > self.acked_seq || !self.acked {
            self.acks.put(cursor, seq, Proof::Ack);
            self.acked_seq = seq;
            self.acked = true;
            self.liveness.forget_sent();
        }
    }

    /// Moves the cursor of a client that never acks.
    fn imply(&mut self, now: Instant, age: Duration) {
        if let (Some(cursor), false) = (&self.cursor, self.acked)
            && let Some(seq) = self.liveness.implied(now, age)
        {
            self.acks.put(cursor, seq, Proof::Implied);
        }
    }

    fn text(&mut self, text: &str) -> Result<(), End> {
        match frame::read(text).map_err(End::invalid)? {
            Some(ClientFrame::Ack { seq }) => self.ack(seq),
            Some(ClientFrame::Request { id, method, .. }) => self.answers.push_back(frame::answer(id, &method)),
            Some(ClientFrame::Connect { .. }) => return Err(End::invalid("already connected")),
            None => {}
        }
        Ok(())
    }
}

impl Inbound for Client<'_> {
    fn has_room(&self) -> bool {
        self.answers.len() < limits::WS_ANSWERS_WAITING_MAX
    }

    fn take(&mut self, received: Received) -> Result<(), End> {
        let now = Instant::now();
        self.liveness.heard(now);
        self.seat.heard(now);
        match received {
            Some(Ok(Message::Text(text))) => self.text(&text),
            Some(Ok(Message::Pong(payload))) => {
                self.liveness.pong(&payload);
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
}
