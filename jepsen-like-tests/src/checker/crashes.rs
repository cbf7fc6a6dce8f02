//! No process ends unexpectedly.

use super::Evidence;
use crate::verdict::Check;

/// Reports every process that ended unexpectedly.
pub fn check(evidence: &Evidence) -> Check {
    let ended = evidence.run.crashes.iter();
    let violations = ended.map(|(node, status)| format!("node {node} ended unexpectedly: {status}"));
    Check::new("crashes", evidence.run.nodes, violations.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::made_up::Story;

    #[test]
    fn a_process_that_ended_by_itself_is_named() {
        assert_eq!(check(&Story::default().evidence()).violated, 0);
        let ended = Story::default().run(|run| run.crashes = vec![(2, "exit status: 101".to_owned())]);
        assert_eq!(
            check(&ended.evidence()).violations,
            ["node 2 ended unexpectedly: exit status: 101"]
        );
    }
}
