//! Keys that do not begin with a team, because they index the whole shard.

use std::ops::Range;

use agentpost_proto::id::{KeyId, TeamId};
use bytes::Bytes;

use super::{
    Builder, CLAIM_SLOT, CLAIM_TABLE, CLOSING, CURSOR, CURSOR_USE, DELIVERY_AGEING, ENDPOINT_HEAD, FANOUT_JOB,
    IDEMPOTENCY, IDEMPOTENCY_EXPIRY, KEY_HASH, KEY_TEAM, LEASE, LOGIN, LOGIN_DEVICE, LOGIN_EXPIRY, LOGIN_HEAD,
    MESSAGE_EXPIRY, NODE_IDS, RETENTION_END, TEAM_NAME, trailing_number,
};

/// `tn`.
pub fn team_name(name: &str) -> Bytes {
    Builder::new(TEAM_NAME).text(name).key()
}

/// `kh`.
pub fn key_hash(hash: &[u8]) -> Bytes {
    Builder::new(KEY_HASH).bytes(hash).key()
}

/// `ki`.
pub fn key_team(key: KeyId) -> Bytes {
    Builder::new(KEY_TEAM).bytes(&key.0).key()
}

/// `mx`.
pub fn message_expiry(expires_at_ms: u64, team: TeamId, seq: u64) -> Bytes {
    Builder::new(MESSAGE_EXPIRY)
        .number(expires_at_ms)
        .team(team)
        .number(seq)
        .key()
}

/// The team and seq of an `mx` key, or the team and number of a `dx` key.
pub fn parse_message_expiry(key: &[u8]) -> Option<(TeamId, u64)> {
    let team = key.get(10..26)?.try_into().ok()?;
    Some((TeamId(team), trailing_number(key)?))
}

/// `ix`.
pub fn idempotency_expiry(expires_ct_ms: u64, team: TeamId, agent: &str, key: &str) -> Bytes {
    Builder::new(IDEMPOTENCY_EXPIRY)
        .number(expires_ct_ms)
        .team(team)
        .text(agent)
        .text(key)
        .key()
}

/// The `id` key that belongs to an `ix` key. It has the same fields after the time.
pub fn idempotency_of_expiry(key: &[u8]) -> Option<Bytes> {
    Some(Builder::new(IDEMPOTENCY).bytes(key.get(10..)?).key())
}

/// `fj`.
pub fn fanout_job(team: TeamId, topic: &str, seq: u64) -> Bytes {
    Builder::new(FANOUT_JOB).team(team).text(topic).number(seq).key()
}

/// The unfinished publishes of a topic with `from <= seq`, the oldest first.
pub fn fanout_jobs_from(team: TeamId, topic: &str, from: u64) -> Range<Vec<u8>> {
    Builder::new(FANOUT_JOB).team(team).text(topic).numbers_from(from)
}

/// All unfinished publishes.
pub fn fanout_jobs() -> Range<Vec<u8>> {
    Builder::new(FANOUT_JOB).prefix()
}

/// Team, topic and seq of an `fj` key.
pub fn parse_fanout_job(key: &[u8]) -> Option<(TeamId, &str, u64)> {
    let team = key.get(2..18)?.try_into().ok()?;
    let topic = key.get(18..key.len().checked_sub(9)?)?;
    Some((TeamId(team), std::str::from_utf8(topic).ok()?, trailing_number(key)?))
}

/// `eh`.
pub fn endpoint_head(team: TeamId, generation: u64) -> Bytes {
    Builder::new(ENDPOINT_HEAD).team(team).number(generation).key()
}

/// All of `eh`.
pub fn endpoint_heads() -> Range<Vec<u8>> {
    Builder::new(ENDPOINT_HEAD).prefix()
}

/// `ec`.
pub fn closing(team: TeamId, generation: u64) -> Bytes {
    Builder::new(CLOSING).team(team).number(generation).key()
}

/// All of `ec`.
pub fn closings() -> Range<Vec<u8>> {
    Builder::new(CLOSING).prefix()
}

/// Team and generation of an `eh` or `ec` key.
pub fn parse_endpoint_key(key: &[u8]) -> Option<(TeamId, u64)> {
    let team = key.get(2..18)?.try_into().ok()?;
    Some((TeamId(team), trailing_number(key)?))
}

/// `cl`.
pub fn claim_slot(slot: u64) -> Bytes {
    Builder::new(CLAIM_SLOT).number(slot).key()
}

/// `ch`.
pub fn claim_table() -> Bytes {
    Builder::new(CLAIM_TABLE).key()
}

/// `dx`.
pub fn delivery_ageing(cluster_ms: u64, team: TeamId, number: u64) -> Bytes {
    Builder::new(DELIVERY_AGEING)
        .number(cluster_ms)
        .team(team)
        .number(number)
        .key()
}

/// `rt`.
pub fn retention_end(cluster_ms: u64, team: TeamId) -> Bytes {
    Builder::new(RETENTION_END).number(cluster_ms).team(team).key()
}

/// The team of an `rt` key.
pub fn parse_retention_end(key: &[u8]) -> Option<TeamId> {
    Some(TeamId(key.get(10..26)?.try_into().ok()?))
}

/// `le`.
pub fn lease(day: u32, team: TeamId, lease: &[u8]) -> Bytes {
    Builder::new(LEASE).number(u64::from(day)).team(team).bytes(lease).key()
}

/// `cx`.
pub fn cursor_use(cluster_ms: u64, team: TeamId, agent: &str, client_id: &str) -> Bytes {
    Builder::new(CURSOR_USE)
        .number(cluster_ms)
        .team(team)
        .text(agent)
        .text(client_id)
        .key()
}

/// The `cu` key that belongs to a `cx` key. It has the same fields after the time.
pub fn cursor_of_use(key: &[u8]) -> Option<Bytes> {
    Some(Builder::new(CURSOR).bytes(key.get(10..)?).key())
}

/// The `cx` key of the same cursor for another time.
pub fn cursor_used_at(key: &[u8], cluster_ms: u64) -> Bytes {
    let cursor = key.get(10..).unwrap_or_default();
    Builder::new(CURSOR_USE).number(cluster_ms).bytes(cursor).key()
}

/// The team of a `cx` key, and whether its client id is not empty.
pub fn parse_cursor_use(key: &[u8]) -> Option<(TeamId, bool)> {
    let team = key.get(10..26)?.try_into().ok()?;
    let client_ends = key.len().checked_sub(2)?;
    Some((TeamId(team), key[client_ends] != 0))
}

/// `nu`.
pub fn node_ids() -> Bytes {
    Builder::new(NODE_IDS).key()
}

/// `lh`.
pub fn login_head() -> Bytes {
    Builder::new(LOGIN_HEAD).key()
}

/// `lo`.
pub fn login(user_code: &str) -> Bytes {
    Builder::new(LOGIN).text(user_code).key()
}

/// `ld`.
pub fn login_device(device_hash: &[u8]) -> Bytes {
    Builder::new(LOGIN_DEVICE).bytes(device_hash).key()
}

/// `lx`.
pub fn login_expiry(cluster_ms: u64, user_code: &str) -> Bytes {
    Builder::new(LOGIN_EXPIRY).number(cluster_ms).text(user_code).key()
}

/// The user code of an `lx` key.
pub fn parse_login_expiry(key: &[u8]) -> Option<&str> {
    std::str::from_utf8(key.get(10..key.len().checked_sub(1)?)?).ok()
}
