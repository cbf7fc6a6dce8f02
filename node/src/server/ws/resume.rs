//! Where a session begins and which cursor it moves: a pure decision over the *requested* scopes, the client id
//! and a few rows, so that a table of cases can hold all of it.
//!
//! | client id | requested scopes | cursor | the first time it begins |
//! |---|---|---|---|
//! | none | one `agent_to:X` | X's mailbox | at the oldest mail |
//! | none | anything else | none: live only | at now |
//! | named | one `agent_to:X` | its own | at X's mailbox cursor |
//! | named | anything else | its own | at now |
//!
//! The requested scopes decide, not what the key leaves of them: a management command asks for `*` on a fresh
//! socket and must neither replay an agent's mail nor move its cursor, whatever key it holds.
//!
//! Two listeners of one agent without a client id share its mailbox cursor, as with the vendor's server: what one has
//! acknowledged, the other does not get again after a break. A client id gives a listener a cursor of its own.
//!
//! A cursor that nobody uses is forgotten after [`limits::CURSOR_TTL_MS`]. A mailbox then begins at its oldest mail
//! again, all of it younger; a named client is new again.

use agentpost_proto::id::TeamId;
use agentpost_proto::{limits, record};
use agentpost_raft_store::core::kv::{Fatal, Kv};
use agentpost_raft_store::core::query;

use super::scope::Scope;

/// A cursor in the replicated state.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CursorName {
    /// Whose.
    pub team: TeamId,
    /// Of a mailbox cursor: the inbox. Of a named one: the agent that the key is bound to, or empty.
    pub agent: String,
    /// Empty for a mailbox cursor.
    pub client_id: String,
}

/// What the decision needs to know about a `connect`.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// The team of the key.
    pub team: TeamId,
    /// The agent that the key is bound to, or empty.
    pub bound_agent: &'a str,
    /// As requested, each once.
    pub scopes: &'a [Scope],
    /// As requested; see [`client_id`].
    pub client_id: Option<&'a str>,
}

/// The rows that the decision reads; absent cursors were never moved.
#[derive(Debug, Clone, Default)]
pub struct Rows {
    /// The cursor that [`Request::cursor`] names.
    pub cursor: Option<record::Cursor>,
    /// The cursor that [`Request::fallback`] names.
    pub fallback: Option<record::Cursor>,
    /// The team's newest seq.
    pub last_seq: u64,
    /// How many named cursors the team has.
    pub cursors: u32,
    /// Cluster time.
    pub cluster_ms: u64,
}

impl Rows {
    /// What a state has of them.
    pub fn read(kv: &impl Kv, request: &Request<'_>) -> Result<Self, Fatal> {
        let frozen = kv.frozen();
        let kv = &frozen.as_ref();
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

/// Where to begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// Events after this seq are sent; it is also the `last_seq` of the `connected` frame.
    pub after_seq: u64,
    /// The cursor has seen a real ack: answered pings do not move it any more.
    pub acked: bool,
    /// The cursor does not exist and has to be written before the session begins. Otherwise a client that is
    /// cut off before its first ack would begin at a later "now" and miss what lies between.
    pub create: bool,
    /// The last note of the cursor's use is so old that this one has to be noted.
    pub touch: bool,
}

/// Checks a client id. An empty one counts as none.
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
    /// The cursor that this session reads and moves; none for a live one.
    pub fn cursor(&self) -> Option<CursorName> {
        match self.client_id {
            Some(id) => Some(self.name(self.bound_agent, id)),
            None => self.mailbox().map(|agent| self.name(agent, "")),
        }
    }

    /// The cursor at which a named client begins the first time.
    pub fn fallback(&self) -> Option<CursorName> {
        self.client_id?;
        self.mailbox().map(|agent| self.name(agent, ""))
    }

    /// The agent whose mailbox this is, if it was asked for alone.
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

    /// The decision. The error is for a client that asks for a cursor more than its team may have.
    pub fn start(&self, rows: &Rows) -> Result<Start, String> {
        // A cursor never lies behind the last message; a damaged one must not silence its session.
        let seq = |cursor: &record::Cursor| cursor.seq.min(rows.last_seq);
        if let (Some(_), Some(cursor)) = (self.cursor(), &rows.cursor) {
            return Ok(Start {
                after_seq: seq(cursor),
                acked: cursor.acked,
                create: false,
                // One that was made before there were notes has none.
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

/// Why a new client id is refused, and what to do.
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
        /// The name of the cursor that moves: (agent, client id).
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
        // a cursor beyond the newest message
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
        // the first time on one mailbox: from that mailbox's cursor, or from the oldest mail
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
    fn a_use_is_noted_when_the_last_note_is_old() {
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
            "a cursor of an older version has no note"
        );
    }

    #[test]
    fn a_team_with_all_its_cursors_keeps_them_and_gets_no_more() {
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
