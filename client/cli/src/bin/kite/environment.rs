//! Environment variables, with those of a `.env` file in the current folder behind them.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::Context;

/// Where variables are looked up. The process's own win over the file's; an empty value counts as not set.
pub struct Environment {
    variables: BTreeMap<String, String>,
}

impl Environment {
    /// Reads `.env`, if there is one, and the process's environment.
    pub fn load() -> anyhow::Result<Self> {
        let text = match std::fs::read_to_string(Path::new(".env")) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => String::new(),
            Err(e) => return Err(e).context("cannot read .env"),
        };
        let own = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
        Ok(Self::of(&text, own))
    }

    /// The same from given parts.
    pub fn of(file: &str, own: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut variables: BTreeMap<_, _> = file.lines().filter_map(assignment).collect();
        variables.extend(own);
        Environment { variables }
    }

    /// A variable that is set and not blank.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.variables
            .get(name)
            .map(|value| value.trim())
            .filter(|value| !value.is_empty())
    }
}

/// `NAME=value`, with an optional `export`, quotes around the value or a comment after it. Nothing is expanded.
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
