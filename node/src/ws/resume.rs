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

use agentpost_proto::id::TeamId;
use agentpost_proto::{limits, record};

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
    /// Whether this goes on where something was left, so that what retention removed since is a loss to report.
    pub resumed: bool,
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

    /// The decision.
    pub fn start(&self, rows: &Rows) -> Start {
        // A cursor never lies behind the last message; a damaged one must not silence its session.
        let seq = |cursor: &record::Cursor| cursor.seq.min(rows.last_seq);
        if let (Some(_), Some(cursor)) = (self.cursor(), &rows.cursor) {
            return Start {
                after_seq: seq(cursor),
                acked: cursor.acked,
                create: false,
                resumed: true,
            };
        }
        match (self.client_id, self.mailbox()) {
            (None, None) => Start {
                after_seq: rows.last_seq,
                acked: false,
                create: false,
                resumed: false,
            },
            (None, Some(_)) => Start {
                after_seq: 0,
                acked: false,
                create: false,
                resumed: true,
            },
            (Some(_), Some(_)) => {
                let after_seq = rows.fallback.as_ref().map_or(0, seq);
                Start {
                    after_seq,
                    acked: false,
                    create: true,
                    resumed: true,
                }
            }
            (Some(_), None) => Start {
                after_seq: rows.last_seq,
                acked: false,
                create: true,
                resumed: false,
            },
        }
    }
}

/// The text of a `cursor_expired` frame if mail after `start` is gone. `max_removed_seq` is that of the inbox
/// for a session on one inbox, that of the team otherwise.
pub fn expired(start: &Start, max_removed_seq: u64) -> Option<String> {
    let lost = start.resumed && start.after_seq < max_removed_seq;
    lost.then(|| {
        format!(
            "events up to {max_removed_seq} may have been removed by retention; resuming after {}",
            start.after_seq
        )
    })
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
        resumed: bool,
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
        resumed: true,
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
        };
        let about = format!("{:?} {:?} bound to {:?}", case.scopes, case.client_id, case.bound);
        let name = request.cursor().map(|c| (c.agent, c.client_id));
        assert_eq!(name, case.moves.map(|(a, c)| (a.to_owned(), c.to_owned())), "{about}");
        let start = request.start(&rows);
        assert_eq!(start.after_seq, case.after_seq, "{about}");
        assert_eq!(start.create, case.create, "{about}");
        assert_eq!(start.resumed, case.resumed, "{about}");
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
            resumed: false,
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
            resumed: false,
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

    #[test]
    fn only_a_resume_below_what_was_removed_is_a_loss() {
        let start = |after_seq, resumed| Start {
            after_seq,
            acked: false,
            create: false,
            resumed,
        };
        assert!(expired(&start(4, true), 5).is_some());
        assert!(expired(&start(5, true), 5).is_none());
        assert!(expired(&start(0, true), 0).is_none());
        assert!(expired(&start(4, false), 5).is_none());
    }
}
