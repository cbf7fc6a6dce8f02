//! Processes of their own for tests that read or change the state of the whole process, such as its environment or its
//! logger. Under `cargo nextest` every test has a process; under `cargo test` the tests are threads of one process.

use std::process::Stdio;

use tokio::process::Command;

/// The environment variable that is set in a child.
const VARIABLE: &str = "AGENTPOST_TEST_CHILD";

/// Whether this process is a child.
pub fn is_child() -> bool {
    std::env::var_os(VARIABLE).is_some()
}

/// Runs one test of this binary, named by its path, in a child. Panics with the output of the child if it fails.
pub async fn run(test: &str, configure: impl FnOnce(&mut Command)) {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args([test, "--exact"]).env(VARIABLE, "1");
    configure(&mut child);
    let output = child.stdin(Stdio::null()).kill_on_drop(true).output().await.unwrap();
    let [stdout, stderr] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(
        output.status.success() && stdout.contains("1 passed"),
        "{test} failed in its own process:\n{stdout}\n{stderr}"
    );
}
