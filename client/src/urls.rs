//! The two addresses of a node: the HTTP base and the WebSocket URL, each derived from the other.

use crate::Error;

/// The HTTP base of a WebSocket URL: `wss` becomes `https`, `ws` becomes `http`, a trailing `/ws` goes.
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

/// The WebSocket URL of an HTTP base.
///
/// ```
/// assert_eq!(agentpost::urls::ws_url("http://127.0.0.1:7700").unwrap(), "ws://127.0.0.1:7700/ws");
/// ```
pub fn ws_url(base: &str) -> Result<String, Error> {
    let base = parse_base(base)?;
    Ok(format!("ws{}/ws", base.strip_prefix("http").unwrap_or(&base)))
}

/// Checks an HTTP base and takes trailing slashes off it.
pub fn parse_base(text: &str) -> Result<String, Error> {
    let base = text.trim().trim_end_matches('/');
    if !base.starts_with("http://") && !base.starts_with("https://") {
        return Err(Error::Invalid(format!("`{text}` is not an http:// or https:// URL")));
    }
    checked(base, text)
}

/// Bases from a text with blanks between them, as `AGENTPOST_URLS` holds them; each once, in order.
pub fn parse_bases(text: &str) -> Result<Vec<String>, Error> {
    let mut bases = Vec::new();
    for part in text.split_whitespace() {
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
    fn a_list_of_bases_holds_each_once() {
        let bases = parse_bases(" http://a:1 http://b:2/  http://a:1/ ").unwrap();
        assert_eq!(bases, ["http://a:1", "http://b:2"]);
        assert!(parse_bases("  ").is_err());
        assert!(parse_bases("http://a b").is_err());
    }
}
