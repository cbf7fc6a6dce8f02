//! After the faults have ended the cluster serves: a write is acknowledged within 5 s, and every node lists every
//! inbox.

use super::evidence::{Evidence, OperationSummary, seconds};
use crate::record::history::Op;
use crate::record::history::OutcomeKind;
use crate::record::verdict::Check;

/// Time limit from healing to the first acknowledged write.
const WRITES_WITHIN_NS: u64 = 5_000_000_000;

/// Reports what was served too late or not at all.
pub fn check(evidence: &Evidence) -> Check {
    let healed = evidence.run.healed;
    // The writes that were open at healing or began later. If messages are among them only those count: other
    // requests may be served while no message is.
    let open = |moment: &&OperationSummary| moment.is_write() && moment.ended > healed;
    let mail = |moment: &&OperationSummary| matches!(moment.op, Op::Send | Op::Publish);
    let wanted: Vec<&OperationSummary> = evidence.summaries.iter().filter(open).collect();
    let sent: Vec<&OperationSummary> = wanted.iter().copied().filter(mail).collect();
    let wanted = if sent.is_empty() { wanted } else { sent };
    let acknowledged = wanted.iter().filter(|write| write.outcome == OutcomeKind::Ok);
    let first = acknowledged.map(|write| write.ended).min();
    let mut violations = Vec::new();
    let served = first.is_some_and(|first| first <= healed + WRITES_WITHIN_NS);
    if !served && wanted.iter().any(|write| write.began <= healed + WRITES_WITHIN_NS) {
        let first = first.map_or_else(
            || "none".to_owned(),
            |first| format!("the first after {}", seconds(first - healed)),
        );
        violations.push(format!("no write was acknowledged within 5 s of healing: {first}"));
    }
    let mail = &evidence.mail;
    let unanswered = mail
        .audits
        .iter()
        .filter_map(|audit| Some((audit, audit.failed.as_ref()?)));
    violations.extend(unanswered.map(|(audit, why)| {
        format!(
            "node {} does not show {} after healing: {why}",
            audit.node,
            mail.text(audit.inbox)
        )
    }));
    Check::new("liveness", wanted.len() + mail.audits.len(), violations)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::run_builder::RunBuilder;
    use crate::record::history::Fields;

    /// The run is healed at 1,000 ms.
    fn violations(story: RunBuilder) -> Vec<String> {
        check(&story.evidence()).violations
    }

    fn send(story: RunBuilder, began: u64, ended: u64) -> RunBuilder {
        let key = Fields::key(format!("k{began}"));
        story.ok(began..ended, Op::Send, "a", key, Fields::id(format!("m{began}")))
    }

    #[test]
    fn writes_are_acknowledged_within_five_seconds_of_healing() {
        assert_eq!(violations(send(RunBuilder::default(), 500, 6_000)), [""; 0]);
        assert_eq!(
            violations(send(RunBuilder::default(), 500, 6_001)),
            ["no write was acknowledged within 5 s of healing: the first after 5.001 s"]
        );
        let unknown = RunBuilder::default().info(900..1_200, Op::Send, "a", Fields::key("k"));
        let unknown = unknown.ok(1_001..1_002, Op::Ack, "a", Fields::id("m"), Fields::default());
        assert_eq!(
            violations(unknown),
            ["no write was acknowledged within 5 s of healing: none"]
        );
    }

    #[test]
    fn where_nobody_writes_nothing_is_missed() {
        assert_eq!(violations(RunBuilder::default()), [""; 0]);
        assert_eq!(violations(send(RunBuilder::default(), 500, 900)), [""; 0]);
    }

    #[test]
    fn every_node_shows_every_inbox() {
        let story = RunBuilder::default()
            .info(2_000..2_001, Op::Audit, "a", Fields::default())
            .at(3);
        assert_eq!(violations(story), ["node 3 does not show a after healing: timeout"]);
    }
}
