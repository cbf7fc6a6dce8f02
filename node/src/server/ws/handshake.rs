//! From the upgrade to the first event: who is this, what may it see, where does it begin.

use std::sync::Arc;
use std::time::Duration;

use agentpost_proto::command::Permission;
use agentpost_proto::frame::{ClientFrame, ServerFrame};
use agentpost_proto::id::{AgentId, KeyId, TeamId};
use agentpost_proto::limits;
use agentpost_proto::secret::Secret;
use agentpost_raft_store::core::kv::{Fatal, Kv};
use agentpost_raft_store::core::query;
use agentpost_raft_store::disk::state::StateDb;
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

/// A session that may begin.
pub struct Opened {
    /// Whose it is.
    pub team: TeamId,
    /// The key that opened it.
    pub key_id: KeyId,
    /// To ask again, before each batch, whether the key still opens this.
    pub key_hash: [u8; 32],
    /// What it reads, at its place.
    pub feed: Feed,
    /// Registered before the first read.
    pub mail: Listener,
    /// The same for revoked keys.
    pub keys: Listener,
    /// The cursor that it moves.
    pub cursor: Option<CursorName>,
    /// Where it begins.
    pub start: Start,
    /// The frames to send first.
    pub greeting: Vec<ServerFrame>,
}

/// Waits for `connect` and decides about it.
pub async fn open(ws: &WsState, link: &mut Link, permit: &mut SessionPermit) -> Result<Opened, End> {
    let connect = match timeout(ws.options.handshake_within, first_frame(link)).await {
        Ok(connect) => connect?,
        Err(_) => return Err(End::invalid("no connect frame in time")),
    };
    let client_id = resume::client_id(connect.client_id.as_deref()).map_err(End::invalid)?;
    // A key revoked anywhere before this moment must not pass, and a key made anywhere must.
    let state = linearizable(ws).await?;
    let (caller, key_hash) = introduce(ws, &*state, &connect)?;
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
    let rows = Rows::read(&*state, &request).map_err(unreadable)?;
    let start = request.start(&rows).map_err(End::invalid)?;
    feed.seek(start.after_seq);
    let greeting = greeting(ws, &*state, &request, &start).map_err(unreadable)?;
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

async fn linearizable(ws: &WsState) -> Result<Arc<StateDb>, End> {
    let state = ws.services.replica.reader.linearizable().await;
    state.map_err(|not_ready| End::busy(not_ready.to_string()))
}

/// Who has connected, and the hash of the key.
fn introduce(ws: &WsState, kv: &impl Kv, connect: &Connect) -> Result<(Caller, [u8; 32]), End> {
    if connect.token.len() > limits::API_KEY_BYTES_MAX {
        return Err(refused());
    }
    let key_hash = ws.services.secrets.key_hash(&connect.token);
    let caller = authenticate(ws, kv, &key_hash)?;
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

/// A state that holds what the previous session of this cursor acked on this node.
async fn settled(ws: &WsState, state: Arc<StateDb>, cursor: Option<&CursorName>) -> Result<Arc<StateDb>, End> {
    let Some(name) = cursor.filter(|name| ws.acks.pending(name)) else {
        return Ok(state);
    };
    if !ws.acks.stored(name, STORE_WITHIN).await {
        return Err(End::busy("acknowledgements wait for a quorum"));
    }
    linearizable(ws).await
}

/// Stores a new cursor before its session begins, and that an old one is in use again: a sweep may be about to
/// forget it.
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
    // How many there may be is decided where all nodes meet: another client may have taken the last place.
    let state = linearizable(ws).await?;
    let stored = query::inbox::cursor(&*state, name.team, &name.agent, &name.client_id).map_err(unreadable)?;
    stored.map(drop).ok_or_else(|| End::invalid(resume::too_many()))
}

/// The client speaks first.
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

/// The caller of a valid key; every other key gets the same answer.
pub fn authenticate(ws: &WsState, kv: &impl Kv, key_hash: &[u8; 32]) -> Result<Caller, End> {
    match auth::find(kv, key_hash, ws.services.wall_time.now_ms()).map_err(unreadable)? {
        Finding::Valid(caller) => Ok(caller),
        Finding::Refused | Finding::Unknown => Err(refused()),
    }
}

fn refused() -> End {
    End::auth("invalid API key for this team")
}

/// A state that cannot be read. The node may be about to stop; the client finds a better one.
pub fn unreadable(fatal: Fatal) -> End {
    tracing::error!(%fatal, "a session could not read the state");
    End::busy("the state of this node cannot be read")
}

fn scope_end(error: ScopeError) -> End {
    match error {
        ScopeError::Invalid(message) => End::invalid(message),
        ScopeError::NothingAllowed(message) => End::auth(message),
    }
}

/// The frames that come first.
fn greeting(ws: &WsState, kv: &impl Kv, request: &Request<'_>, start: &Start) -> Result<Vec<ServerFrame>, Fatal> {
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
