//! The script commands about logins, keys, agents and cursors, and about the counters of a team.

use std::fmt::Write as _;

use agentpost_proto::command::operation::Op;
use agentpost_proto::command::reply::Reply as R;
use agentpost_proto::command::{AckCursors, DecideLogin, Permission, Principal, RegisterAgent, StartLogin};
use agentpost_proto::id::TeamId;
use agentpost_proto::limits;
use agentpost_proto::record::{Key, Login};
use agentpost_raft_store::core::kv::{Kv, Order};
use agentpost_raft_store::core::query;
use agentpost_raft_store::core::view::decode;
use agentpost_testkit::commands::{
    ack, approve_login, claim_login, create_key, deny_login, principal, start_login, team_id,
};

use crate::common::core::Core;
use crate::common::show;

#[derive(goldenscript::Command)]
pub enum MemberStep {
    /// A device starts a login for the key `key`.
    Login {
        code: String,
        #[arg(key)]
        device: String,
        #[arg(key)]
        key: String,
        #[arg(key)]
        client: Option<String>,
    },
    /// Permissions are separated by commas.
    Approve {
        code: String,
        #[arg(key)]
        by: String,
        #[arg(key)]
        team: String,
        #[arg(key)]
        permissions: Option<String>,
    },
    Deny {
        code: String,
        #[arg(key)]
        by: String,
    },
    Claim {
        device: String,
    },
    /// Shows all logins, including expired ones.
    Logins,
    Register {
        agent: String,
        #[arg(key)]
        by: String,
        #[arg(key)]
        name: Option<String>,
    },
    Agents {
        team: String,
        #[arg(key)]
        after: Option<String>,
        #[arg(key)]
        limit: Option<usize>,
    },
    /// Creates x0, x1 and so on: keys, agents, or cursors of an agent. Shows the reply to the last command.
    Fill {
        what: String,
        count: usize,
        #[arg(key)]
        by: Option<String>,
        #[arg(key)]
        team: String,
        #[arg(key)]
        expires: Option<u64>,
    },
    /// Shows the keys of a team, except x0, x1 and so on.
    Keys {
        team: String,
    },
    /// Shows the counters of a team.
    Members {
        team: String,
    },
    /// Shows the events of the current day.
    Today {
        team: String,
        #[arg(key)]
        wall: Option<u64>,
    },
    /// Shows the messages of an agent or of the team, newest first.
    History {
        team: String,
        agent: Option<String>,
        #[arg(key)]
        before: Option<u64>,
        #[arg(key)]
        limit: Option<usize>,
    },
}

/// Whether this is one of the commands above.
pub fn knows(word: &str) -> bool {
    const WORDS: [&str; 12] = [
        "login", "approve", "deny", "claim", "logins", "register", "agents", "fill", "keys", "members", "today",
        "history",
    ];
    WORDS.contains(&word)
}

pub fn run(core: &mut Core, step: &MemberStep) -> String {
    if let MemberStep::Fill {
        what,
        count,
        by,
        team,
        expires,
    } = step
    {
        return fill(core, (what, *count), by.as_deref(), team, *expires);
    }
    if let Some((by, op)) = operation(step) {
        let (reply, effects) = core.apply(by, op);
        return show::reply(reply, effects);
    }
    match ask(core, step) {
        out if out.is_empty() => "none\n".to_owned(),
        out => out,
    }
}

fn operation(step: &MemberStep) -> Option<(Option<Principal>, Op)> {
    Some(match step {
        MemberStep::Login {
            code,
            device,
            key,
            client,
        } => {
            let op = StartLogin {
                client: client.clone().unwrap_or_default(),
                ..start_login(code, device, key)
            };
            (None, Op::StartLogin(op))
        }
        MemberStep::Approve {
            code,
            by,
            team,
            permissions,
        } => {
            let named = permissions.as_deref().unwrap_or("write").split(',');
            let op = DecideLogin {
                permissions: named.filter_map(Permission::from_name).map(i32::from).collect(),
                ..approve_login(code, team)
            };
            (show::caller(by), Op::DecideLogin(op))
        }
        MemberStep::Deny { code, by } => (show::caller(by), Op::DecideLogin(deny_login(code))),
        MemberStep::Claim { device } => (None, Op::ClaimLogin(claim_login(device))),
        MemberStep::Register { agent, by, name } => (show::caller(by), register(agent, name.as_deref())),
        _ => return None,
    })
}

fn register(agent: &str, name: Option<&str>) -> Op {
    Op::RegisterAgent(RegisterAgent {
        agent: agent.to_owned(),
        name: name.unwrap_or_default().to_owned(),
    })
}

/// Creates many things of one kind. None of the commands may have an effect.
fn fill(core: &mut Core, (what, count): (&str, usize), by: Option<&str>, team: &str, expires: Option<u64>) -> String {
    let names: Vec<String> = (0..count).map(|n| format!("x{n}")).collect();
    let ops: Vec<Op> = match what {
        "keys" => {
            let key = |name: &String| {
                let mut op = create_key(team, name, Permission::Read, "");
                op.expires_at_ms = expires.unwrap_or(0);
                Op::CreateKey(op)
            };
            names.iter().map(key).collect()
        }
        "agents" => names.iter().map(|name| register(name, None)).collect(),
        "cursors" => names
            .chunks(limits::ACKS_PER_ENTRY_MAX)
            .map(|names| {
                let acks = names.iter().map(|name| ack(team, "", name, 0)).collect();
                Op::AckCursors(AckCursors { acks })
            })
            .collect(),
        _ => panic!("fill keys, agents or cursors"),
    };
    let by = by.map(|by| {
        let (team, key) = by.split_once('/').unwrap();
        principal(team, key)
    });
    let mut last = String::new();
    for op in ops {
        let (reply, effects) = core.apply(by.clone(), op);
        let is_refused = matches!(reply.reply, Some(R::Rejection(_)));
        last = show::reply(reply, effects);
        assert!(!is_refused, "{last}");
    }
    last
}

fn ask(core: &Core, question: &MemberStep) -> String {
    let kv = &core.memory;
    let mut out = String::new();
    match question {
        MemberStep::Logins => {
            for row in kv.range(b"lo".to_vec()..b"lp".to_vec(), Order::Ascending) {
                let login: Login = decode(row.unwrap().1).unwrap();
                writeln!(out, "{}", login_line(&login, core.cluster_ms)).unwrap();
            }
        }
        MemberStep::Agents { team, after, limit } => {
            let after = after.as_deref().unwrap_or("");
            for agent in query::agent::agents(kv, team_id(team), after, limit.unwrap_or(50)).unwrap() {
                let row = match agent.registered {
                    Some(row) => format!("{:?} registered at {}", row.name, row.created_at_ms),
                    None => "only got mail".to_owned(),
                };
                writeln!(out, "{} {row}", agent.id).unwrap();
            }
        }
        MemberStep::Keys { team } => out = keys(core, team_id(team)),
        MemberStep::Members { team } => {
            let head = query::team::head(kv, team_id(team)).unwrap();
            let (keys, agents, cursors) = (head.keys, head.agents, head.cursors);
            writeln!(out, "keys={keys} agents={agents} cursors={cursors}").unwrap();
        }
        MemberStep::Today { team, wall } => {
            let wall_ms = wall.unwrap_or(core.wall_ms);
            let today = query::team::events_today(kv, team_id(team), wall_ms).unwrap();
            writeln!(out, "{today} events").unwrap();
        }
        MemberStep::History {
            team,
            agent,
            before,
            limit,
        } => {
            let (before, limit) = (before.unwrap_or(u64::MAX), limit.unwrap_or(50));
            let seqs: Vec<u64> = match agent {
                Some(agent) => query::inbox::before(kv, team_id(team), agent, before, limit)
                    .unwrap()
                    .iter()
                    .map(|item| item.seq)
                    .collect(),
                None => query::inbox::team_before(kv, team_id(team), before, limit)
                    .unwrap()
                    .iter()
                    .map(|message| message.seq)
                    .collect(),
            };
            writeln!(out, "{seqs:?}").unwrap();
        }
        _ => unreachable!("no question"),
    }
    out
}

fn login_line(login: &Login, cluster_ms: u64) -> String {
    let state = login
        .state()
        .as_str_name()
        .trim_start_matches("LOGIN_STATE_")
        .to_lowercase();
    let left_ms = login.expires_ct_ms.saturating_sub(cluster_ms);
    let mut line = format!("{} {:?} {state}, {left_ms} ms left", login.user_code, login.client);
    if let Some(by) = &login.decided_by {
        write!(line, ", by {} of {}", show::name(&by.key_id), show::name(&by.team_id)).unwrap();
    }
    if !login.team_id.is_empty() {
        write!(
            line,
            ", into {} with {:?}",
            show::name(&login.team_id),
            names(&login.permissions)
        )
        .unwrap();
    }
    line
}

fn names(permissions: &[i32]) -> Vec<&'static str> {
    permissions
        .iter()
        .map(|p| Permission::try_from(*p).unwrap().name())
        .collect()
}

fn keys(core: &Core, team: TeamId) -> String {
    let all: Vec<Key> = query::key::of_team(&core.memory, team).unwrap();
    let (crowd, named): (Vec<Key>, Vec<Key>) = all.into_iter().partition(|key| show::is_crowd(&key.prefix));
    let mut out = String::new();
    for key in named {
        let permissions = names(&key.permissions);
        write!(
            out,
            "{} {:?} {permissions:?} made at {}",
            key.prefix, key.name, key.created_at_ms
        )
        .unwrap();
        if key.expires_at_ms != 0 {
            write!(out, " expires at {}", key.expires_at_ms).unwrap();
        }
        if key.revoked_at_ms != 0 {
            write!(out, " revoked at {}", key.revoked_at_ms).unwrap();
        }
        out.push('\n');
    }
    if !crowd.is_empty() {
        writeln!(out, "and {} of the crowd", crowd.len()).unwrap();
    }
    let active = query::key::count_active(&core.memory, team, core.wall_ms).unwrap();
    writeln!(out, "{active} active").unwrap();
    out
}
