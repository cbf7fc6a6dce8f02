//! The library, loaded into a common program.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Instant;

/// The library beside this test, built now if it is missing.
fn library() -> PathBuf {
    let deps = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let library = deps.join("../libdisk_shim.so");
    if !library.exists() {
        let mut cargo = Command::new(env!("CARGO"));
        let built = cargo.args(["build", "--quiet", "--package", "disk-shim"]).status();
        assert!(built.unwrap().success());
    }
    library
}

/// Runs `dd`, which writes a block to a file and flushes it.
fn dd(dir: &Path, rule: &str) -> Output {
    let rules = dir.join("rules");
    std::fs::write(&rules, rule).unwrap();
    Command::new("dd")
        .args(["if=/dev/zero", "bs=4096", "count=1", "conv=fsync"])
        .arg(format!("of={}", dir.join("file").display()))
        .env("LD_PRELOAD", library())
        .env("DISK_SHIM_FILE", rules)
        .env("LC_ALL", "C")
        .output()
        .unwrap()
}

#[test]
fn a_program_meets_the_errors_that_the_file_names() {
    let dir = tempfile::tempdir().unwrap();
    for (rule, said) in [
        ("", None),
        ("fsync elsewhere eio", None),
        ("fsync file eio-once", Some("Input/output error")),
        ("write file enospc", Some("No space left on device")),
        ("open file erofs", Some("Read-only file system")),
        ("* * eio", Some("Input/output error")),
    ] {
        let output = dd(dir.path(), rule);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.success(), said.is_none(), "{rule}: {error}");
        assert!(said.is_none_or(|said| error.contains(said)), "{rule}: {error}");
    }
    let began = Instant::now();
    assert!(dd(dir.path(), "fsync file delay-ms 300").status.success());
    assert!(began.elapsed().as_millis() >= 290);
}
