//! The start of a session and the cursor that it moves. This is a pure decision over the *requested* scopes, the client
//! id and a few rows, so that a table of cases can test all of it.
//!
//! | client id | requested scopes | cursor | the first time it begins |
//! |---|---|---|---|
//! | none | one `agent_to:X` | X's mailbox | at the oldest mail |
//! | none | anything else | none: live only | at now |
//! | named | one `agent_to:X` | its own | at X's mailbox cursor |
//! | named | anything else | its own | at now |
//!
//! The requested scopes decide, not the narrowed ones: a management command requests `*` on a new socket and must
//! neither replay an agent's mail nor move its cursor, whatever key it uses.
//!
//! Two listeners of one agent without a client id share its mailbox cursor, as on the vendor's server: events that one
//! of them acknowledged are not delivered to the other after a reconnect. A client id gives a listener its own cursor.
//!
//! An unused cursor expires after [`limits::CURSOR_TTL_MS`]. A mailbox then begins at its oldest mail again, all of
//! which is younger than the last use; a named client begins like a new one.

use agentpost_proto::id::TeamId;
use agentpost_proto::{limits, record};
use agentpost_raft_store::core::kv::{Fatal, Lookup};
use agentpost_raft_store::core::query;

use super::scope::Scope;

/// The name of a cursor in the replicated state.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CursorName {
    /// The team that the cursor belongs to.
    pub team: TeamId,
    /// The inbox of a mailbox cursor. For a named cursor the agent that the key is bound to, or empty.
    pub agent: String,
    /// Empty for a mailbox cursor.
    pub client_id: String,
}

/// The part of a `connect` frame that the decision needs.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// The team of the key.
    pub team: TeamId,
    /// The agent that the key is bound to, or empty.
    pub bound_agent: &'a str,
    /// The requested scopes, without repetitions.
    pub scopes: &'a [Scope],
    /// The requested client id; see [`client_id`].
    pub client_id: Option<&'a str>,
}

/// The rows that the decision reads. An absent cursor was never moved.
#[derive(Debug, Clone, Default)]
pub struct Rows {
    /// The cursor that [`Request::cursor`] names.
    pub cursor: Option<record::Cursor>,
    /// The cursor that [`Request::fallback`] names.
    pub fallback: Option<record::Cursor>,
    /// The team's newest seq.
    pub last_seq: u64,
    /// The number of named cursors of the team.
    pub cursors: u32,
    /// The cluster time.
    pub cluster_ms: u64,
}

impl Rows {
    /// Reads the rows from a state, which must not change meanwhile.
    pub fn read(kv: &impl Lookup, request: &Request<'_>) -> Result<Self, Fatal> {
        let row = |name: Option<CursorName>| match name {
            Some(name) => query::inbox::cursor(kv, name.team, &name.agent, &name.client_id),
            None => Ok(None),
        };
        let head = query::team::head(kv, request.team)?;
        Ok(Rows {
            cursor: row(request.cursor())?,
            fallback: row(request.fallback())?,
            last_seq: head.last_seq,
            cursors: head.cursors,
            cluster_ms: query::applied(kv)?.cluster_ms,
        })
    }
}

/// The start of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// Events after this seq are sent; it is also the `last_seq` of the `connected` frame.
    pub after_seq: u64,
    /// Whether the cursor has seen a real ack. Answered pings do not move it any more then.
    pub acked: bool,
    /// Whether the cursor must be created before the session begins. Otherwise a client that is disconnected before its
    /// first ack would begin at a later "now" and miss the events in between.
    pub create: bool,
    /// Whether the use of the cursor must be recorded, because the last record is old.
    pub touch: bool,
}

/// Checks a client id. An empty id counts as `None`.
pub fn client_id(text: Option<&str>) -> Result<Option<&str>, String> {
    match text {
        None | Some("") => Ok(None),
        Some(id) if id.len() > limits::CLIENT_ID_BYTES_MAX => Err(format!(
            "client_id must have at most {} bytes",
            limits::CLIENT_ID_BYTES_MAX
        )),
        Some(id) if id.chars().any(char::is_control) => Err("client_id must be printable".to_owned()),
        Some(id) => Ok(Some(id)),
    }
}

impl Request<'_> {
    /// The cursor that this session reads and moves; `None` for a live session.
    pub fn cursor(&self) -> Option<CursorName> {
        match self.client_id {
            Some(id) => Some(self.name(self.bound_agent, id)),
            None => self.mailbox().map(|agent| self.name(agent, "")),
        }
    }

    /// The cursor at which a named client begins when its own does not exist yet.
    pub fn fallback(&self) -> Option<CursorName> {
        self.client_id?;
        self.mailbox().map(|agent| self.name(agent, ""))
    }

    /// The agent, if the only requested scope is its mailbox.
    fn mailbox(&self) -> Option<&str> {
        match self.scopes {
            [Scope::AgentTo(id)] => Some(id.as_str()),
            _ => None,
        }
    }

    fn name(&self, agent: &str, client_id: &str) -> CursorName {
        CursorName {
            team: self.team,
            agent: agent.to_owned(),
            client_id: client_id.to_owned(),
        }
    }

    /// Decides the start. The error is for a client that needs one more cursor than its team may have.
    pub fn start(&self, rows: &Rows) -> Result<Start, String> {
        // A cursor is never after the newest message; if one is damaged, its session must still get events.
        let seq = |cursor: &record::Cursor| cursor.seq.min(rows.last_seq);
        if let (Some(_), Some(cursor)) = (self.cursor(), &rows.cursor) {
            return Ok(Start {
                after_seq: seq(cursor),
                acked: cursor.acked,
                create: false,
                // A cursor of an older version has no record of its use.
                touch: cursor.used_ct_ms == 0 || cursor.used_ct_ms + limits::CURSOR_TOUCH_MS <= rows.cluster_ms,
            });
        }
        let create = self.client_id.is_some();
        if create && rows.cursors >= limits::CURSORS_MAX {
            return Err(too_many());
        }
        let after_seq = match (self.client_id, self.mailbox()) {
            (_, None) => rows.last_seq,
            (None, Some(_)) => 0,
            (Some(_), Some(_)) => rows.fallback.as_ref().map_or(0, seq),
        };
        Ok(Start {
            after_seq,
            acked: false,
            create,
            touch: false,
        })
    }
}

/// The error for a refused client id, with the remedy.
pub fn too_many() -> String {
    format!(
        "this team has its {} cursors of named clients: connect with a client_id that was used before, or with none; \
         a cursor is forgotten when it was not used for {} days",
        limits::CURSORS_MAX,
        limits::CURSOR_TTL_MS / (24 * 3600 * 1000)
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::scope::parse_requested;
    use super::*;

    const TEAM: TeamId = TeamId([7; 16]);
    const HEAD: u64 = 90;

    struct Case {
        scopes: &'static [&'static str],
        client_id: Option<&'static str>,
        bound: &'static str,
        cursor: Option<(u64, bool)>,
        fallback: Option<u64>,
        /// The name of the cursor that moves, as (agent, client id).
        moves: Option<(&'static str, &'static str)>,
        after_seq: u64,
        create: bool,
    }

    const DEFAULT: Case = Case {
        scopes: &["agent_to:a"],
        client_id: None,
        bound: "",
        cursor: None,
        fallback: None,
        moves: Some(("a", "")),
        after_seq: 0,
        create: false,
    };

    fn check(case: &Case) {
        let texts: Vec<String> = case.scopes.iter().map(|s| (*s).to_owned()).collect();
        let scopes = parse_requested(&texts).unwrap();
        let request = Request {
            team: TEAM,
            bound_agent: case.bound,
            scopes: &scopes,
            client_id: case.client_id,
        };
        let row = |seq: u64, acked: bool| record::Cursor {
            seq,
            acked,
            ..record::Cursor::default()
        };
        let rows = Rows {
            cursor: case.cursor.map(|(seq, acked)| row(seq, acked)),
            fallback: case.fallback.map(|seq| row(seq, true)),
            last_seq: HEAD,
            ..Rows::default()
        };
        let about = format!("{:?} {:?} bound to {:?}", case.scopes, case.client_id, case.bound);
        let name = request.cursor().map(|c| (c.agent, c.client_id));
        assert_eq!(name, case.moves.map(|(a, c)| (a.to_owned(), c.to_owned())), "{about}");
        let start = request.start(&rows).unwrap();
        assert_eq!(start.after_seq, case.after_seq, "{about}");
        assert_eq!(start.create, case.create, "{about}");
        assert_eq!(
            start.acked,
            case.cursor.is_some_and(|(_, acked)| acked) && case.moves.is_some(),
            "{about}"
        );
    }

    #[test]
    fn a_mailbox_resumes_from_its_own_cursor() {
        check(&DEFAULT);
        check(&Case {
            cursor: Some((40, true)),
            after_seq: 40,
            ..DEFAULT
        });
        check(&Case {
            cursor: Some((40, false)),
            after_seq: 40,
            ..DEFAULT
        });
        check(&Case {
            bound: "a",
            cursor: Some((40, true)),
            after_seq: 40,
            ..DEFAULT
        });
        // A cursor after the newest message.
        check(&Case {
            cursor: Some((HEAD + 5, true)),
            after_seq: HEAD,
            ..DEFAULT
        });
    }

    #[test]
    fn any_other_session_without_a_name_is_live_only() {
        let live = Case {
            moves: None,
            after_seq: HEAD,
            ..DEFAULT
        };
        check(&Case { scopes: &["*"], ..live });
        check(&Case {
            scopes: &["*"],
            bound: "a",
            ..live
        });
        check(&Case {
            scopes: &["agent_to:a", "agent_to:b"],
            ..live
        });
        check(&Case {
            scopes: &["type:com.kite"],
            ..live
        });
        check(&Case {
            scopes: &["agent_to:a", "*"],
            ..live
        });
    }

    #[test]
    fn a_named_client_has_a_cursor_of_its_own() {
        let named = Case {
            client_id: Some("c"),
            moves: Some(("", "c")),
            ..DEFAULT
        };
        let fresh = Case {
            create: true,
            after_seq: HEAD,
            ..named
        };
        check(&Case {
            scopes: &["*"],
            ..fresh
        });
        check(&Case {
            scopes: &["*"],
            bound: "me",
            moves: Some(("me", "c")),
            ..fresh
        });
        check(&Case {
            scopes: &["*"],
            cursor: Some((12, true)),
            after_seq: 12,
            ..named
        });
        // The first session on one mailbox begins at that mailbox's cursor, or at the oldest mail.
        check(&Case {
            create: true,
            fallback: Some(33),
            after_seq: 33,
            ..named
        });
        check(&Case { create: true, ..named });
        check(&Case {
            cursor: Some((50, false)),
            fallback: Some(33),
            after_seq: 50,
            ..named
        });
    }

    #[test]
    fn client_ids_are_bounded() {
        assert_eq!(client_id(None), Ok(None));
        assert_eq!(client_id(Some("")), Ok(None));
        assert_eq!(client_id(Some("my stream/ä")), Ok(Some("my stream/ä")));
        assert!(client_id(Some("a\nb")).is_err());
        assert!(client_id(Some(&"x".repeat(limits::CLIENT_ID_BYTES_MAX + 1))).is_err());
    }

    fn named<'a>(scopes: &'a [Scope], client_id: &'a str) -> Request<'a> {
        Request {
            team: TEAM,
            bound_agent: "",
            scopes,
            client_id: Some(client_id),
        }
    }

    #[test]
    fn a_use_is_recorded_when_the_last_record_is_old() {
        let scopes = parse_requested(&["*".to_owned()]).unwrap();
        let touch = |used_ct_ms, cluster_ms| {
            let cursor = Some(record::Cursor {
                used_ct_ms,
                ..record::Cursor::default()
            });
            let rows = Rows {
                cursor,
                cluster_ms,
                ..Rows::default()
            };
            named(&scopes, "c").start(&rows).unwrap().touch
        };
        assert!(!touch(1_000, 1_000 + limits::CURSOR_TOUCH_MS - 1));
        assert!(touch(1_000, 1_000 + limits::CURSOR_TOUCH_MS));
        assert!(
            !touch(2_000, 1_000),
            "time never goes back, but a sum must not overflow"
        );
        assert!(
            touch(0, limits::CURSOR_TOUCH_MS),
            "a cursor of an older version has no record of its use"
        );
    }

    #[test]
    fn a_team_at_its_limit_keeps_its_cursors_and_gets_no_more() {
        let (wide, mailbox) = (["*".to_owned()], ["agent_to:a".to_owned()]);
        for scopes in [&wide, &mailbox] {
            let scopes = parse_requested(scopes).unwrap();
            let full = Rows {
                cursors: limits::CURSORS_MAX,
                last_seq: HEAD,
                ..Rows::default()
            };
            let refusal = named(&scopes, "new").start(&full).unwrap_err();
            assert!(refusal.contains("10000") && refusal.contains("60 days"), "{refusal}");
            let known = Rows {
                cursor: Some(record::Cursor::default()),
                ..full.clone()
            };
            assert!(named(&scopes, "known").start(&known).is_ok());
            let nameless = Request {
                client_id: None,
                ..named(&scopes, "")
            };
            assert!(nameless.start(&full).is_ok());
            let one_left = Rows {
                cursors: limits::CURSORS_MAX - 1,
                ..full
            };
            assert!(named(&scopes, "new").start(&one_left).unwrap().create);
        }
    }
}
