//! The two addresses of a node: its HTTP base and its WebSocket URL. Each can be derived from the other.

use crate::Error;

/// The HTTP base of a WebSocket URL: `wss` becomes `https`, `ws` becomes `http`, and a trailing `/ws` is removed.
///
/// # Errors
/// [`Error::Invalid`] if it is no ws, wss, http or https URL.
///
/// ```
/// assert_eq!(agentpost::urls::http_base("wss://api.getkite.sh/ws").unwrap(), "https://api.getkite.sh");
/// ```
pub fn http_base(ws_url: &str) -> Result<String, Error> {
    let text = ws_url.trim().trim_end_matches('/');
    let text = text.strip_suffix("/ws").unwrap_or(text).trim_end_matches('/');
    let base = match text.split_once("://") {
        Some(("wss" | "https", rest)) => format!("https://{rest}"),
        Some(("ws" | "http", rest)) => format!("http://{rest}"),
        _ => return Err(Error::Invalid(format!("`{ws_url}` is not a ws:// or wss:// URL"))),
    };
    checked(&base, ws_url)
}

/// The WebSocket URL of an HTTP base: `http` becomes `ws`, `https` becomes `wss`, and `/ws` is appended.
///
/// # Errors
/// [`Error::Invalid`] if it is no http or https URL.
///
/// ```
/// assert_eq!(agentpost::urls::ws_url("http://127.0.0.1:7700").unwrap(), "ws://127.0.0.1:7700/ws");
/// ```
pub fn ws_url(base: &str) -> Result<String, Error> {
    let base = parse_base(base)?;
    Ok(format!("ws{}/ws", base.strip_prefix("http").unwrap_or(&base)))
}

/// Checks an HTTP base and removes its trailing slashes.
///
/// # Errors
/// [`Error::Invalid`] if it is no http or https URL with a host and without query and fragment.
pub fn parse_base(text: &str) -> Result<String, Error> {
    let base = text.trim().trim_end_matches('/');
    if !base.starts_with("http://") && !base.starts_with("https://") {
        return Err(Error::Invalid(format!("`{text}` is not an http:// or https:// URL")));
    }
    checked(base, text)
}

/// Reads a list of HTTP bases, separated by commas or spaces, as `AGENTPOST_URLS` holds them. Each base is returned
/// once, in the order of the list.
///
/// ```
/// let bases = agentpost::urls::parse_bases("http://a:7700, http://b:7700").unwrap();
/// assert_eq!(bases, ["http://a:7700", "http://b:7700"]);
/// ```
///
/// # Errors
/// [`Error::Invalid`] if the list is empty, or if one of its parts is no http:// or https:// URL.
pub fn parse_bases(text: &str) -> Result<Vec<String>, Error> {
    let mut bases = Vec::new();
    let parts = text.split(|c: char| c == ',' || c.is_whitespace());
    for part in parts.filter(|part| !part.is_empty()) {
        let base = parse_base(part)?;
        if !bases.contains(&base) {
            bases.push(base);
        }
    }
    if bases.is_empty() {
        return Err(Error::Invalid("no server URL given".to_owned()));
    }
    Ok(bases)
}

fn checked(base: &str, shown: &str) -> Result<String, Error> {
    let url = reqwest::Url::parse(base).map_err(|e| Error::Invalid(format!("`{shown}` is not a URL: {e}")))?;
    if url.host_str().is_none_or(str::is_empty) {
        return Err(Error::Invalid(format!("`{shown}` has no host")));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(Error::Invalid(format!("`{shown}` must not have a query or fragment")));
    }
    Ok(base.to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_http_base_follows_from_the_websocket_url() {
        for (ws, http) in [
            ("wss://api.getkite.sh/ws", "https://api.getkite.sh"),
            ("ws://localhost:7700/ws", "http://localhost:7700"),
            (" ws://localhost:7700/ws/ ", "http://localhost:7700"),
            ("wss://example.org", "https://example.org"),
            ("https://example.org/post/ws", "https://example.org/post"),
        ] {
            assert_eq!(http_base(ws).unwrap(), http, "{ws}");
        }
        for bad in ["", "localhost:7700", "ftp://a/ws", "ws://", "ws://a/ws?x=1"] {
            assert!(http_base(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_websocket_url_follows_from_the_http_base() {
        assert_eq!(ws_url("https://example.org/").unwrap(), "wss://example.org/ws");
        assert_eq!(ws_url("http://127.0.0.1:7701").unwrap(), "ws://127.0.0.1:7701/ws");
        assert!(ws_url("ws://a").is_err());
    }

    #[test]
    fn a_list_of_bases_is_separated_by_commas_or_blanks_and_names_each_once() {
        for (text, expected) in [
            ("http://a:1", vec!["http://a:1"]),
            (
                " http://a:1 http://b:2/  http://a:1/ ",
                vec!["http://a:1", "http://b:2"],
            ),
            ("http://a:1,http://b:2", vec!["http://a:1", "http://b:2"]),
            (
                "https://a/post/, http://b:2\n,http://c ,",
                vec!["https://a/post", "http://b:2", "http://c"],
            ),
            ("http://[::1]:7700", vec!["http://[::1]:7700"]),
        ] {
            assert_eq!(parse_bases(text).unwrap(), expected, "{text}");
        }
        for bad in [
            "",
            "  ",
            " , ",
            "http://a b",
            "ws://a:1/ws",
            "a:1",
            "http://a,ws://b",
            "http://",
            "http://a?x=1",
        ] {
            assert!(matches!(parse_bases(bad), Err(Error::Invalid(_))), "{bad}");
        }
    }
}
