//! The handshake of a session: authenticates the key, narrows the scopes, and finds the position of the first event.

use std::time::Duration;

use agentpost_proto::command::Permission;
use agentpost_proto::frame::{ClientFrame, ServerFrame};
use agentpost_proto::id::{AgentId, KeyId, TeamId};
use agentpost_proto::limits;
use agentpost_proto::secret::Secret;
use agentpost_raft_store::core::kv::{Fatal, Lookup};
use agentpost_raft_store::core::query;
use axum::extract::ws::Message;
use tokio::time::timeout;

use super::ack::{Mark, Proof};
use super::admission::SessionPermit;
use super::feed::Feed;
use super::link::{End, Link};
use super::resume::{self, CursorName, Request, Rows, Start};
use super::scope::{self, ScopeError};
use super::ws_state::WsState;
use super::{frame, quota};
use crate::server::auth::{self, Caller, Finding};
use crate::shard::local_state::LocalState;
use crate::shard::wakeups::Listener;

/// How long a handshake waits for acks to be stored before it gives up.
const STORE_WITHIN: Duration = Duration::from_secs(5);

/// The fields of a `connect` frame.
struct Connect {
    token: Secret,
    team_id: String,
    scopes: Vec<String>,
    client_id: Option<String>,
}

/// The result of a successful handshake.
pub struct Opened {
    /// The team of the key.
    pub team: TeamId,
    /// The key that opened the session.
    pub key_id: KeyId,
    /// The hash of the key, for looking it up again before each batch: it may have been revoked or have expired.
    pub key_hash: [u8; 32],
    /// The events of the session, at its start.
    pub feed: Feed,
    /// The receiver for new events, registered before the first read.
    pub mail: Listener,
    /// The receiver for revoked keys, registered before the first read.
    pub keys: Listener,
    /// The cursor that the session moves.
    pub cursor: Option<CursorName>,
    /// The start of the session.
    pub start: Start,
    /// The frames to send first.
    pub greeting: Vec<ServerFrame>,
}

/// Waits for `connect` and accepts or refuses it.
pub async fn open(ws: &WsState, link: &mut Link, permit: &mut SessionPermit) -> Result<Opened, End> {
    let connect = match timeout(ws.options.handshake_within, first_frame(link)).await {
        Ok(connect) => connect?,
        Err(_) => return Err(End::invalid("no connect frame in time")),
    };
    let client_id = resume::client_id(connect.client_id.as_deref()).map_err(End::invalid)?;
    // The read is linearizable: a key revoked on any node before now must fail, and a key made on any node must pass.
    let state = linearizable(ws).await?;
    let (caller, key_hash) = introduce(ws, &state, &connect)?;
    let requested = scope::parse_requested(&connect.scopes).map_err(scope_end)?;
    let narrowed = scope::narrow(&requested, &caller.scopes, caller.bound_agent.as_ref()).map_err(scope_end)?;
    let agents = scope::agents(&narrowed);
    let mut feed = Feed::new(caller.team, narrowed, ws.source_prefix.clone());
    if let Some(agent) = feed.inbox()
        && !permit.listen(caller.team, agent.as_str(), ws.options.ping_every * 2)
    {
        return Err(End::busy(format!("too many sessions listen to {agent} on this node")));
    }
    permit.show(caller.team, agents);
    let (mail, keys) = (
        feed.listen(&ws.services.replica.wakeups),
        ws.services.replica.wakeups.keys(),
    );
    let request = Request {
        team: caller.team,
        bound_agent: caller.bound_agent.as_ref().map_or("", AgentId::as_str),
        scopes: &requested,
        client_id,
    };
    let cursor = request.cursor();
    let state = settled(ws, state, cursor.as_ref()).await?;
    let rows = Rows::read(&state.frozen(), &request).map_err(unreadable)?;
    let start = request.start(&rows).map_err(End::invalid)?;
    feed.seek(start.after_seq);
    let greeting = greeting(ws, &state, &request, &start).map_err(unreadable)?;
    drop(state);
    if let Some(name) = &cursor {
        note(ws, name, &start).await?;
    }
    Ok(Opened {
        team: caller.team,
        key_id: caller.key_id,
        key_hash,
        feed,
        mail,
        keys,
        cursor,
        start,
        greeting,
    })
}

async fn linearizable(ws: &WsState) -> Result<LocalState, End> {
    let state = ws.services.replica.reader.linearizable().await;
    state.map_err(|not_ready| End::busy(not_ready.to_string()))
}

/// The caller, and the hash of the key.
fn introduce(ws: &WsState, kv: &impl Lookup, connect: &Connect) -> Result<(Caller, [u8; 32]), End> {
    if connect.token.len() > limits::API_KEY_BYTES_MAX {
        return Err(refused());
    }
    let key_hash = ws.services.secrets.key_hash(&connect.token);
    let caller = authenticate(kv, &key_hash, ws.services.wall_time.now_ms())?;
    if caller.team.to_string() != connect.team_id {
        return Err(refused());
    }
    if caller.permission < Permission::Read {
        return Err(End::auth("this API key lacks the permission read"));
    }
    let admitted = ws.services.bursts.request(&caller, ws.services.wall_time.clock());
    admitted.map_err(|error| End::busy(error.message))?;
    Ok((caller, key_hash))
}

/// Returns a state that contains every ack that this node received for this cursor from an earlier session.
async fn settled(ws: &WsState, state: LocalState, cursor: Option<&CursorName>) -> Result<LocalState, End> {
    let Some(name) = cursor.filter(|name| ws.acks.pending(name)) else {
        return Ok(state);
    };
    if !ws.acks.stored(name, STORE_WITHIN).await {
        return Err(End::busy("acknowledgements wait for a quorum"));
    }
    linearizable(ws).await
}

/// Stores a new cursor before its session begins. For an old one it stores that the cursor is in use again, because a
/// sweep might be about to delete it.
async fn note(ws: &WsState, name: &CursorName, start: &Start) -> Result<(), End> {
    if !start.create && !start.touch {
        return Ok(());
    }
    let mark = Mark {
        seq: start.after_seq,
        proof: Proof::Implied,
    };
    ws.acks.put(name.clone(), mark);
    if !ws.acks.stored(name, STORE_WITHIN).await {
        return Err(End::busy("the cursor could not be stored"));
    }
    // Apply enforces the limit on cursors, because a client of another node may have taken the last place.
    let state = linearizable(ws).await?;
    let stored = query::inbox::cursor(&state, name.team, &name.agent, &name.client_id).map_err(unreadable)?;
    stored.map(drop).ok_or_else(|| End::invalid(resume::too_many()))
}

/// Waits for the first frame, which the client sends.
async fn first_frame(link: &mut Link) -> Result<Connect, End> {
    loop {
        let text = match link.receive().await {
            Some(Ok(Message::Text(text))) => text,
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
            Some(Ok(Message::Binary(_))) => return Err(End::invalid("frames are JSON text")),
            Some(Ok(Message::Close(_))) | None => return Err(End::Gone),
            Some(Err(error)) => return Err(End::invalid(error.to_string())),
        };
        return match frame::read(&text).map_err(End::invalid)? {
            Some(ClientFrame::Connect {
                version: 1,
                token,
                team_id,
                scopes,
                client_id,
            }) => Ok(Connect {
                token,
                team_id,
                scopes,
                client_id,
            }),
            Some(ClientFrame::Connect { version, .. }) => Err(End::invalid(format!("unknown version {version}"))),
            Some(_) | None => Err(End::invalid("the first frame has to be connect")),
        };
    }
}

/// The caller of a valid key; the error is the same for every invalid key.
pub fn authenticate(kv: &impl Lookup, key_hash: &[u8; 32], wall_ms: u64) -> Result<Caller, End> {
    match auth::find(kv, key_hash, wall_ms).map_err(unreadable)? {
        Finding::Valid(caller) => Ok(caller),
        Finding::Refused | Finding::Unknown => Err(refused()),
    }
}

/// The end of a session whose key is not valid.
pub fn refused() -> End {
    End::auth("invalid API key for this team")
}

/// Ends a session whose node cannot read its state. The node may be about to stop, so the client should try another.
pub fn unreadable(fatal: Fatal) -> End {
    tracing::error!(%fatal, "reading the state for a session failed; closing the session; check the disk");
    End::busy("the state of this node cannot be read")
}

fn scope_end(error: ScopeError) -> End {
    match error {
        ScopeError::Invalid(message) => End::invalid(message),
        ScopeError::NothingAllowed(message) => End::auth(message),
    }
}

/// The frames that are sent first.
fn greeting(ws: &WsState, kv: &impl Lookup, request: &Request<'_>, start: &Start) -> Result<Vec<ServerFrame>, Fatal> {
    let fresh = || hex::encode(ws.services.ids.random::<16>());
    let connected = ServerFrame::Connected {
        last_seq: start.after_seq,
        client_id: request.client_id.map_or_else(fresh, str::to_owned),
    };
    let quota = quota::Greeting::of(kv, request.team, ws.services.wall_time.now_ms())?;
    let mut greeting = vec![connected, quota.snapshot];
    greeting.extend(quota.block);
    Ok(greeting)
}
