//! The variables that [`crate::from_env`] reads.

use crate::{Agentpost, Builder, Error};

const DEFAULT_URL: &str = "http://127.0.0.1:7700";

/// Settings as the variables say. `variable` looks one up.
pub(crate) fn builder(variable: impl Fn(&str) -> Option<String>) -> Result<Builder, Error> {
    let set = |name: &str| {
        let value = variable(name)?.trim().to_owned();
        (!value.is_empty()).then_some(value)
    };
    let key = set("KITE_API_KEY").or_else(|| set("AGENTPOST_ADMIN_KEY"));
    let key = key.ok_or_else(|| Error::Invalid("no API key: set KITE_API_KEY".to_owned()))?;
    let urls = set("AGENTPOST_URLS").unwrap_or_else(|| DEFAULT_URL.to_owned());
    let builder = Agentpost::builder(urls).key(key);
    Ok(match set("KITE_TEAM_ID") {
        Some(team) => builder.team(team),
        None => builder,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Result<Agentpost, Error> {
        let find = |name: &str| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        builder(find)?.build()
    }

    #[test]
    fn a_key_is_needed_and_the_rest_has_defaults() {
        for missing in [&[][..], &[("KITE_API_KEY", " ")], &[("KITE_TEAM_ID", "team_1")]] {
            assert!(matches!(of(missing), Err(Error::Invalid(_))), "{missing:?}");
        }
        let post = of(&[("KITE_API_KEY", "k"), ("KITE_TEAM_ID", "")]).unwrap();
        assert_eq!(
            (post.urls(), post.team()),
            (&["http://127.0.0.1:7700".to_owned()][..], None)
        );
        let post = of(&[("AGENTPOST_ADMIN_KEY", "o"), ("AGENTPOST_URLS", "http://a,http://b")]).unwrap();
        assert_eq!(post.urls(), ["http://a", "http://b"]);
        assert_eq!(&*post.socket().key, "o");
    }

    #[test]
    fn an_agents_key_comes_before_an_operators() {
        let all = [
            ("AGENTPOST_ADMIN_KEY", "o"),
            ("KITE_API_KEY", " k\n"),
            ("KITE_TEAM_ID", "team_1"),
            ("AGENTPOST_URLS", "http://post.example"),
        ];
        let post = of(&all).unwrap();
        assert_eq!((&*post.socket().key, post.team()), ("k", Some("team_1")));
        assert_eq!(post.socket().urls, ["ws://post.example/ws"]);
    }
}
