//! A rolling restart, one node after the other, causes no failed requests for clients that retry.

use super::evidence::Evidence;
use crate::record::history::Op;
use crate::record::history::OutcomeKind;
use crate::record::verdict::Check;

/// Reports every send that its client gave up in a run whose only faults were restarts. Senders retry until a request
/// is decided; other clients do not retry.
pub fn check(evidence: &Evidence) -> Check {
    let restarts = !evidence.faults.is_empty() && evidence.faults.iter().all(|fault| fault.kind == "restart");
    // A client also gives up when it is told to stop.
    let judged = |ended: u64| restarts && ended < evidence.run.healed;
    let sends = evidence.summaries.iter();
    let sends: Vec<_> = sends.filter(|m| m.op == Op::Send && judged(m.ended)).collect();
    let given_up = sends
        .iter()
        .filter(|send| send.outcome == OutcomeKind::Info)
        .map(|send| {
            let at_ms = send.began / 1_000_000;
            format!("a send at {at_ms} ms was given up while nodes restarted")
        });
    let violations = given_up.collect();
    Check::new("rolling", sends.len(), violations)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::run_builder::RunBuilder;
    use crate::record::history::Fields;

    fn story(kind: &str) -> RunBuilder {
        let story = RunBuilder::default().run(|run| run.healed = 1_000_000_000);
        let story = story.fault(kind, &[1], 100..200);
        let given_up = |story: RunBuilder, time| story.info(time, Op::Send, "inbox", Fields::key("a"));
        given_up(given_up(story, 150..900), 950..1_050)
    }

    #[test]
    fn a_send_given_up_while_nodes_restart_is_named() {
        let check = check(&story("restart").evidence());
        assert_eq!(
            check.violations,
            ["a send at 150 ms was given up while nodes restarted"]
        );
        assert_eq!(check.looked_at, 1);
    }

    #[test]
    fn worse_faults_excuse_it() {
        assert_eq!(check(&story("kill").evidence()).looked_at, 0);
    }
}
