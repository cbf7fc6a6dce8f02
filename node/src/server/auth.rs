//! Authentication of callers against the replicated state: a key created or revoked on one node counts on all.
//!
//! - A key that this node does not know may be newer than its state, so it is looked up once more after a read barrier
//!   before the 401. Negative results are not cached.
//! - A linearizable read is authorised after its barrier.
//! - A read that waits for a place on the pool of reads is authorised again when it runs, against the very state that it
//!   reads: its key may have been revoked meanwhile, and what was stored after that is not for it.
//! - A write may use a cached key: `apply` checks the key again, in the state at the write's place in the log.

use std::collections::HashMap;
use std::sync::Arc;

use agentpost_proto::command::{Permission, Principal};
use agentpost_proto::id::{AgentId, KeyId, TeamId};
use agentpost_proto::{limits, record};
use agentpost_raft_store::core::kv::{Fatal, Kv, Lookup};
use agentpost_raft_store::core::query;
use agentpost_raft_store::core::query::key::is_valid;
use axum::http::{HeaderMap, header};
use parking_lot::RwLock;

use super::error::{ApiError, Result};
use crate::shard::local_state::LocalState;
use crate::shard::read_pool::Share;
use crate::shard::reader::Reader;
use crate::shard::wall_time::WallTime;

/// Upper bound on the keys in the cache. When there are more, the cache is emptied.
const REMEMBERED_MAX: usize = 10_000;

/// The owner of a valid key, and the key's rights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The team of the key. Everything that the caller names belongs to this team.
    pub team: TeamId,
    pub key_id: KeyId,
    /// The highest of its permissions.
    pub permission: Permission,
    /// The only agent that the key may act as.
    pub bound_agent: Option<AgentId>,
    /// Limits of WebSocket subscriptions.
    pub scopes: Vec<String>,
    expires_at_ms: u64,
}

/// The state's answer about a presented key.
#[derive(Debug)]
pub enum Finding {
    Valid(Caller),
    /// The key is revoked or expired. This is final.
    Refused,
    /// This state does not know the key.
    Unknown,
}

/// Looks up a presented key by its keyed hash.
pub fn find(kv: &impl Lookup, key_hash: &[u8; 32], wall_ms: u64) -> Result<Finding, Fatal> {
    let Some(key) = query::key::by_hash(kv, key_hash)? else {
        return Ok(Finding::Unknown);
    };
    if !is_valid(&key, wall_ms) {
        return Ok(Finding::Refused);
    }
    Caller::of(&key).map(Finding::Valid)
}

fn expired(expires_at_ms: u64, wall_ms: u64) -> bool {
    expires_at_ms != 0 && expires_at_ms <= wall_ms
}

/// Authorises a presented key and returns the state in which it was found.
pub async fn authorize(
    reader: &Reader,
    wall_time: &WallTime,
    key_hash: &[u8; 32],
    known: LocalState,
) -> Result<(LocalState, Caller)> {
    let mut state = known;
    let mut finding = find(&state, key_hash, wall_time.now_ms())?;
    if matches!(finding, Finding::Unknown) {
        state = reader.linearizable().await?;
        finding = find(&state, key_hash, wall_time.now_ms())?;
    }
    match finding {
        Finding::Valid(caller) => Ok((state, caller)),
        Finding::Refused | Finding::Unknown => Err(refused()),
    }
}

/// Runs `read` on the pool of reads, on behalf of `team`, if the key is valid in the state that is read.
pub async fn read<T: Send + 'static>(
    state: &LocalState,
    team: TeamId,
    key_hash: [u8; 32],
    wall_time: &WallTime,
    read: impl FnOnce(&dyn Kv) -> Result<T> + Send + 'static,
) -> Result<T> {
    let wall_time = wall_time.clone();
    let authorised = state.read(Share::Team(team), move |state| {
        let state = state.frozen_state();
        match find(&state, &key_hash, wall_time.now_ms())? {
            Finding::Valid(_) => read(&state),
            Finding::Refused | Finding::Unknown => Err(refused()),
        }
    });
    authorised.await
}

/// The 401. Its text is the same for unknown, revoked and expired keys.
pub fn refused() -> ApiError {
    ApiError::unauthenticated("invalid API key")
}

impl Caller {
    fn of(key: &record::Key) -> Result<Self, Fatal> {
        let broken = |e: agentpost_proto::id::InvalidId| Fatal::Invariant(format!("stored key: {e}"));
        let agent = (!key.agent_id.is_empty()).then(|| key.agent_id.parse().map_err(broken));
        Ok(Caller {
            team: TeamId::from_slice(&key.team_id).map_err(broken)?,
            key_id: KeyId::from_slice(&key.id).map_err(broken)?,
            permission: key.permissions().max().unwrap_or(Permission::Unspecified),
            bound_agent: agent.transpose()?,
            scopes: key.scopes.clone(),
            expires_at_ms: key.expires_at_ms,
        })
    }

    /// The principal for an operation; `apply` checks it again.
    pub fn principal(&self) -> Principal {
        Principal {
            team_id: self.team.to_bytes(),
            key_id: self.key_id.to_bytes(),
        }
    }

    /// Refuses a key without `needed`; each permission includes the lower ones.
    pub fn require(&self, needed: Permission) -> Result<()> {
        if self.permission >= needed {
            return Ok(());
        }
        let name = match needed {
            Permission::Unspecified | Permission::Read => "read",
            Permission::Write => "write",
            Permission::Admin => "admin",
        };
        Err(ApiError::forbidden(format!("this API key lacks the permission {name}")))
    }

    /// The agent that a request to the Abba Baba API acts as: the key's, else the one in `X-Agent-Id`.
    pub fn agent(&self, headers: &HeaderMap) -> Result<AgentId> {
        let named = named_agent(headers)?;
        let agent = match (&self.bound_agent, named) {
            (Some(bound), Some(named)) if *bound != named => {
                return Err(ApiError::forbidden("this API key is bound to another agent"));
            }
            (Some(bound), _) => bound.clone(),
            (None, Some(named)) => named,
            (None, None) => {
                return Err(ApiError::forbidden(
                    "this API key is not bound to an agent: name one in X-Agent-Id",
                ));
            }
        };
        self.may_act_as(&agent)?;
        Ok(agent)
    }

    /// Refuses an agent that the key is not bound to, and the reserved agent.
    pub fn may_act_as(&self, agent: &AgentId) -> Result<()> {
        if self.bound_agent.as_ref().is_some_and(|bound| bound != agent) {
            return Err(ApiError::forbidden("this API key is bound to another agent"));
        }
        if agent.as_str() == AgentId::SYSTEM {
            return Err(ApiError::forbidden("the agent id system is reserved"));
        }
        Ok(())
    }
}

/// The agent in `X-Agent-Id`.
fn named_agent(headers: &HeaderMap) -> Result<Option<AgentId>> {
    const NAME: &str = "X-Agent-Id";
    let mut values = headers.get_all(NAME).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(ApiError::field(NAME, "appears more than once"));
    }
    let text = value.to_str().unwrap_or_default();
    let agent = text
        .parse()
        .map_err(|e| ApiError::field(NAME, format!("is invalid: {e}")))?;
    Ok(Some(agent))
}

/// The key that a request carries, in either header.
pub fn presented(headers: &HeaderMap) -> Result<&str> {
    let mut found: Option<&str> = None;
    let plain = headers.get_all("x-api-key").iter().map(|value| value.to_str().ok());
    let bearer = headers
        .get_all(header::AUTHORIZATION)
        .iter()
        .map(|value| value.to_str().ok().and_then(bearer));
    for key in plain.chain(bearer) {
        let key = key
            .map(str::trim)
            .filter(|key| !key.is_empty() && key.len() <= limits::API_KEY_BYTES_MAX);
        let key = key.ok_or_else(refused)?;
        if found.is_some_and(|other| other != key) {
            return Err(ApiError::unauthenticated("two different API keys in one request"));
        }
        found = Some(key);
    }
    found.ok_or_else(|| ApiError::unauthenticated("missing API key: send it as X-API-Key or as Authorization: Bearer"))
}

fn bearer(value: &str) -> Option<&str> {
    let (scheme, key) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(key)
}

/// Cache of the valid keys of recent writes. A revocation on any node empties it; a lookup that began earlier does not
/// refill it.
#[derive(Default)]
pub struct Remembered {
    inner: RwLock<Known>,
}

#[derive(Default)]
struct Known {
    generation: u64,
    callers: HashMap<[u8; 32], Arc<Caller>>,
}

impl Remembered {
    /// The caller with this key hash, and the generation that a lookup must pass to [`Self::insert`].
    pub fn get(&self, key_hash: &[u8; 32], wall_ms: u64) -> Result<Arc<Caller>, u64> {
        let known = self.inner.read();
        match known.callers.get(key_hash) {
            Some(caller) if !expired(caller.expires_at_ms, wall_ms) => Ok(caller.clone()),
            _ => Err(known.generation),
        }
    }

    /// Caches a caller, unless the cache was emptied since `generation`.
    pub fn insert(&self, generation: u64, key_hash: [u8; 32], caller: Arc<Caller>) {
        let mut known = self.inner.write();
        if known.generation == generation {
            if known.callers.len() >= REMEMBERED_MAX {
                known.callers.clear();
            }
            known.callers.insert(key_hash, caller);
        }
    }

    /// Empties the cache.
    pub fn forget(&self) {
        let mut known = self.inner.write();
        known.generation += 1;
        known.callers.clear();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use axum::http::{HeaderName, HeaderValue};

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    fn caller(bound: Option<&str>) -> Caller {
        Caller {
            team: TeamId([1; 16]),
            key_id: KeyId([2; 16]),
            permission: Permission::Write,
            bound_agent: bound.map(|b| b.parse().unwrap()),
            scopes: vec![],
            expires_at_ms: 50,
        }
    }

    #[test]
    fn a_key_comes_in_either_header_but_only_one_key() {
        assert_eq!(presented(&headers(&[("x-api-key", "k")])).unwrap(), "k");
        assert_eq!(presented(&headers(&[("authorization", "bearer  k ")])).unwrap(), "k");
        assert_eq!(
            presented(&headers(&[("authorization", "Bearer k"), ("x-api-key", "k")])).unwrap(),
            "k"
        );
        for bad in [
            headers(&[]),
            headers(&[("x-api-key", "")]),
            headers(&[("authorization", "Basic k")]),
            headers(&[("authorization", "Bearer")]),
            headers(&[("authorization", "Bearer k"), ("x-api-key", "other")]),
            headers(&[("x-api-key", Box::leak("k".repeat(257).into_boxed_str()))]),
        ] {
            assert_eq!(presented(&bad).unwrap_err().status, 401, "{bad:?}");
        }
    }

    #[test]
    fn the_agent_is_the_keys_or_the_named_one() {
        let named = headers(&[("x-agent-id", "alpha")]);
        assert_eq!(caller(None).agent(&named).unwrap().as_str(), "alpha");
        assert_eq!(caller(Some("alpha")).agent(&headers(&[])).unwrap().as_str(), "alpha");
        assert_eq!(caller(Some("alpha")).agent(&named).unwrap().as_str(), "alpha");
        for (bound, name, status) in [
            (None, None, 403),
            (Some("beta"), Some("alpha"), 403),
            (None, Some("a b"), 400),
            (None, Some("system"), 403),
        ] {
            let headers = name.map_or_else(HeaderMap::new, |name| headers(&[("x-agent-id", name)]));
            assert_eq!(
                caller(bound).agent(&headers).unwrap_err().status,
                status,
                "{bound:?} {name:?}"
            );
        }
    }

    #[test]
    fn permissions_include_the_lower_ones() {
        assert!(caller(None).require(Permission::Read).is_ok());
        assert!(caller(None).require(Permission::Write).is_ok());
        assert_eq!(caller(None).require(Permission::Admin).unwrap_err().status, 403);
    }

    #[test]
    fn a_lookup_from_before_a_revocation_is_not_cached() {
        let remembered = Remembered::default();
        let before = remembered.get(&[0; 32], 0).unwrap_err();
        remembered.forget();
        remembered.insert(before, [0; 32], Arc::new(caller(None)));
        let now = remembered.get(&[0; 32], 0).unwrap_err();
        remembered.insert(now, [0; 32], Arc::new(caller(None)));
        assert!(remembered.get(&[0; 32], 49).is_ok());
        assert!(remembered.get(&[0; 32], 50).is_err());
        remembered.forget();
        assert!(remembered.get(&[0; 32], 0).is_err());
    }
}
