//! Device logins: who can get a key by one and who cannot. The first tests are attacks; the property at the end uses
//! random histories of logins, keys and administrators only, because histories of all commands hardly ever claim a
//! login.

use agentpost_proto::command::operation::Op;
use agentpost_proto::command::reply::Reply as R;
use agentpost_proto::command::{DecideLogin, ErrorCode, Permission, Principal, RevokeKey, StartLogin, Sweep};
use agentpost_proto::id::{KeyId, TeamId};
use agentpost_proto::limits;
use agentpost_raft_store::core::apply::key::KEYS_MAX;
use agentpost_raft_store::core::kv::Memory;
use agentpost_raft_store::core::query;
use agentpost_testkit::commands::{
    approve_login, claim_login, create_key, create_team, deny_login, encode, id_of, key_hash, principal, send,
    start_login, team_id, unlimited,
};
use bytes::Bytes;
use proptest::prelude::*;

use crate::common::core::Core;
use crate::common::random::{TEAMS, beginning, key_of, membership};
use crate::common::{books, claims};

const CODE: &str = "BCDFGHJK";

/// A core with two teams, each with an administrator ("boss" of acme and "oboss" of other), and an operator.
fn world() -> Core {
    let mut core = Core::begun(1_000);
    for (team, boss) in [("acme", "boss"), ("other", "oboss")] {
        core.apply(root(), create_team(team, Some(unlimited())));
        core.apply(root(), Op::CreateKey(create_key(team, boss, Permission::Admin, "")));
    }
    core
}

fn root() -> Option<Principal> {
    Some(principal("system", "root"))
}

fn boss() -> Option<Principal> {
    Some(principal("acme", "boss"))
}

fn oboss() -> Option<Principal> {
    Some(principal("other", "oboss"))
}

fn done(core: &mut Core, by: Option<Principal>, op: Op) {
    let (reply, _) = core.apply(by, op);
    assert!(!matches!(reply.reply, Some(R::Rejection(_))), "{reply:?}");
}

/// The code of a rejection, which must have changed no row but the applied row.
fn refused(core: &mut Core, by: Option<Principal>, op: Op) -> ErrorCode {
    let before = rows(&core.memory);
    let (reply, effects) = core.apply(by, op);
    assert_eq!(rows(&core.memory), before);
    assert!(effects.is_empty());
    match reply.reply {
        Some(R::Rejection(rejection)) => rejection.code(),
        reply => panic!("accepted: {reply:?}"),
    }
}

fn rows(memory: &Memory) -> Vec<(Bytes, Bytes)> {
    let rows = memory.rows().filter(|(key, _)| !key.starts_with(b"ap"));
    rows.map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn approve(team: &str) -> Op {
    Op::DecideLogin(approve_login(CODE, team))
}

fn claim(device: &str) -> Op {
    Op::ClaimLogin(claim_login(device))
}

fn revoke(key: &str) -> Op {
    let key_id = KeyId(id_of(key)).to_bytes();
    Op::RevokeKey(RevokeKey { key_id })
}

/// The same core, in which the device "d1" waits for the key "k1".
fn waiting() -> Core {
    let mut core = world();
    done(&mut core, None, Op::StartLogin(start_login(CODE, "d1", "k1")));
    core
}

#[test]
fn a_key_of_another_team_approves_nothing_and_learns_nothing() {
    let mut core = waiting();
    let foreign = refused(&mut core, oboss(), approve("acme"));
    let absent = refused(&mut core, oboss(), approve("nowhere"));
    assert_eq!((foreign, absent), (ErrorCode::NotFound, ErrorCode::NotFound));
    // Claiming to be of another team does not help, because the key does not belong to it.
    let lie = Principal {
        key_id: oboss().unwrap().key_id,
        ..boss().unwrap()
    };
    assert_eq!(
        refused(&mut core, Some(lie), approve("acme")),
        ErrorCode::Unauthenticated
    );
    assert_eq!(refused(&mut core, None, approve("acme")), ErrorCode::Unauthenticated);
    assert_eq!(refused(&mut core, None, claim("d1")), ErrorCode::Conflict);
}

#[test]
fn an_approved_device_belongs_to_the_team_that_approved_it() {
    let mut core = waiting();
    let before = rows_of(&core.memory, "other");
    done(&mut core, boss(), approve("acme"));
    // Nobody can decide it again, not even to deny it.
    for op in [approve("other"), Op::DecideLogin(deny_login(CODE))] {
        assert_eq!(refused(&mut core, oboss(), op), ErrorCode::Conflict);
    }
    done(&mut core, None, claim("d1"));
    assert_eq!(rows_of(&core.memory, "other"), before);
    let key = query::key::by_hash(&core.memory, &key_hash("k1")).unwrap().unwrap();
    assert_eq!(key.team_id, team_id("acme").to_bytes());
    let as_other = Some(principal("other", "k1"));
    assert_eq!(
        refused(&mut core, as_other, Op::Send(send("m1", "alice", "bob"))),
        ErrorCode::Unauthenticated
    );
}

fn rows_of(memory: &Memory, team: &str) -> Vec<(Bytes, Bytes)> {
    let id = team_id(team).0;
    let mut rows = rows(memory);
    rows.retain(|(key, value)| [key, value].iter().any(|part| part.windows(16).any(|w| w == id)));
    rows
}

#[test]
fn a_code_is_claimed_once() {
    let mut core = waiting();
    done(&mut core, boss(), approve("acme"));
    assert_eq!(refused(&mut core, None, claim("d2")), ErrorCode::NotFound);
    done(&mut core, None, claim("d1"));
    assert_eq!(refused(&mut core, None, claim("d1")), ErrorCode::NotFound);
    assert_eq!(query::key::of_team(&core.memory, team_id("acme")).unwrap().len(), 2);
    // Nor after its key was revoked.
    done(&mut core, boss(), revoke("k1"));
    assert_eq!(refused(&mut core, None, claim("d1")), ErrorCode::NotFound);
    let again = Op::StartLogin(start_login(CODE, "d1", "k1"));
    assert_eq!(refused(&mut core, None, again), ErrorCode::Conflict);
}

#[test]
fn an_approved_login_ends_with_its_administrator() {
    let expiring = || {
        let mut op = create_key("acme", "brief", Permission::Admin, "");
        op.expires_at_ms = 2_000;
        Op::CreateKey(op)
    };
    for by in ["boss", "brief"] {
        let mut core = waiting();
        done(&mut core, root(), expiring());
        done(&mut core, Some(principal("acme", by)), approve("acme"));
        done(&mut core, root(), revoke("boss"));
        core.wall_ms = 2_000;
        assert_eq!(refused(&mut core, None, claim("d1")), ErrorCode::Forbidden);
        assert_eq!(query::key::by_hash(&core.memory, &key_hash("k1")).unwrap(), None);
    }
    // The same if the administrator's key has no row any more.
    let mut core = waiting();
    done(&mut core, boss(), approve("acme"));
    done(&mut core, root(), revoke("boss"));
    for n in 0..KEYS_MAX {
        let op = create_key("acme", &format!("x{n}"), Permission::Read, "");
        done(&mut core, root(), Op::CreateKey(op));
    }
    assert_eq!(
        query::key::by_id(&core.memory, team_id("acme"), KeyId(id_of("boss"))).unwrap(),
        None
    );
    assert_eq!(refused(&mut core, None, claim("d1")), ErrorCode::Forbidden);
}

#[test]
fn a_fetched_key_outlives_the_administrator_who_approved_it() {
    let mut core = waiting();
    done(&mut core, boss(), approve("acme"));
    done(&mut core, None, claim("d1"));
    done(&mut core, root(), revoke("boss"));
    done(
        &mut core,
        Some(principal("acme", "k1")),
        Op::Send(send("m1", "alice", "bob")),
    );
}

#[test]
fn an_administrator_key_bound_to_an_agent_or_scopes_decides_nothing() {
    let mut core = waiting();
    done(
        &mut core,
        root(),
        Op::CreateKey(create_key("acme", "steward", Permission::Admin, "alice")),
    );
    let mut scoped = create_key("acme", "scoped", Permission::Admin, "");
    scoped.scopes = vec!["agent_to:alice".to_owned()];
    done(&mut core, root(), Op::CreateKey(scoped));
    for by in ["steward", "scoped"] {
        for op in [approve("acme"), Op::DecideLogin(deny_login(CODE))] {
            assert_eq!(
                refused(&mut core, Some(principal("acme", by)), op),
                ErrorCode::Forbidden
            );
        }
        let op = Op::CreateKey(create_key("acme", "wider", Permission::Admin, ""));
        assert_eq!(
            refused(&mut core, Some(principal("acme", by)), op),
            ErrorCode::Forbidden
        );
    }
}

#[test]
fn a_login_overwrites_no_key() {
    let mut core = waiting();
    // Not a key that exists, by its id or by its hash.
    let taken_id = StartLogin {
        key_id: KeyId(id_of("oboss")).to_bytes(),
        ..start_login("CDFGHJKL", "d2", "k2")
    };
    let taken_hash = StartLogin {
        key_hash: key_hash("oboss"),
        ..start_login("CDFGHJKL", "d2", "k2")
    };
    for op in [taken_id, taken_hash] {
        assert_eq!(refused(&mut core, None, Op::StartLogin(op)), ErrorCode::Conflict);
    }
    // Nor a key that was created while the login waited, by another login or by an administrator.
    done(&mut core, None, Op::StartLogin(start_login("CDFGHJKL", "d2", "k1")));
    let second = Op::DecideLogin(approve_login("CDFGHJKL", "other"));
    done(&mut core, oboss(), second);
    done(&mut core, boss(), approve("acme"));
    done(&mut core, None, claim("d2"));
    assert_eq!(refused(&mut core, None, claim("d1")), ErrorCode::Conflict);
    let key = query::key::by_hash(&core.memory, &key_hash("k1")).unwrap().unwrap();
    assert_eq!(key.team_id, team_id("other").to_bytes());
}

#[test]
fn malformed_logins_are_refused() {
    let mut core = world();
    let good = || start_login(CODE, "d1", "k1");
    let bad = [
        StartLogin {
            user_code: "BCDFGHJ\0".to_owned(),
            ..good()
        },
        StartLogin {
            user_code: String::new(),
            ..good()
        },
        StartLogin {
            device_hash: Bytes::from_static(b"short"),
            ..good()
        },
        StartLogin {
            key_hash: Bytes::new(),
            ..good()
        },
        StartLogin {
            key_id: Bytes::from_static(b"short"),
            ..good()
        },
        StartLogin {
            key_prefix: "p".repeat(limits::API_KEY_BYTES_MAX + 1),
            ..good()
        },
        StartLogin {
            client: "c".repeat(limits::LOGIN_CLIENT_CHARS_MAX + 1),
            ..good()
        },
        StartLogin {
            client: "a\nb".to_owned(),
            ..good()
        },
    ];
    for op in bad {
        assert_eq!(
            refused(&mut core, None, Op::StartLogin(op.clone())),
            ErrorCode::Invalid,
            "{op:?}"
        );
    }
    for user_code in ["BCDFGHJ\0", "", "x"] {
        let op = DecideLogin {
            user_code: user_code.to_owned(),
            ..approve_login(CODE, "acme")
        };
        assert_eq!(refused(&mut core, boss(), Op::DecideLogin(op)), ErrorCode::NotFound);
    }
    let op = DecideLogin {
        permissions: vec![1, 77],
        ..approve_login(CODE, "acme")
    };
    assert_eq!(refused(&mut core, boss(), Op::DecideLogin(op)), ErrorCode::Invalid);
}

/// Anybody may start a login, so their number is bounded. Expired ones do not count.
#[test]
fn open_logins_are_bounded() {
    let mut core = world();
    let code = |n: u32| {
        let letter = |place: u32| limits::USER_CODE_ALPHABET[(n / 20_u32.pow(place) % 20) as usize] as char;
        (0..8).map(letter).collect::<String>()
    };
    let start = |n: u32| Op::StartLogin(start_login(&code(n), &format!("d{n}"), &format!("k{n}")));
    for n in 0..limits::LOGINS_MAX {
        done(&mut core, None, start(n));
    }
    assert_eq!(
        refused(&mut core, None, start(limits::LOGINS_MAX)),
        ErrorCode::QuotaExceeded
    );
    core.cluster_ms += limits::LOGIN_TTL_MS;
    done(&mut core, None, start(limits::LOGINS_MAX));
    books::logins(&core.memory).unwrap();
    let mut sweeps = 0;
    while let Some(sweep) = query::due::sweep(&core.memory, core.cluster_ms, core.wall_ms).unwrap() {
        assert_eq!(sweep, Sweep::default());
        done(&mut core, None, Op::Sweep(sweep));
        sweeps += 1;
    }
    assert_eq!(sweeps, 4);
    books::logins(&core.memory).unwrap();
    assert!(
        query::due::ages(&core.memory).unwrap(),
        "the last one still has its time"
    );
}

/// One step of a history: the caller, the command, and how much time passes before it.
fn step() -> impl Strategy<Value = (Option<Principal>, Op, u64)> {
    let who = prop_oneof![
        1 => Just(("system", "root")),
        3 => Just(("acme", "boss")),
        3 => Just(("other", "boss")),
        1 => Just(("acme", "steward")),
        1 => Just(("other", "w")),
        1 => Just(("acme", "p0")),
    ];
    let forward = prop_oneof![12 => 0..1_000u64, 2 => 0..200_000u64, 1 => Just(24 * 3600 * 1000)];
    (who, membership(), forward).prop_map(|((team, key), op, forward)| {
        let is_internal = matches!(op, Op::StartLogin(_) | Op::ClaimLogin(_));
        let key = if team == "system" || key == "p0" {
            key.to_owned()
        } else {
            key_of(team, key)
        };
        ((!is_internal).then(|| principal(team, &key)), op, forward)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn keys_are_created_only_with_authority(steps in prop::collection::vec(step(), 0..100)) {
        let mut core = beginning();
        for (by, op, forward) in steps {
            core.wall_ms += forward;
            core.cluster_ms += forward;
            let command = encode(core.wall_ms, core.epoch, core.cluster_ms, by, op);
            let expected = claims::expected(&core, &command);
            let (reply, _) = core.play(&command);
            claims::check(&core, expected, &reply)?;
            books::logins(&core.memory)?;
        }
        for team in TEAMS {
            books::members(&core.memory, team_id(team))?;
        }
        books::members(&core.memory, TeamId::SYSTEM)?;
    }
}
