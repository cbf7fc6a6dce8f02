//! An oracle for commands that create keys: which key may be created and with whose authority, computed from the rows
//! before the command.

use agentpost_proto::command::operation::Op;
use agentpost_proto::command::reply::Reply as R;
use agentpost_proto::command::{Command, Operation, Permission, Principal, Reply};
use agentpost_proto::id::{KeyId, TeamId};
use agentpost_proto::record::{Key, LoginState};
use agentpost_raft_store::core::query;
use agentpost_raft_store::core::view::decode;
use bytes::Bytes;
use proptest::prelude::*;

use crate::common::core::Core;

/// The key that a command may create, with the hash of the device that claims it. `None` if the command creates no
/// keys, `Some(None)` if it must be rejected.
pub type Expected = Option<Option<(Key, Option<Bytes>)>>;

pub fn expected(core: &Core, command: &Bytes) -> Expected {
    let command: Command = decode(command.clone()).unwrap();
    let operation: Operation = decode(command.operation.clone()).unwrap();
    let (principal, key, device) = match operation.op? {
        Op::CreateKey(op) => {
            let key = Key {
                id: op.key_id,
                team_id: op.team_id,
                hash: op.key_hash,
                permissions: op.permissions,
                agent_id: op.agent_id,
                ..Key::default()
            };
            (operation.principal, key, None)
        }
        Op::ClaimLogin(op) => {
            let applied = query::applied(&core.memory).unwrap();
            let now = match command.ct_epoch == applied.epoch {
                true => applied.cluster_ms.max(command.cluster_ms),
                false => applied.cluster_ms,
            };
            let login = query::login::by_device(&core.memory, &op.device_hash, now).unwrap();
            let Some(login) = login.filter(|login| login.state() == LoginState::Approved) else {
                return Some(None);
            };
            let key = Key {
                id: login.key_id,
                team_id: login.team_id,
                hash: login.key_hash,
                permissions: login.permissions,
                ..Key::default()
            };
            (login.decided_by, key, Some(op.device_hash))
        }
        _ => return None,
    };
    Some(administers(core, &command, principal, &key.team_id).then_some((key, device)))
}

/// Whether a principal's key is valid and may create keys of a team.
fn administers(core: &Core, command: &Command, principal: Option<Principal>, team: &[u8]) -> bool {
    let principal = principal.unwrap();
    let by = TeamId::from_slice(&principal.team_id).unwrap();
    let id = KeyId::from_slice(&principal.key_id).unwrap();
    let wall_ms = query::applied(&core.memory).unwrap().wall_ms.max(command.wall_ms);
    query::key::by_id(&core.memory, by, id).unwrap().is_some_and(|key| {
        let is_alive = key.revoked_at_ms == 0 && (key.expires_at_ms == 0 || wall_ms < key.expires_at_ms);
        let is_wide = key.agent_id.is_empty() && key.scopes == ["*"];
        let is_of_team = principal.team_id == team || by == TeamId::SYSTEM;
        is_alive && is_wide && is_of_team && key.permissions.contains(&(Permission::Admin as i32))
    })
}

/// Checks that a created key is the expected one, and that its login is gone.
pub fn check(core: &Core, expected: Expected, reply: &Reply) -> Result<(), TestCaseError> {
    let Some(expected) = expected else { return Ok(()) };
    let (is_login, made) = match reply.reply.as_ref().unwrap() {
        R::Key(reply) => (false, &reply.key_id),
        R::Login(reply) => (true, &reply.key_id),
        _ => return Ok(()),
    };
    prop_assert!(expected.is_some(), "a key by nobody's authority");
    let (expected, device) = expected.unwrap();
    let team = TeamId::from_slice(&expected.team_id).unwrap();
    let key = query::key::by_id(&core.memory, team, KeyId::from_slice(made).unwrap()).unwrap();
    let key = key.expect("the key of the answer");
    prop_assert_eq!(
        (&key.id, &key.team_id, &key.hash, &key.permissions, &key.agent_id),
        (
            &expected.id,
            &expected.team_id,
            &expected.hash,
            &expected.permissions,
            &expected.agent_id
        )
    );
    prop_assert_eq!(is_login, device.is_some());
    if let Some(device) = device {
        prop_assert_eq!(&key.scopes, &["*"]);
        prop_assert_eq!(
            query::login::by_device(&core.memory, &device, 0).unwrap(),
            None,
            "single use"
        );
    }
    Ok(())
}
