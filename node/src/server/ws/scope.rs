//! The scopes of a session: their forms, and the narrowing of the requested scopes to those that a key allows.
//!
//! All decisions are about sets of events. A scope *covers* another when it matches every event that the other matches.
//! A key leaves the requested scopes that one of its own scopes covers, and its own scopes that a requested one covers
//! (so `*` narrows to everything that the key may see). Of two `source:` scopes of which neither covers the other it
//! leaves the intersection. An inbox is left whole or not at all, because a session that sees only part of an inbox
//! would move its cursor past the rest.

use std::fmt;

use agentpost_proto::cloudevent::EVENT_TYPE;
use agentpost_proto::id::AgentId;
use agentpost_proto::{limits, record};

/// One term of a subscription; a session gets the events that match any of its scopes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// `*`: every event of the team.
    All,
    /// `source:<n>`: the source contains n, or the event type does (a vendor's client that asks for
    /// `source:github` expects `com.github.push` too).
    Source(String),
    /// `type:<n>`: the event type contains n.
    Type(String),
    /// `agent_to:<id>`: mail to exactly this agent.
    AgentTo(AgentId),
    /// The source contains a name of each list. It cannot be requested: it is the intersection of `source:` scopes.
    Common {
        /// The names in the requested scopes.
        asked: Vec<String>,
        /// The names in the key's scopes.
        allowed: Vec<String>,
    },
}

/// The reason why a list of scopes is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScopeError {
    /// A scope has an unknown form, or there are too many scopes.
    #[error("{0}")]
    Invalid(String),
    /// No scope was requested, or the key allows none of them.
    #[error("{0}")]
    NothingAllowed(String),
}

impl Scope {
    /// Parses one scope.
    pub fn parse(text: &str) -> Result<Self, ScopeError> {
        let unknown = || {
            let expected = "unknown scope: expected *, source:<name>, type:<name> or agent_to:<agent id>";
            ScopeError::Invalid(expected.to_owned())
        };
        if text == "*" {
            return Ok(Scope::All);
        }
        if text.len() > limits::SCOPE_BYTES_MAX {
            return Err(unknown());
        }
        match text.split_once(':') {
            Some((_, "")) | None => Err(unknown()),
            Some(("source", name)) => Ok(Scope::Source(name.to_owned())),
            Some(("type", name)) => Ok(Scope::Type(name.to_owned())),
            Some(("agent_to", id)) => id.parse().map(Scope::AgentTo).map_err(|_| unknown()),
            Some(_) => Err(unknown()),
        }
    }

    /// Whether the scope matches this message, whose source begins with `source_prefix`.
    pub fn matches(&self, message: &record::Message, source_prefix: &str) -> bool {
        match self {
            Scope::All => true,
            Scope::Source(name) => {
                EVENT_TYPE.contains(name.as_str()) || source_contains(source_prefix, &message.from, name)
            }
            Scope::Type(name) => EVENT_TYPE.contains(name.as_str()),
            Scope::AgentTo(id) => message.to == id.as_str(),
            Scope::Common { asked, allowed } => {
                let one_of = |names: &[String]| {
                    let mut names = names.iter();
                    names.any(|name| source_contains(source_prefix, &message.from, name))
                };
                one_of(asked) && one_of(allowed)
            }
        }
    }

    /// Whether the scope matches all mail of a team.
    pub fn is_total(&self) -> bool {
        match self {
            Scope::All => true,
            Scope::Source(name) | Scope::Type(name) => EVENT_TYPE.contains(name.as_str()),
            Scope::AgentTo(_) | Scope::Common { .. } => false,
        }
    }

    /// Whether this scope matches every event that `other` matches.
    fn covers(&self, other: &Scope) -> bool {
        match (self, other) {
            (Scope::All, _) => true,
            (_, Scope::All) => false,
            _ if self.is_total() => true,
            (Scope::Source(mine), Scope::Source(name) | Scope::Type(name)) => name.contains(mine.as_str()),
            (Scope::Type(mine), Scope::Type(name)) => name.contains(mine.as_str()),
            (Scope::AgentTo(mine), Scope::AgentTo(id)) => mine == id,
            _ => false,
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scope::All => f.write_str("*"),
            Scope::Source(name) => write!(f, "source:{name}"),
            Scope::Type(name) => write!(f, "type:{name}"),
            Scope::AgentTo(id) => write!(f, "agent_to:{id}"),
            Scope::Common { asked, allowed } => {
                write!(
                    f,
                    "source:({}) and source:({})",
                    asked.join(" or "),
                    allowed.join(" or ")
                )
            }
        }
    }
}

/// `(prefix + from).contains(name)` without building the text for each event.
fn source_contains(prefix: &str, from: &str, name: &str) -> bool {
    if from.contains(name) || prefix.contains(name) {
        return true;
    }
    // The name may span both parts: it begins at the end of the prefix and ends at the start of the sender.
    name.char_indices()
        .skip(1)
        .any(|(at, _)| prefix.ends_with(&name[..at]) && from.starts_with(&name[at..]))
}

/// Parses the scopes of a `connect` frame and drops repetitions.
pub fn parse_requested(texts: &[String]) -> Result<Vec<Scope>, ScopeError> {
    if texts.is_empty() {
        let what = "scopes must name at least one of *, source:, type: or agent_to:";
        return Err(ScopeError::NothingAllowed(what.to_owned()));
    }
    if texts.len() > limits::SCOPES_MAX {
        return Err(ScopeError::Invalid(format!("at most {} scopes", limits::SCOPES_MAX)));
    }
    let mut scopes = Vec::with_capacity(texts.len());
    for text in texts {
        let scope = Scope::parse(text)?;
        if !scopes.contains(&scope) {
            scopes.push(scope);
        }
    }
    Ok(scopes)
}

/// The agents whose inboxes are among the scopes, without repetitions if the scopes have none.
pub fn agents(scopes: &[Scope]) -> Vec<AgentId> {
    let agent = |scope: &Scope| match scope {
        Scope::AgentTo(agent) => Some(agent.clone()),
        _ => None,
    };
    scopes.iter().filter_map(agent).collect()
}

/// Narrows the requested scopes by the scopes and the binding of a key. A key scope that does not parse allows nothing.
pub fn narrow(requested: &[Scope], key_scopes: &[String], bound: Option<&AgentId>) -> Result<Vec<Scope>, ScopeError> {
    let allowed: Vec<Scope> = key_scopes.iter().filter_map(|text| Scope::parse(text).ok()).collect();
    let left = match bound {
        None => intersect(requested, &allowed),
        Some(agent) => narrow_bound(requested, &allowed, agent),
    };
    if left.is_empty() {
        let what = "this key allows none of the requested scopes";
        // The holder of the key may learn its agent: listening as another agent is the usual cause.
        return Err(ScopeError::NothingAllowed(match bound {
            None => what.to_owned(),
            Some(agent) => format!("{what}: it is bound to agent {agent}"),
        }));
    }
    Ok(left)
}

fn intersect(requested: &[Scope], allowed: &[Scope]) -> Vec<Scope> {
    let covered = |scope: &&Scope, by: &[Scope]| by.iter().any(|wide| wide.covers(scope));
    let (asked, asked_rest): (Vec<&Scope>, Vec<&Scope>) = requested.iter().partition(|scope| covered(scope, allowed));
    let (own, own_rest): (Vec<&Scope>, Vec<&Scope>) = allowed.iter().partition(|scope| covered(scope, requested));
    let mut left: Vec<Scope> = Vec::new();
    for scope in asked.into_iter().chain(own) {
        if !left.contains(scope) {
            left.push(scope.clone());
        }
    }
    let (asked, allowed) = (sources(&asked_rest), sources(&own_rest));
    if !asked.is_empty() && !allowed.is_empty() {
        left.push(Scope::Common { asked, allowed });
    }
    left
}

fn sources(scopes: &[&Scope]) -> Vec<String> {
    let source = |scope: &&Scope| match scope {
        Scope::Source(name) => Some(name.clone()),
        _ => None,
    };
    scopes.iter().filter_map(source).collect()
}

/// Narrows a scope for a bound key, which reads only its own inbox: a scope that covers the inbox narrows to it.
fn narrow_bound(requested: &[Scope], allowed: &[Scope], agent: &AgentId) -> Vec<Scope> {
    let own = Scope::AgentTo(agent.clone());
    let asked = requested.iter().any(|scope| scope.covers(&own));
    let may = allowed.iter().any(|mine| mine.covers(&own));
    if asked && may { vec![own] } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const PREFIX: &str = "https://getkite.sh/agents/";

    fn scopes(texts: &[&str]) -> Vec<Scope> {
        parse_requested(&texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    fn mail(from: &str, to: &str) -> record::Message {
        record::Message {
            from: from.to_owned(),
            to: to.to_owned(),
            r#type: "task.done".to_owned(),
            ..Default::default()
        }
    }

    #[test]
    fn the_forms_of_a_scope() {
        assert_eq!(Scope::parse("*"), Ok(Scope::All));
        assert_eq!(Scope::parse("source:git:hub"), Ok(Scope::Source("git:hub".to_owned())));
        assert_eq!(Scope::parse("type:push"), Ok(Scope::Type("push".to_owned())));
        assert_eq!(Scope::parse("agent_to:a:b"), Ok(Scope::AgentTo("a:b".parse().unwrap())));
        let long = format!("type:{}", "x".repeat(limits::SCOPE_BYTES_MAX));
        for bad in [
            "",
            "**",
            "agent_to:",
            "agent_to:a b",
            "source:",
            "type:",
            "topic:x",
            "agent-alpha",
            "AGENT_TO:a",
            &long,
        ] {
            assert!(matches!(Scope::parse(bad), Err(ScopeError::Invalid(_))), "{bad}");
        }
        for scope in ["*", "source:a", "type:b", "agent_to:c"] {
            assert_eq!(Scope::parse(scope).unwrap().to_string(), scope);
        }
    }

    #[test]
    fn a_list_is_bounded_and_each_scope_counts_once() {
        assert!(matches!(parse_requested(&[]), Err(ScopeError::NothingAllowed(_))));
        assert_eq!(scopes(&["agent_to:a", "agent_to:a"]).len(), 1);
        let many = vec!["*".to_owned(); limits::SCOPES_MAX + 1];
        assert!(matches!(parse_requested(&many), Err(ScopeError::Invalid(_))));
    }

    #[test]
    fn a_scope_matches_its_events() {
        let message = mail("agent-beta", "agent-alpha");
        let table = [
            ("*", true),
            ("agent_to:agent-alpha", true),
            ("agent_to:agent-alph", false),
            ("agent_to:Agent-alpha", false),
            ("source:beta", true),
            ("source:getkite", true),
            ("source:agents/agent-b", true), // spans prefix and sender
            ("source:agents/beta", false),
            ("source:kite.agent", true), // the event type also matches `source:`
            ("source:alpha", false),
            ("type:com.kite", true),
            ("type:agent.message", true),
            ("type:task.done", false), // the Abba Baba type travels as data.type
            ("type:push", false),
        ];
        for (scope, expected) in table {
            assert_eq!(
                Scope::parse(scope).unwrap().matches(&message, PREFIX),
                expected,
                "{scope}"
            );
        }
        let common = Scope::Common {
            asked: vec!["delta".to_owned(), "beta".to_owned()],
            allowed: vec!["agents/agent-".to_owned()],
        };
        for (from, expected) in [("agent-beta", true), ("agent-gamma", false), ("beta", false)] {
            assert_eq!(common.matches(&mail(from, "x"), PREFIX), expected, "{from}");
        }
        let odd = mail("ä-b", "x");
        assert!(Scope::parse("source:agents/ä-").unwrap().matches(&odd, PREFIX));
    }

    #[test]
    fn a_key_narrows_the_requested_scopes() {
        /// The requested scopes, the bound agent, the key's scopes, and the result.
        type Case = (
            &'static [&'static str],
            &'static str,
            &'static [&'static str],
            &'static [&'static str],
        );
        let table: &[Case] = &[
            (&["*"], "", &["*"], &["*"]),
            (&["agent_to:a", "type:x"], "", &["*"], &["agent_to:a", "type:x"]),
            (&["*"], "", &["agent_to:a", "source:b"], &["agent_to:a", "source:b"]),
            (&["agent_to:a", "agent_to:b"], "", &["agent_to:b"], &["agent_to:b"]),
            (&["source:github"], "", &["source:git"], &["source:github"]),
            (&["source:git"], "", &["source:github"], &["source:github"]),
            (&["type:git.push"], "", &["source:git"], &["type:git.push"]),
            (&["source:git.push"], "", &["type:git"], &[]),
            (&["agent_to:a"], "", &["type:kite"], &["agent_to:a"]),
            (&["agent_to:a"], "", &["type:github"], &[]),
            (&["agent_to:a"], "", &["agent_to:b"], &[]),
            // All events have one type, so a scope that matches it covers every other scope, but it is not a request
            // for all.
            (&["source:beta"], "", &["type:com.kite"], &["source:beta"]),
            (&["type:agent.message"], "", &["source:beta"], &["source:beta"]),
            (
                &["source:kite"],
                "",
                &["source:beta", "agent_to:a"],
                &["source:beta", "agent_to:a"],
            ),
            (&["*"], "", &["type:kite"], &["type:kite"]),
            // Overlapping sources have an intersection; inboxes and other types have none.
            (
                &["source:alpha"],
                "",
                &["source:team-"],
                &["source:(alpha) and source:(team-)"],
            ),
            (
                &["source:x", "source:y-1", "source:z"],
                "",
                &["source:y", "source:w", "source:z-9"],
                &["source:y-1", "source:z-9", "source:(x or z) and source:(y or w)"],
            ),
            (&["agent_to:a"], "", &["source:beta"], &[]),
            (&["source:beta"], "", &["agent_to:a"], &[]),
            (&["type:push"], "", &["source:github"], &[]),
            (&["*"], "", &[], &[]),
            (&["*"], "", &["rubbish"], &[]),
            (&["*"], "me", &["*"], &["agent_to:me"]),
            (&["agent_to:me"], "me", &["*"], &["agent_to:me"]),
            (&["agent_to:you", "*"], "me", &["*"], &["agent_to:me"]),
            (&["agent_to:you"], "me", &["*"], &[]),
            (&["type:com.kite"], "me", &["*"], &["agent_to:me"]),
            (&["source:kite", "type:push"], "me", &["source:agent"], &["agent_to:me"]),
            (&["source:you"], "me", &["*"], &[]),
            (&["*"], "me", &["agent_to:you"], &[]),
            (&["*"], "me", &["agent_to:me"], &["agent_to:me"]),
        ];
        for (requested, agent, allowed, left) in table {
            let bound = agent.parse().ok();
            let key_scopes: Vec<String> = allowed.iter().map(|s| (*s).to_owned()).collect();
            let result = narrow(&scopes(requested), &key_scopes, bound.as_ref());
            let shown: Vec<String> = result.unwrap_or_default().iter().map(Scope::to_string).collect();
            assert_eq!(shown, *left, "{requested:?} with a key of {agent:?} {allowed:?}");
        }
    }

    #[test]
    fn the_refusal_of_a_bound_key_names_its_agent() {
        let told = |bound: &str| {
            let bound = bound.parse().ok();
            narrow(&scopes(&["agent_to:you"]), &["agent_to:me".to_owned()], bound.as_ref())
                .unwrap_err()
                .to_string()
        };
        assert_eq!(told(""), "this key allows none of the requested scopes");
        assert_eq!(
            told("me"),
            "this key allows none of the requested scopes: it is bound to agent me"
        );
    }
}
