//! Runs the golden scripts in `tests/scripts/`: each contains commands and the expected replies, effects and stored
//! rows. The name of a script is the rule that it shows. `UPDATE_GOLDENFILES=1 cargo test -p agentpost-raft-store
//! --test it scripts` rewrites the expected output; read the diff before you commit it.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;

use agentpost_proto::command::operation::Op;
use agentpost_proto::command::{
    AckCursors, BeginEpoch, CursorAck, Face, LeaseReads, LeaseReturn, MarkRead, Permission, Principal, ReturnLeases,
    RevokeKey, SendBatch, Sweep, TeamLimits, UpdateTeam,
};
use agentpost_proto::id::{KeyId, TeamId};
use agentpost_raft_store::core::keys::ReadState;
use agentpost_raft_store::core::kv::Order;
use agentpost_raft_store::core::query;
use agentpost_raft_store::core::query::inbox::PageQuery;
use agentpost_testkit::commands::{self, create_key, create_team, id_of, message_id, send, team_id};

use crate::common::core::Core;
use crate::common::member_steps::{self, MemberStep};
use crate::common::show;
use crate::common::topic_steps::{self, TopicStep};

#[derive(goldenscript::Command)]
enum Step {
    /// Begins an epoch. From now on cluster time advances.
    Epoch,
    /// Sets the leader's clocks, in milliseconds.
    Time {
        #[arg(key)]
        wall: Option<u64>,
        #[arg(key)]
        cluster: Option<u64>,
    },
    Bootstrap(String),
    /// `by` is team/key, here and in the other commands.
    Team {
        name: String,
        #[arg(key)]
        by: String,
        #[arg(key)]
        daily: Option<u64>,
        #[arg(key)]
        monthly: Option<u64>,
        #[arg(key)]
        price: Option<u64>,
        #[arg(key)]
        reads: Option<u64>,
    },
    Limits {
        name: String,
        #[arg(key)]
        by: String,
        #[arg(key)]
        daily: Option<u64>,
        #[arg(key)]
        strict: Option<bool>,
        #[arg(key)]
        reads: Option<u64>,
    },
    Key {
        name: String,
        #[arg(key)]
        by: String,
        #[arg(key)]
        team: String,
        #[arg(key)]
        permission: Option<String>,
        #[arg(key)]
        agent: Option<String>,
        #[arg(key)]
        expires: Option<u64>,
    },
    Revoke {
        name: String,
        #[arg(key)]
        by: String,
    },
    Send {
        id: String,
        #[arg(key)]
        by: String,
        #[arg(key)]
        from: String,
        #[arg(key)]
        to: String,
        #[arg(key)]
        body: Option<String>,
        #[arg(key)]
        idem: Option<String>,
        #[arg(key)]
        face: Option<String>,
        #[arg(key)]
        expires: Option<u64>,
    },
    /// Items are id:from:to.
    Batch {
        #[arg(many)]
        items: Vec<String>,
        #[arg(key)]
        by: String,
    },
    Mark {
        id: String,
        state: String,
        #[arg(key)]
        by: String,
        #[arg(key)]
        agent: String,
    },
    Ack {
        seq: u64,
        #[arg(key)]
        team: String,
        #[arg(key)]
        agent: String,
        #[arg(key)]
        client: Option<String>,
        #[arg(key)]
        implied: Option<bool>,
    },
    Sweep,
    Lease {
        id: String,
        #[arg(key)]
        by: String,
        #[arg(key)]
        agent: String,
        #[arg(key)]
        node: Option<u64>,
        #[arg(key)]
        nodes: Option<u32>,
    },
    Return {
        id: String,
        #[arg(key)]
        team: String,
        #[arg(key)]
        day: u32,
        #[arg(key)]
        unused: u64,
    },
    Inbox {
        team: String,
        agent: String,
        #[arg(key)]
        state: Option<String>,
        #[arg(key)]
        after: Option<u64>,
        #[arg(key)]
        limit: Option<usize>,
        #[arg(key)]
        order: Option<String>,
    },
    Cursor {
        team: String,
        agent: String,
        client: Option<String>,
    },
    /// Shows the number of rows of each kind.
    Rows,
}

fn permission(name: Option<&String>) -> Permission {
    name.map_or(Permission::Write, |name| Permission::from_name(name).unwrap())
}

/// The operations about teams and keys.
fn team_op(step: &Step) -> Option<(Option<Principal>, Op)> {
    Some(match step {
        Step::Bootstrap(key) => (None, commands::bootstrap(key)),
        Step::Team {
            name,
            by,
            daily,
            monthly,
            price,
            reads,
        } => {
            let limits = TeamLimits {
                daily_sends: daily.unwrap_or(1000),
                monthly_events: monthly.unwrap_or(100_000),
                overage_price_atomic: *price,
                daily_reads: reads.unwrap_or(0),
                ..TeamLimits::default()
            };
            (show::caller(by), create_team(name, Some(limits)))
        }
        Step::Limits {
            name,
            by,
            daily,
            strict,
            reads,
        } => {
            let team_id = team_id(name).to_bytes();
            let op = UpdateTeam {
                team_id,
                daily_sends: *daily,
                strict_recipients: *strict,
                daily_reads: *reads,
                ..UpdateTeam::default()
            };
            (show::caller(by), Op::UpdateTeam(op))
        }
        Step::Key {
            name,
            by,
            team,
            permission: p,
            agent,
            expires,
        } => {
            let mut op = create_key(team, name, permission(p.as_ref()), agent.as_deref().unwrap_or(""));
            op.expires_at_ms = expires.unwrap_or(0);
            (show::caller(by), Op::CreateKey(op))
        }
        Step::Revoke { name, by } => (
            show::caller(by),
            Op::RevokeKey(RevokeKey {
                key_id: KeyId(id_of(name)).to_bytes(),
            }),
        ),
        _ => return None,
    })
}

/// The operations about messages, cursors and sweeps.
fn mail_op(step: &Step) -> Option<(Option<Principal>, Op)> {
    Some(match step {
        Step::Send {
            id,
            by,
            from,
            to,
            body,
            idem,
            face,
            expires,
        } => {
            let mut op = send(id, from, to);
            if let Some(body) = body {
                op.body = body.clone().into();
            }
            op.idempotency_key = idem.clone().unwrap_or_default();
            op.expires_at_ms = expires.unwrap_or(0);
            if face.as_deref() == Some("kite") {
                op.face = Face::Kite as i32;
            }
            (show::caller(by), Op::Send(op))
        }
        Step::Batch { items, by } => {
            let sends = items.iter().map(|item| {
                let parts: Vec<&str> = item.split(':').collect();
                send(parts[0], parts[1], parts[2])
            });
            (show::caller(by), Op::SendBatch(SendBatch { sends: sends.collect() }))
        }
        Step::Mark { id, state, by, agent } => {
            let message_id = message_id(id).to_bytes();
            (
                show::caller(by),
                Op::MarkRead(MarkRead {
                    agent: agent.clone(),
                    message_id,
                    read: state == "read",
                }),
            )
        }
        Step::Ack {
            seq,
            team,
            agent,
            client,
            implied,
        } => {
            let ack = CursorAck {
                implied: implied.unwrap_or(false),
                ..commands::ack(team, agent, client.as_deref().unwrap_or(""), *seq)
            };
            (None, Op::AckCursors(AckCursors { acks: vec![ack] }))
        }
        Step::Sweep => (None, Op::Sweep(Sweep {})),
        _ => return None,
    })
}

/// The operations about leased reads.
fn lease_op(step: &Step) -> Option<(Option<Principal>, Op)> {
    Some(match step {
        Step::Lease {
            id,
            by,
            agent,
            node,
            nodes,
        } => {
            let op = LeaseReads {
                agent: agent.clone(),
                lease_id: id_of(id).to_vec().into(),
                node: node.unwrap_or(1),
                nodes: nodes.unwrap_or(3),
            };
            (show::caller(by), Op::LeaseReads(op))
        }
        Step::Return { id, team, day, unused } => {
            let lease = LeaseReturn {
                team_id: team_id(team).to_bytes(),
                day: *day,
                lease_id: id_of(id).to_vec().into(),
                unused: *unused,
            };
            (None, Op::ReturnLeases(ReturnLeases { leases: vec![lease] }))
        }
        _ => return None,
    })
}

#[derive(Default)]
struct Runner(Core);

impl Runner {
    fn op(&mut self, step: &Step) -> Option<(Option<Principal>, Op)> {
        if let Step::Epoch = step {
            self.0.epoch = self.0.index + 1;
            return Some((None, Op::BeginEpoch(BeginEpoch { node: 1, term: 1 })));
        }
        team_op(step).or_else(|| mail_op(step)).or_else(|| lease_op(step))
    }

    fn inbox(&self, team: TeamId, agent: &str, query: &PageQuery<'_>) -> String {
        let page = query::inbox::page(&self.0.memory, team, agent, query).unwrap();
        let mut out = String::new();
        for item in page.items {
            let id = show::name(&item.message.id);
            let read = if item.read_at_ms == 0 {
                "unread".to_owned()
            } else {
                format!("read at {}", item.read_at_ms)
            };
            writeln!(
                out,
                "#{} seq={} {id} from {} {read}",
                item.position, item.seq, item.message.from
            )
            .unwrap();
        }
        let head = query::inbox::head(&self.0.memory, team, agent).unwrap();
        let next = page.last_seq.map_or("none".to_owned(), |seq| seq.to_string());
        writeln!(
            out,
            "entries={} unread={} removed={} cursor={next}",
            head.entries, head.unread, head.max_removed_seq
        )
        .unwrap();
        out
    }
}

/// A command of a script. `topic_steps` and `member_steps` define the other two kinds.
enum Line {
    Mail(Step),
    Topic(TopicStep),
    Member(MemberStep),
}

impl TryFrom<&goldenscript::Command> for Line {
    type Error = Box<dyn Error>;

    fn try_from(line: &goldenscript::Command) -> Result<Self, Box<dyn Error>> {
        if topic_steps::knows(&line.name) {
            TopicStep::try_from(line).map(Line::Topic)
        } else if member_steps::knows(&line.name) {
            MemberStep::try_from(line).map(Line::Member)
        } else {
            Step::try_from(line).map(Line::Mail)
        }
    }
}

impl goldenscript::Runner for Runner {
    type Command = Line;

    fn run(&mut self, line: &Line, _: &goldenscript::Context) -> Result<String, Box<dyn Error>> {
        let step = match line {
            Line::Topic(step) => return Ok(topic_steps::run(&mut self.0, step)),
            Line::Member(step) => return Ok(member_steps::run(&mut self.0, step)),
            Line::Mail(step) => step,
        };
        if let Some((principal, op)) = self.op(step) {
            let (reply, effects) = self.0.apply(principal, op);
            return Ok(show::reply(reply, effects));
        }
        Ok(match step {
            Step::Time { wall, cluster } => {
                self.0.wall_ms = wall.unwrap_or(self.0.wall_ms);
                self.0.cluster_ms = cluster.unwrap_or(self.0.cluster_ms);
                String::new()
            }
            Step::Inbox {
                team,
                agent,
                state,
                after,
                limit,
                order,
            } => {
                let query = PageQuery {
                    after_seq: *after,
                    order: if order.as_deref() == Some("desc") {
                        Order::Descending
                    } else {
                        Order::Ascending
                    },
                    skip: 0,
                    limit: limit.unwrap_or(50),
                    state: match state.as_deref() {
                        Some("unread") => Some(ReadState::Unread),
                        Some("read") => Some(ReadState::Read),
                        _ => None,
                    },
                    from: None,
                    topic: None,
                    wall_ms: self.0.wall_ms,
                };
                self.inbox(team_id(team), agent, &query)
            }
            Step::Cursor { team, agent, client } => {
                let client = client.as_deref().unwrap_or("");
                match query::inbox::cursor(&self.0.memory, team_id(team), agent, client).unwrap() {
                    Some(cursor) => format!("seq={} acked={}\n", cursor.seq, cursor.acked),
                    None => "none\n".to_owned(),
                }
            }
            _ => {
                let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
                for (key, _) in self.0.memory.rows() {
                    *kinds
                        .entry(String::from_utf8_lossy(&key[..2]).into_owned())
                        .or_default() += 1;
                }
                kinds
                    .iter()
                    .map(|(tag, count)| format!("{tag}={count} "))
                    .collect::<String>()
                    .trim_end()
                    .to_owned()
                    + "\n"
            }
        })
    }
}

macro_rules! scripts {
    ($($name:ident),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                goldenscript::run(&mut Runner::default(), concat!("tests/scripts/", stringify!($name), ".txt")).unwrap();
            }
        )*

        /// Every script must be in the list, because a script that never runs proves nothing.
        #[test]
        fn every_script_runs() {
            let named = [$(stringify!($name)),*];
            for file in std::fs::read_dir("tests/scripts").unwrap() {
                let name = file.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned();
                assert!(named.contains(&name.as_str()), "tests/scripts/{name}.txt is not in the list");
            }
        }
    };
}

scripts!(
    a_message_lands_once_and_in_order,
    a_refusal_leaves_nothing_behind,
    an_idempotency_key_makes_one_message,
    a_batch_decides_each_message_alone,
    keys_are_checked_where_it_counts,
    reading_marks_and_pages,
    cursors_only_move_forward,
    cursors_that_nobody_uses_are_forgotten,
    a_team_has_so_many_cursors,
    a_login_is_approved_and_fetched_once,
    a_login_is_denied,
    a_login_expires,
    logins_are_decided_by_administrators,
    a_full_team_gives_up_its_oldest_dead_key,
    agents_are_registered_and_listed,
    events_are_counted_by_the_day,
    history_is_read_backwards,
    quotas_hold_to_the_last_unit,
    reads_are_leased_and_returned,
    a_topic_reaches_those_subscribed_at_the_publish,
    a_large_publish_is_given_out_in_chunks,
    later_publishes_wait_for_a_job,
    a_webhook_gets_what_it_asked_for,
    registrations_are_checked_and_counted,
    old_topic_mail_is_swept,
    old_mail_is_swept,
);
