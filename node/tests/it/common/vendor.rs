//! The npm packages of `tests/vendor/package-lock.json`. `scripts/test.sh` installs them into the cache.

use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

/// The directory of the scripts for Node.js.
pub fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vendor")
}

/// The directory that holds `node_modules` with `package`.
pub fn installed(package: &str) -> PathBuf {
    let lock = std::fs::read(scripts().join("package-lock.json")).unwrap();
    let version = &hex::encode(Sha256::digest(&lock))[..12];
    let set = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let cache = set("AGENTPOST_CACHE")
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("agentpost")))
        .or_else(|| Some(set("HOME")?.join(".cache/agentpost")))
        .unwrap();
    let dir = cache.join(format!("vendor-{version}"));
    assert!(
        dir.join("node_modules").join(package).join("package.json").exists(),
        "the npm package {package} is not in {}: run scripts/test.sh, or copy {}/package*.json there and run `npm ci`",
        dir.display(),
        scripts().display(),
    );
    dir
}
