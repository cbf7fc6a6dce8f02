//! Creates, lists and revokes API keys, for the operator API and the methods of the WebSocket.

use agentpost_proto::api::admin::{CreateKey as Wanted, CreatedKey, Key};
use agentpost_proto::api::kite::rpc::{CreateKeyParams, KeyList};
use agentpost_proto::command::{CreateKey, Permission, RevokeKey};
use agentpost_proto::id::{AgentId, KeyId, TeamId};
use agentpost_proto::time::{parse_rfc3339, rfc3339};
use agentpost_proto::{limits, record};
use agentpost_raft_store::core::kv::Kv;
use agentpost_raft_store::core::query;

use super::auth::Caller;
use super::error::{ApiError, Result};
use super::services::carry_out;
use crate::base::secrets::NewKey;
use crate::server::services::Services;
use crate::shard::budget::Permit;

/// Upper bound on the bytes of scopes in one `keys.list`, so that all keys of a team fit into
/// [`limits::WS_WRITE_BUFFER_BYTES_MAX`]. If there are more, keys with many scopes show some of them.
const LISTED_SCOPES_BYTES_MAX: usize = 256 * 1024;

/// Creates a key of `team` in the caller's name.
pub async fn create(
    services: &Services,
    caller: &Caller,
    permit: &Permit,
    team: TeamId,
    wanted: Wanted,
) -> Result<CreatedKey> {
    let agent = bound_agent(wanted.agent_id)?;
    let new = if agent.is_empty() {
        NewKey::team(&services.ids)
    } else {
        NewKey::agent(&services.ids)
    };
    display_name(&wanted.name)?;
    let op = CreateKey {
        team_id: team.to_bytes(),
        key_id: new.id.to_bytes(),
        key_hash: services.secrets.key_hash(&new.api_key).to_vec().into(),
        key_prefix: new.prefix.clone(),
        name: wanted.name,
        permissions: permissions(&wanted.permissions)?,
        scopes: scopes(wanted.scopes)?,
        agent_id: agent,
        expires_at_ms: expiry(wanted.expires_at.as_deref(), services.wall_time.now_ms())?,
    };
    carry_out(services, caller, permit, op).await?;
    Ok(CreatedKey {
        id: new.id.to_string(),
        key_prefix: new.prefix,
        api_key: new.api_key.into(),
    })
}

/// A request of the vendor's command line, with defaults for the fields that it leaves out.
pub fn wanted(params: CreateKeyParams) -> Wanted {
    let permissions = params.permissions.unwrap_or_else(|| vec!["read".to_owned()]);
    let named = |permission: String| match permission.as_str() {
        "*" => "admin".to_owned(),
        _ => permission,
    };
    Wanted {
        name: params.name.unwrap_or_else(|| "kite key".to_owned()),
        permissions: permissions.into_iter().map(named).collect(),
        agent_id: None,
        scopes: params.scopes,
        expires_at: params.expires_at,
    }
}

/// Revokes a key of the caller's own team, also if the caller is an operator.
pub async fn revoke_own(services: &Services, caller: &Caller, permit: &Permit, id: &str) -> Result<()> {
    let state = services.replica.reader.linearizable().await?;
    let known = match id.parse() {
        Ok(id) => query::key::by_id(&state, caller.team, id)?.is_some(),
        Err(_) => false,
    };
    if !known {
        return Err(ApiError::not_found("no such key"));
    }
    drop(state);
    revoke(services, caller, permit, id).await
}

/// Revokes a key. A key that the caller may not revoke is answered like an unknown one.
pub async fn revoke(services: &Services, caller: &Caller, permit: &Permit, id: &str) -> Result<()> {
    let id: KeyId = id.parse().map_err(|_| ApiError::not_found("no such key"))?;
    carry_out(services, caller, permit, RevokeKey { key_id: id.to_bytes() }).await?;
    Ok(())
}

/// A key without its secret.
pub fn shown(key: record::Key) -> Result<Key> {
    Ok(Key {
        id: KeyId::from_slice(&key.id).map_err(ApiError::internal)?.to_string(),
        permissions: permission_names(&key),
        name: key.name,
        key_prefix: key.prefix,
        scopes: key.scopes,
        agent_id: Some(key.agent_id).filter(|agent| !agent.is_empty()),
        expires_at: (key.expires_at_ms != 0).then(|| rfc3339(key.expires_at_ms)),
        revoked: key.revoked_at_ms != 0,
        created_at: rfc3339(key.created_at_ms),
    })
}

/// The keys of a team by age, for one frame. If they would not fit, keys with many scopes show only some of them.
pub fn listed(kv: &dyn Kv, team: TeamId) -> Result<KeyList> {
    let mut rows = query::key::of_team(&kv, team)?;
    rows.sort_by(|a, b| (a.created_at_ms, &a.id).cmp(&(b.created_at_ms, &b.id)));
    let scopes: usize = rows.iter().flat_map(|key| &key.scopes).map(String::len).sum();
    let cut = scopes > LISTED_SCOPES_BYTES_MAX;
    let listed = |row: record::Key| {
        let mut key = shown(row)?;
        if cut {
            key.scopes = some_of(key.scopes);
        }
        Ok(key)
    };
    Ok(KeyList {
        team_id: team.to_string(),
        keys: rows.into_iter().map(listed).collect::<Result<_>>()?,
    })
}

/// The first of a key's scopes, and how many more there are.
fn some_of(mut scopes: Vec<String>) -> Vec<String> {
    let mut bytes = 0;
    let fits = |scope: &&String| {
        bytes += scope.len();
        bytes <= limits::SCOPE_BYTES_MAX
    };
    let kept = scopes.iter().take_while(fits).count();
    let more = scopes.len() - kept;
    scopes.truncate(kept);
    if more > 0 {
        scopes.push(format!("… and {more} more"));
    }
    scopes
}

/// The names of a key's permissions.
pub fn permission_names(key: &record::Key) -> Vec<String> {
    let names = key.permissions().filter_map(|permission| match permission {
        Permission::Read => Some("read".to_owned()),
        Permission::Write => Some("write".to_owned()),
        Permission::Admin => Some("admin".to_owned()),
        Permission::Unspecified => None,
    });
    names.collect()
}

/// Checks a display name.
pub fn display_name(name: &str) -> Result<()> {
    let length = name.chars().count();
    if length == 0 || length > limits::DISPLAY_NAME_CHARS_MAX || name.chars().any(char::is_control) {
        return Err(ApiError::field("name", "must have 1 to 128 printable characters"));
    }
    Ok(())
}

/// The agent that a new key is bound to; empty for none.
fn bound_agent(agent: Option<String>) -> Result<String> {
    let Some(agent) = agent else { return Ok(String::new()) };
    if agent == AgentId::SYSTEM {
        return Err(ApiError::forbidden("the agent id system is reserved"));
    }
    let agent: AgentId = agent
        .parse()
        .map_err(|e| ApiError::field("agent_id", format!("is invalid: {e}")))?;
    Ok(agent.into())
}

/// Permissions by name; at least one, each once.
pub fn permissions(names: &[String]) -> Result<Vec<i32>> {
    let known = |name: &String| match name.as_str() {
        "read" => Ok(Permission::Read as i32),
        "write" => Ok(Permission::Write as i32),
        "admin" => Ok(Permission::Admin as i32),
        _ => Err(ApiError::field("permissions", "can only hold read, write and admin")),
    };
    let mut permissions = names.iter().map(known).collect::<Result<Vec<i32>>>()?;
    permissions.sort_unstable();
    permissions.dedup();
    if permissions.is_empty() {
        return Err(ApiError::field(
            "permissions",
            "must name at least one of read, write and admin",
        ));
    }
    Ok(permissions)
}

fn scopes(scopes: Option<Vec<String>>) -> Result<Vec<String>> {
    let Some(scopes) = scopes else {
        return Ok(vec!["*".to_owned()]);
    };
    if scopes.is_empty() || scopes.len() > limits::SCOPES_MAX {
        return Err(ApiError::field(
            "scopes",
            format!("must have 1 to {} items", limits::SCOPES_MAX),
        ));
    }
    match scopes.iter().find(|scope| !is_scope(scope)) {
        Some(_) => Err(ApiError::field(
            "scopes",
            "can only hold *, source:NAME, type:NAME and agent_to:AGENT",
        )),
        None => Ok(scopes),
    }
}

fn is_scope(scope: &str) -> bool {
    let named = |(kind, value): (&str, &str)| match kind {
        "source" | "type" => !value.is_empty() && !value.chars().any(char::is_control),
        "agent_to" => value.parse::<AgentId>().is_ok(),
        _ => false,
    };
    scope == "*" || (scope.len() <= limits::SCOPE_BYTES_MAX && scope.split_once(':').is_some_and(named))
}

fn expiry(at: Option<&str>, wall_ms: u64) -> Result<u64> {
    let Some(at) = at else { return Ok(0) };
    let at_ms = parse_rfc3339(at).map_err(|e| ApiError::field("expires_at", format!("is invalid: {e}")))?;
    if at_ms <= wall_ms {
        return Err(ApiError::field("expires_at", "lies in the past"));
    }
    Ok(at_ms)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn owned(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn permissions_are_known_names() {
        assert_eq!(permissions(&owned(&["write", "read", "write"])).unwrap(), [1, 2]);
        for bad in [&[][..], &["*"], &["read", "Write"], &[""]] {
            assert_eq!(permissions(&owned(bad)).unwrap_err().status, 400, "{bad:?}");
        }
    }

    #[test]
    fn the_socket_asks_for_little_by_default() {
        let wanted_of = |params: &str| wanted(serde_json::from_str(params).unwrap());
        for nothing in [
            "{}",
            r#"{"name":null,"scopes":null,"permissions":null,"expires_at":null}"#,
        ] {
            let wanted = wanted_of(nothing);
            assert_eq!(
                (wanted.name.as_str(), wanted.permissions),
                ("kite key", owned(&["read"]))
            );
            assert_eq!((wanted.scopes, wanted.agent_id, wanted.expires_at), (None, None, None));
        }
        let all = wanted_of(r#"{"permissions":["*","read"],"agent_id":"x"}"#);
        assert_eq!((all.permissions, all.agent_id), (owned(&["admin", "read"]), None));
    }

    #[test]
    fn a_list_that_would_not_fit_says_how_many_scopes_a_key_has() {
        assert_eq!(some_of(owned(&["*"])), ["*"]);
        let long = format!("type:{}", "x".repeat(limits::SCOPE_BYTES_MAX - 5));
        let cut = some_of(vec![long.clone(); 3]);
        assert_eq!(cut, [long.as_str(), "… and 2 more"]);
        assert_eq!(some_of(vec![long]), cut[..1]);
        let many: Vec<String> = (0..64).map(|n| format!("agent_to:{n:04}")).collect();
        let some = some_of(many.clone());
        assert_eq!((&some[..19], some[19].as_str()), (&many[..19], "… and 45 more"));
    }

    #[test]
    fn scopes_have_known_forms() {
        assert_eq!(scopes(None).unwrap(), ["*"]);
        assert!(scopes(Some(owned(&["*", "source:github", "type:com.x", "agent_to:a:b"]))).is_ok());
        let long = format!("type:{}", "x".repeat(limits::SCOPE_BYTES_MAX));
        for bad in [
            &[][..],
            &[""],
            &["**"],
            &["source:"],
            &["agent_to:a b"],
            &["from:x"],
            &["agent_to"],
            &[&long],
        ] {
            assert_eq!(scopes(Some(owned(bad))).unwrap_err().status, 400, "{bad:?}");
        }
    }

    #[test]
    fn an_expiry_lies_ahead() {
        assert_eq!(expiry(None, 5).unwrap(), 0);
        assert_eq!(expiry(Some("1970-01-01T00:00:00.006Z"), 5).unwrap(), 6);
        for bad in ["1970-01-01T00:00:00.005Z", "tomorrow", ""] {
            assert_eq!(expiry(Some(bad), 5).unwrap_err().status, 400, "{bad}");
        }
    }
}
