//! The configuration file that `kite` shares with the vendor's command line: `[auth] api_key, team_id`,
//! `[server] url, http_base`, `[agent] id, name`. A change keeps every other key, the comments and the order.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use agentpost::api::kite::DeviceKey;
use agentpost_cli::replace_file;
use anyhow::{Context, anyhow, bail};
use toml_edit::{DocumentMut, Item, TableLike, TomlError, Value};

/// The file's path and content.
pub struct Config {
    path: PathBuf,
    document: DocumentMut,
}

impl Config {
    /// `$XDG_CONFIG_HOME/kite/config.toml`, by default `~/.config/kite/config.toml`; on macOS the vendor's folder
    /// under `~/Library`.
    pub fn default_path() -> anyhow::Result<PathBuf> {
        let home = std::env::home_dir().filter(|home| home.is_absolute());
        let folder = if cfg!(target_os = "macos") {
            home.map(|home| home.join("Library/Application Support/dev.kite.kite"))
        } else {
            // The base directory specification says that a relative path is invalid and must be ignored.
            let configured = std::env::var_os("XDG_CONFIG_HOME")
                .map(PathBuf::from)
                .filter(|path| path.is_absolute());
            configured
                .or_else(|| home.map(|home| home.join(".config")))
                .map(|base| base.join("kite"))
        };
        let folder = folder.context("no home folder: set HOME or XDG_CONFIG_HOME")?;
        Ok(folder.join("config.toml"))
    }

    /// Reads a file. A file that does not exist counts as empty.
    pub fn load(path: PathBuf) -> anyhow::Result<Self> {
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => String::new(),
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
        };
        let document = text
            .parse()
            .map_err(|e: TomlError| anyhow!("{}: {}", path.display(), e.message()))?;
        Ok(Config { path, document })
    }

    /// A text value. A blank value counts as absent.
    pub fn text(&self, section: &str, key: &str) -> anyhow::Result<Option<&str>> {
        let wrong_type = |what: &str| anyhow!("{}: {what} has the wrong type", self.path.display());
        let Some(item) = self.document.get(section) else {
            return Ok(None);
        };
        let Some(table) = item.as_table_like() else {
            bail!(wrong_type(section))
        };
        let Some(value) = table.get(key) else { return Ok(None) };
        let text = value.as_str().ok_or_else(|| wrong_type(&format!("{section}.{key}")))?;
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
        set(agent, "id", id);
        match name {
            Some(name) => set(agent, "name", name),
            None => {
                agent.remove("name");
            }
        }
    }

    /// Replaces the key and the server that it is for.
    pub fn set_login(&mut self, key: &DeviceKey, ws_url: &str, http_base: &str) {
        let auth = self.section("auth");
        set(auth, "api_key", &key.api_key.0);
        set(auth, "team_id", &key.team_id);
        let server = self.section("server");
        set(server, "url", ws_url);
        set(server, "http_base", http_base);
    }

    /// Reads the file again before a change that follows a long wait: another program may have written to it.
    pub fn reload(&mut self) -> anyhow::Result<()> {
        *self = Config::load(self.path.clone())?;
        Ok(())
    }

    /// A section to write to. A value of another type under this name is replaced.
    fn section(&mut self, name: &str) -> &mut dyn TableLike {
        let item = self.document.entry(name).or_insert_with(toml_edit::table);
        if !item.is_table_like() {
            *item = toml_edit::table();
        }
        item.as_table_like_mut().expect("a table was put there")
    }

    /// Writes the file in one step, readable by its owner only, because it may hold a key.
    pub fn save(&self) -> anyhow::Result<()> {
        let write = || {
            if let Some(folder) = self.path.parent() {
                fs::create_dir_all(folder)?;
            }
            replace_file(&self.path, self.document.to_string().as_bytes(), None)
        };
        write().with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// Sets a value; a comment on its line stays.
fn set(table: &mut dyn TableLike, key: &str, text: &str) {
    let mut value = Value::from(text);
    if let Some(before) = table.get(key).and_then(Item::as_value) {
        value.decor_mut().clone_from(before.decor());
    }
    table.insert(key, Item::Value(value));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use toml::Table;

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
    fn comments_and_order_stay() {
        let folder = folder();
        let path = folder.path().join("config.toml");
        let before = "# ours\n[server]\nurl = \"ws://a/ws\" # old\n\n[agent] # this machine\nid = 'a' # an id\n";
        fs::write(&path, before).unwrap();
        let mut config = Config::load(path.clone()).unwrap();
        config.set_agent("b", None);
        config.save().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), before.replace("'a'", "\"b\""));
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
