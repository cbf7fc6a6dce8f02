//! Environment variables, and below them the variables of a `.env` file in the current folder.
//!
//! The file is parsed here, not by `dotenvy`: that crate refuses an unquoted value with spaces, which
//! `AGENTPOST_URLS` may be, replaces `$NAME` by variables of the process, and loses the rest of the file after a
//! single apostrophe.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::Context;

/// The variables of the process and of the file. Those of the process win. An empty value counts as not set.
pub struct Environment {
    variables: BTreeMap<String, String>,
}

impl Environment {
    /// Reads the environment of the process and `.env`, if that file exists.
    pub fn load() -> anyhow::Result<Self> {
        let text = match std::fs::read_to_string(Path::new(".env")) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => String::new(),
            Err(e) => return Err(e).context("cannot read .env"),
        };
        let own = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
        Ok(Self::of(&text, own))
    }

    /// The variables of a file's text and of a process.
    pub fn of(file: &str, own: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut variables: BTreeMap<_, _> = file.lines().filter_map(assignment).collect();
        variables.extend(own);
        Environment { variables }
    }

    /// A variable, or `None` if it is unset or blank.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.variables
            .get(name)
            .map(|value| value.trim())
            .filter(|value| !value.is_empty())
    }
}

/// Parses `NAME=value`. `export` before it, quotes around the value and a comment after it are allowed; nothing is
/// expanded. Other lines are `None`.
fn assignment(line: &str) -> Option<(String, String)> {
    let line = line.trim();
    let line = line.strip_prefix("export ").unwrap_or(line);
    let (name, value) = line.split_once('=')?;
    let name = name.trim();
    if name.is_empty() || name.starts_with('#') {
        return None;
    }
    let value = value.trim();
    let value = match value.chars().next() {
        Some(quote @ ('"' | '\'')) => value[1..].split(quote).next().unwrap_or_default(),
        _ => value.split(" #").next().unwrap_or_default().trim_end(),
    };
    Some((name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_as_shells_write_it() {
        let file =
            "# comment\nA=1\nexport B=\"two words\" # why\nC='#x'\n D = 4 # four\nE=http://h/#top\n=x\nnothing\n#F=1\n";
        let environment = Environment::of(file, []);
        for (name, value) in [
            ("A", "1"),
            ("B", "two words"),
            ("C", "#x"),
            ("D", "4"),
            ("E", "http://h/#top"),
        ] {
            assert_eq!(environment.get(name), Some(value), "{name}");
        }
        assert_eq!(environment.get("F"), None);
    }

    #[test]
    fn the_process_wins_over_the_file_and_blank_means_unset() {
        let environment = Environment::of("A=file\nB=file", [("A".to_owned(), "own".to_owned())]);
        assert_eq!(environment.get("A"), Some("own"));
        assert_eq!(environment.get("B"), Some("file"));
        let environment = Environment::of("", [("A".to_owned(), "  ".to_owned())]);
        assert_eq!(environment.get("A"), None);
    }
}
