//! The configuration file that is shared with the vendor's command line: `[auth] api_key, team_id`,
//! `[server] url, http_base`, `[agent] id, name`. Other keys are left as they are.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use agentpost::api::kite::DeviceKey;
use anyhow::{Context, anyhow, bail};
use toml::{Table, Value};

/// The file's content and place.
pub struct Config {
    path: PathBuf,
    table: Table,
}

impl Config {
    /// `$XDG_CONFIG_HOME/kite/config.toml`, by default `~/.config/kite/config.toml`; on macOS the vendor's folder
    /// under `~/Library`.
    pub fn default_path() -> anyhow::Result<PathBuf> {
        let home = std::env::home_dir().filter(|home| home.is_absolute());
        let folder = if cfg!(target_os = "macos") {
            home.map(|home| home.join("Library/Application Support/dev.kite.kite"))
        } else {
            // A relative path is invalid by the base directory specification and is ignored.
            let named = std::env::var_os("XDG_CONFIG_HOME")
                .map(PathBuf::from)
                .filter(|path| path.is_absolute());
            named
                .or_else(|| home.map(|home| home.join(".config")))
                .map(|base| base.join("kite"))
        };
        let folder = folder.context("no home folder: set HOME or XDG_CONFIG_HOME")?;
        Ok(folder.join("config.toml"))
    }

    /// Reads a file; one that does not exist is empty.
    pub fn load(path: PathBuf) -> anyhow::Result<Self> {
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => String::new(),
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
        };
        let table = text
            .parse()
            .map_err(|e: toml::de::Error| anyhow!("{}: {}", path.display(), e.message()))?;
        Ok(Config { path, table })
    }

    /// A text value; blank counts as absent.
    pub fn text(&self, section: &str, key: &str) -> anyhow::Result<Option<&str>> {
        let of_wrong_type = |what: &str| anyhow!("{}: {what} has the wrong type", self.path.display());
        let Some(section_value) = self.table.get(section) else {
            return Ok(None);
        };
        let Some(table) = section_value.as_table() else {
            bail!(of_wrong_type(section))
        };
        let Some(value) = table.get(key) else { return Ok(None) };
        let text = value
            .as_str()
            .ok_or_else(|| of_wrong_type(&format!("{section}.{key}")))?;
        Ok(Some(text.trim()).filter(|text| !text.is_empty()))
    }

    /// The registered agent.
    pub fn agent_id(&self) -> anyhow::Result<&str> {
        self.text("agent", "id")?
            .ok_or_else(|| anyhow!("No agent registered. Run `kite agent register` first."))
    }

    /// Replaces the registered agent.
    pub fn set_agent(&mut self, id: &str, name: Option<&str>) {
        let agent = self.section("agent");
        agent.insert("id".to_owned(), Value::String(id.to_owned()));
        match name {
            Some(name) => agent.insert("name".to_owned(), Value::String(name.to_owned())),
            None => agent.remove("name"),
        };
    }

    /// Replaces the key, and the server that it is for.
    pub fn set_login(&mut self, key: &DeviceKey, ws_url: &str, http_base: &str) {
        let auth = self.section("auth");
        auth.insert("api_key".to_owned(), Value::String(key.api_key.0.clone()));
        auth.insert("team_id".to_owned(), Value::String(key.team_id.clone()));
        let server = self.section("server");
        server.insert("url".to_owned(), Value::String(ws_url.to_owned()));
        server.insert("http_base".to_owned(), Value::String(http_base.to_owned()));
    }

    /// Reads the file again, for a change after a long wait: others may have written to it.
    pub fn reload(&mut self) -> anyhow::Result<()> {
        *self = Config::load(self.path.clone())?;
        Ok(())
    }

    /// A section to write to; what stands in its place and is none is replaced.
    fn section(&mut self, name: &str) -> &mut Table {
        let value = self.table.entry(name).or_insert_with(|| Value::Table(Table::new()));
        if !value.is_table() {
            *value = Value::Table(Table::new());
        }
        match value {
            Value::Table(table) => table,
            _ => unreachable!("made a table above"),
        }
    }

    /// Writes the file in one step, readable by its owner only: it may hold a key.
    pub fn save(&self) -> anyhow::Result<()> {
        // A link stays a link.
        let path = fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let text = toml::to_string_pretty(&self.table)?;
        replace(&path, text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
    }
}

fn replace(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let folder = path.parent().context("it has no folder")?;
    fs::create_dir_all(folder)?;
    let draft = folder.join(format!(".config.toml.{}", std::process::id()));
    let written = write_private(&draft, content).and_then(|()| fs::rename(&draft, path));
    if written.is_err() {
        let _ = fs::remove_file(&draft);
    }
    written?;
    File::open(folder)?.sync_all()?;
    Ok(())
}

fn write_private(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn registering_keeps_what_else_stands_in_the_file() {
        let folder = folder();
        let path = folder.path().join("kite/config.toml");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(
            &path,
            "top = 1\n[auth]\napi_key = \"k\"\n[agent]\nid = \"old\"\nname = \"Old\"\ncolour = \"blue\"\n",
        )
        .unwrap();
        let mut config = Config::load(path.clone()).unwrap();
        config.set_agent("new", None);
        config.save().unwrap();

        let table: Table = fs::read_to_string(&path).unwrap().parse().unwrap();
        let expected: Table = "top = 1\n[auth]\napi_key = \"k\"\n[agent]\nid = \"new\"\ncolour = \"blue\"\n"
            .parse()
            .unwrap();
        assert_eq!(table, expected);
    }

    #[test]
    fn a_login_replaces_key_and_server_and_keeps_the_rest() {
        let folder = folder();
        let path = folder.path().join("config.toml");
        fs::write(&path, "[auth]\napi_key = \"old\"\n").unwrap();
        let mut config = Config::load(path.clone()).unwrap();
        // While the login waited.
        fs::write(
            &path,
            "server = 1\n[auth]\napi_key = \"old\"\nhook_token = \"h\"\n[agent]\nid = \"a\"\n",
        )
        .unwrap();
        let key = DeviceKey {
            api_key: "new".to_owned().into(),
            team_id: "t".to_owned(),
        };
        config.reload().unwrap();
        config.set_login(&key, "wss://post/ws", "https://post");
        config.save().unwrap();

        let table: Table = fs::read_to_string(&path).unwrap().parse().unwrap();
        let expected = "[auth]\napi_key = \"new\"\nhook_token = \"h\"\nteam_id = \"t\"\n[agent]\nid = \"a\"\n\
                        [server]\nurl = \"wss://post/ws\"\nhttp_base = \"https://post\"\n";
        assert_eq!(table, expected.parse().unwrap());
    }

    #[test]
    fn the_file_is_private_and_nothing_is_left_beside_it() {
        use std::os::unix::fs::PermissionsExt;
        let folder = folder();
        let path = folder.path().join("new/kite/config.toml");
        let mut config = Config::load(path.clone()).unwrap();
        config.set_agent("agent-alpha", Some("Agent Alpha"));
        config.save().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        assert_eq!(Config::load(path).unwrap().agent_id().unwrap(), "agent-alpha");
    }

    #[test]
    fn a_linked_file_stays_linked() {
        let folder = folder();
        let (real, link) = (folder.path().join("real.toml"), folder.path().join("config.toml"));
        fs::write(&real, "").unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let mut config = Config::load(link.clone()).unwrap();
        config.set_agent("a", None);
        config.save().unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert!(fs::read_to_string(&real).unwrap().contains("id = \"a\""));
    }

    #[test]
    fn mistakes_in_the_file_are_named() {
        let folder = folder();
        let path = folder.path().join("config.toml");
        fs::write(&path, "[auth\n").unwrap();
        assert!(Config::load(path.clone()).is_err());
        fs::write(&path, "[auth]\napi_key = 5\n").unwrap();
        let error = Config::load(path)
            .unwrap()
            .text("auth", "api_key")
            .unwrap_err()
            .to_string();
        assert!(error.ends_with("auth.api_key has the wrong type"), "{error}");
    }
}
