//! No process ends unexpectedly.

use super::evidence::Evidence;
use crate::record::verdict::Check;

/// Reports every process that ended unexpectedly.
pub fn check(evidence: &Evidence) -> Check {
    let ended = evidence.run.crashes.iter();
    let violations = ended.map(|(node, status)| format!("node {node} ended unexpectedly: {status}"));
    Check::new("crashes", evidence.run.nodes, violations.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::run_builder::RunBuilder;

    #[test]
    fn a_process_that_ended_by_itself_is_named() {
        assert_eq!(check(&RunBuilder::default().evidence()).violated, 0);
        let ended = RunBuilder::default().run(|run| run.crashes = vec![(2, "exit status: 101".to_owned())]);
        assert_eq!(
            check(&ended.evidence()).violations,
            ["node 2 ended unexpectedly: exit status: 101"]
        );
    }
}
