//! A limit is never exceeded, nothing is refused before the limit is reached, and a repeat counts once.
//!
//! Accepted sends are in the receiver's inbox at the end, in the order in which they were counted and with their
//! accounting day (or month). A refusal does not carry its day, so it is a violation only if it would be wrong on
//! every day on which it could have been counted. While a limit is being changed, the value that favours the node
//! applies.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::evidence::Evidence;
use crate::record::history::{Item, Op, Operation, Outcome};
use crate::record::verdict::Check;

/// Checks every quota separately.
pub fn check(evidence: &Evidence) -> Check {
    let mut quotas: BTreeMap<&str, Quota<'_>> = BTreeMap::new();
    for operation in &evidence.operations {
        let list = match operation.op {
            Op::Spend => 0,
            Op::Limit => 1,
            Op::Spent => 2,
            _ => continue,
        };
        let quota = quotas.entry(&operation.k).or_default();
        [&mut quota.spends, &mut quota.limits, &mut quota.audits][list].push(operation);
    }
    let looked_at = quotas.values().map(|quota| quota.spends.len()).sum();
    let violations = quotas.iter().flat_map(|(name, quota)| {
        let found = quota.check();
        found.into_iter().map(move |violation| format!("{name}: {violation}"))
    });
    Check::new("quota", looked_at, violations.collect())
}

#[derive(Default)]
struct Quota<'a> {
    spends: Vec<&'a Operation>,
    limits: Vec<&'a Operation>,
    audits: Vec<&'a Operation>,
}

/// An accepted send, with the window in which it was counted.
struct CountedSend<'a> {
    key: &'a str,
    period: u64,
    /// Its position among the sends of its period.
    number: u64,
    began: u64,
    ended: u64,
}

/// The requests and responses of clients for one key.
#[derive(Default)]
struct KeyRequests<'a> {
    began: u64,
    /// When the first acknowledgement arrived.
    ended: Option<u64>,
    ids: HashSet<&'a str>,
    /// The numbers of used units in the responses.
    used: HashSet<u64>,
    refused: bool,
    unknown: bool,
}

impl Quota<'_> {
    fn check(&self) -> Vec<String> {
        let mut violations = Vec::new();
        let asked = self.asked(&mut violations);
        let Some(items) = self.same_on_all_nodes(&mut violations) else {
            return violations;
        };
        let counted = in_order(items, &asked);
        check_time_order(&counted, &mut violations);
        check_each_once(items, &asked, &mut violations);
        self.within_limits(&counted, &mut violations);
        for entry in &counted {
            let told = asked.get(entry.key).map(|asked| &asked.used);
            if let Some(used) = told.and_then(|used| used.iter().find(|used| **used != entry.number)) {
                let (key, number) = (entry.key, entry.number);
                violations.push(format!(
                    "{key} is number {number} of its period and was answered as number {used}"
                ));
            }
        }
        self.refusals(&counted, &mut violations);
        violations
    }

    fn asked(&self, violations: &mut Vec<String>) -> HashMap<&str, KeyRequests<'_>> {
        let mut all: HashMap<&str, KeyRequests<'_>> = HashMap::new();
        for spend in &self.spends {
            let key = spend.asked.key.as_deref().unwrap_or_default();
            let asked = all.entry(key).or_insert_with(|| KeyRequests {
                began: spend.began,
                ..KeyRequests::default()
            });
            match &spend.outcome {
                Outcome::Ok(answered) => {
                    let ended = spend.ended.unwrap_or(u64::MAX);
                    asked.ended = Some(asked.ended.map_or(ended, |first| first.min(ended)));
                    asked.ids.extend(answered.id.as_deref());
                    asked.used.extend(answered.n);
                }
                Outcome::Fail(why) if asked.ended.is_some_and(|ended| ended < spend.began) => {
                    violations.push(format!("a repeat of the accepted {key} was refused: {why}"));
                }
                Outcome::Fail(_) => asked.refused = true,
                Outcome::Info(_) => asked.unknown = true,
            }
        }
        all
    }

    fn same_on_all_nodes(&self, violations: &mut Vec<String>) -> Option<&[Item]> {
        let mut first: Option<&[Item]> = None;
        for audit in &self.audits {
            let node = audit.node.unwrap_or(0);
            match audit.answered() {
                None => violations.push(format!("node {node} does not show what was spent: {:?}", audit.outcome)),
                Some(answered) if *first.get_or_insert(&answered.items) != answered.items => {
                    violations.push(format!("node {node} shows a different account than the first node"));
                }
                Some(_) => {}
            }
        }
        first
    }

    fn within_limits(&self, counted: &[CountedSend<'_>], violations: &mut Vec<String>) {
        for entry in counted {
            let possible = self
                .limits
                .iter()
                .filter(|limit| limit.began <= entry.ended && may_have_happened(limit));
            let highest = possible.filter_map(|limit| limit.asked.n).max().unwrap_or(0);
            if entry.number > highest {
                let (key, number) = (entry.key, entry.number);
                violations.push(format!(
                    "{key} was accepted as number {number}, although the limit was at most {highest}"
                ));
            }
        }
    }

    /// A refusal because of the quota is legal only if, on a possible day, everything was spent that the limit
    /// certainly allowed.
    fn refusals(&self, counted: &[CountedSend<'_>], violations: &mut Vec<String>) {
        for spend in &self.spends {
            let (Outcome::Fail(why), Some(ended)) = (&spend.outcome, spend.ended) else {
                continue;
            };
            if !why.starts_with("429") {
                continue;
            }
            let possible = counted.partition_point(|entry| entry.began <= ended);
            let certain = counted.partition_point(|entry| entry.ended < spend.began);
            let first = certain.saturating_sub(1).min(possible);
            let around = &counted[first..counted.len().min(possible + 1)];
            let days: HashSet<u64> = around.iter().map(|entry| entry.period).collect();
            let spent = |day: &u64| counted[..possible].iter().rev().find(|entry| entry.period == *day);
            let most = days
                .iter()
                .filter_map(spent)
                .map(|entry| entry.number)
                .max()
                .unwrap_or(0);
            let allowed = self.surely_allowed(spend.began, ended);
            if most < allowed {
                let key = spend.asked.key.as_deref().unwrap_or_default();
                violations.push(format!("{key} was refused when at most {most} of {allowed} were spent"));
            }
        }
    }

    /// The lowest limit that may have applied during the request: that of the last change that was certainly made
    /// before it, or of any change that may have followed.
    fn surely_allowed(&self, began: u64, ended: u64) -> u64 {
        let made = |limit: &&&Operation| limit.answered().is_some() && limit.ended.is_some_and(|end| end < began);
        let Some(last) = self.limits.iter().filter(made).max_by_key(|limit| limit.began) else {
            return 0;
        };
        let since = self.limits.iter().filter(|limit| {
            let over = limit.answered().is_some() && limit.ended.is_some_and(|end| end < last.began);
            may_have_happened(limit) && limit.began <= ended && !over
        });
        since.filter_map(|limit| limit.asked.n).min().unwrap_or(0)
    }
}

fn may_have_happened(limit: &Operation) -> bool {
    !matches!(limit.outcome, Outcome::Fail(_))
}

/// Numbers the accepted sends and narrows the window of each by the sends before and after it.
fn in_order<'a>(items: &'a [Item], asked: &HashMap<&str, KeyRequests<'_>>) -> Vec<CountedSend<'a>> {
    let mut numbers: HashMap<u64, u64> = HashMap::new();
    let mut latest = 0;
    let mut counted: Vec<CountedSend<'a>> = Vec::new();
    for item in items {
        let period = item.seq.unwrap_or(0);
        let number = numbers.entry(period).or_default();
        *number += 1;
        let known = asked.get(item.key.as_str());
        latest = latest.max(known.map_or(0, |asked| asked.began));
        counted.push(CountedSend {
            key: &item.key,
            period,
            number: *number,
            began: latest,
            ended: known.and_then(|asked| asked.ended).unwrap_or(u64::MAX),
        });
    }
    let mut earliest = u64::MAX;
    for entry in counted.iter_mut().rev() {
        earliest = earliest.min(entry.ended);
        entry.ended = earliest;
    }
    counted
}

/// Time never goes back in the account, neither by its days nor by the clients' clock.
fn check_time_order(counted: &[CountedSend<'_>], violations: &mut Vec<String>) {
    for pair in counted.windows(2).filter(|pair| pair[1].period < pair[0].period) {
        violations.push(format!(
            "{} was counted in an earlier period than {} before it",
            pair[1].key, pair[0].key
        ));
    }
    for entry in counted.iter().filter(|entry| entry.began > entry.ended) {
        violations.push(format!(
            "{} was not counted between its begin and its response",
            entry.key
        ));
    }
}

/// Each key is counted once: an accepted key is there, a refused key is not, and no other keys are.
fn check_each_once(items: &[Item], asked: &HashMap<&str, KeyRequests<'_>>, violations: &mut Vec<String>) {
    let mut met: HashMap<&str, &str> = HashMap::new();
    for item in items {
        let key = item.key.as_str();
        if met.insert(key, &item.id).is_some() {
            violations.push(format!("{key} was counted twice"));
        }
        match asked.get(key) {
            None => violations.push(format!("{key} was counted, but never sent")),
            Some(a) if a.refused && a.ended.is_none() && !a.unknown => {
                violations.push(format!("{key} was refused, but counted"));
            }
            Some(_) => {}
        }
    }
    for (key, asked) in asked {
        if asked.ended.is_some() && !met.contains_key(key) {
            violations.push(format!("{key} was accepted, but is not there"));
        }
        if asked.ids.len() > 1 {
            violations.push(format!(
                "repeats of {key} were answered with different ids: {:?}",
                asked.ids
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::operation_builders::{did, evidence, items, number, refused, unknown};
    use super::*;
    use crate::record::history::Fields;

    const NAME: &str = "quota-0";

    fn limit(n: u64, times: std::ops::Range<u64>) -> Operation {
        did(Op::Limit, NAME, number(n), times, Fields::default())
    }

    fn spend(key: &str, times: std::ops::Range<u64>) -> Operation {
        did(Op::Spend, NAME, Fields::key(key), times, Fields::id(key))
    }

    fn over(key: &str, times: std::ops::Range<u64>) -> Operation {
        refused(Op::Spend, NAME, Fields::key(key), times, "429 used up")
    }

    fn account(days: &[(&[&str], u64)]) -> Operation {
        let all = days.iter().flat_map(|(keys, day)| items(keys, Some(*day))).collect();
        did(Op::Spent, NAME, Fields::default(), 900..910, Fields::items(all))
    }

    fn violations(operations: Vec<Operation>) -> Vec<String> {
        check(&evidence(operations)).violations
    }

    fn only(operations: Vec<Operation>, word: &str) {
        let found = violations(operations);
        assert!(found.len() == 1 && found[0].contains(word), "{word}: {found:?}");
    }

    #[test]
    fn a_limit_is_reached_and_not_exceeded() {
        let history = |keys: &[&str]| {
            let spends = [spend("a", 3..4), spend("b", 5..6), spend("c", 7..8)];
            let mut operations = vec![limit(2, 1..2), account(&[(keys, 9)])];
            operations.extend(spends.into_iter().take(keys.len()));
            operations
        };
        assert!(violations(history(&["a", "b"])).is_empty());
        only(history(&["a", "b", "c"]), "number 3, although the limit was at most 2");
    }

    #[test]
    fn a_raised_limit_counts_from_when_it_may_hold() {
        let history = |raise: Operation| {
            let spends = [spend("a", 3..4), spend("b", 9..10), account(&[(&["a", "b"], 9)])];
            [&[limit(1, 1..2), raise][..], &spends].concat()
        };
        assert!(violations(history(limit(2, 5..6))).is_empty());
        assert!(violations(history(unknown(Op::Limit, NAME, number(2), 5..6))).is_empty());
        only(history(limit(2, 11..12)), "number 2, although the limit was at most 1");
        only(
            history(refused(Op::Limit, NAME, number(2), 5..6, "503")),
            "number 2, although the limit was at most 1",
        );
    }

    #[test]
    fn a_refusal_needs_a_limit_that_is_reached() {
        let history = |spends: &[Operation], keys: &[&str]| {
            let rest = [limit(2, 1..2), over("x", 7..8), account(&[(keys, 9)])];
            [spends, &rest].concat()
        };
        assert!(violations(history(&[spend("a", 3..4), spend("b", 5..6)], &["a", "b"])).is_empty());
        only(history(&[spend("a", 3..4)], &["a"]), "refused when at most 1 of 2");
        // The send was unknown and counted, was unknown and not counted, or came later.
        let doubt = unknown(Op::Spend, NAME, Fields::key("b"), 5..6);
        assert!(violations(history(&[spend("a", 3..4), doubt.clone()], &["a", "b"])).is_empty());
        only(
            history(&[spend("a", 3..4), doubt], &["a"]),
            "refused when at most 1 of 2",
        );
        only(
            history(&[spend("a", 3..4), spend("b", 9..10)], &["a", "b"]),
            "refused when at most 1 of 2",
        );
        assert!(violations(history(&[spend("a", 3..4), spend("b", 7..10)], &["a", "b"])).is_empty());
    }

    #[test]
    fn a_refusal_while_the_limit_changes_goes_by_the_lower_one() {
        let history = |raise: Operation| {
            let rest = [spend("a", 3..4), over("x", 7..10), account(&[(&["a"], 9)])];
            [&[limit(1, 1..2), raise][..], &rest].concat()
        };
        only(history(limit(5, 5..6)), "refused when at most 1 of 5");
        assert!(violations(history(limit(5, 5..8))).is_empty());
        assert!(violations(history(unknown(Op::Limit, NAME, number(5), 5..6))).is_empty());
        // A change with an unknown outcome may take effect late and lower the limit again.
        let late = [unknown(Op::Limit, NAME, number(1), 3..4), limit(5, 5..6)];
        let rest = [
            limit(3, 1..2),
            spend("a", 3..4),
            over("x", 7..10),
            account(&[(&["a"], 9)]),
        ];
        assert!(violations([&late[..], &rest].concat()).is_empty());
    }

    #[test]
    fn each_day_has_its_own_count_and_a_refusal_belongs_to_any_day_around_it() {
        let history = |refusal: Operation, days: &[(&[&str], u64)]| {
            let spends = [spend("a", 3..4), spend("b", 9..10), refusal, account(days)];
            [&[limit(1, 1..2)][..], &spends].concat()
        };
        let days: &[(&[&str], u64)] = &[(&["a"], 9), (&["b"], 10)];
        for times in [5..6, 11..12] {
            assert!(violations(history(over("x", times), days)).is_empty());
        }
        only(
            history(over("x", 11..12), &[(&["a"], 10), (&["b"], 9)]),
            "earlier period",
        );
        // Nothing was spent yet on the day of the refusal, whichever day that was.
        let early = vec![
            limit(1, 0..1),
            over("x", 2..3),
            spend("a", 4..5),
            account(&[(&["a"], 9)]),
        ];
        only(early, "refused when at most 0 of 1");
    }

    #[test]
    fn a_repeat_counts_once() {
        let history = |again: Operation, keys: &[&str]| {
            let rest = [spend("a", 3..4), again, account(&[(keys, 9)])];
            [&[limit(2, 1..2)][..], &rest].concat()
        };
        assert!(violations(history(spend("a", 5..6), &["a"])).is_empty());
        only(history(spend("a", 5..6), &["a", "a"]), "counted twice");
        only(
            history(refused(Op::Spend, NAME, Fields::key("a"), 5..6, "409"), &["a"]),
            "repeat of the accepted a",
        );
        let other = did(Op::Spend, NAME, Fields::key("a"), 5..6, Fields::id("b"));
        only(history(other, &["a"]), "different ids");
    }

    #[test]
    fn accepted_sends_must_be_counted_and_refused_ones_must_not() {
        let first = [limit(1, 1..2), spend("a", 3..4)];
        let history = |rest: &[Operation]| [&first[..], rest].concat();
        only(history(&[account(&[])]), "accepted, but is not there");
        let refused = refused(Op::Spend, NAME, Fields::key("b"), 5..6, "400 no");
        only(
            [
                &[limit(2, 1..2), spend("a", 3..4)][..],
                &[refused, account(&[(&["a", "b"], 9)])],
            ]
            .concat(),
            "refused, but counted",
        );
        only(
            vec![limit(2, 1..2), spend("a", 3..4), account(&[(&["a", "z"], 9)])],
            "never sent",
        );
        only(
            history(&[account(&[(&["a"], 9)]), account(&[(&["a"], 8)])]),
            "different account",
        );
        only(
            history(&[unknown(Op::Spent, NAME, Fields::default(), 900..910)]),
            "does not show",
        );
    }

    #[test]
    fn the_account_is_in_the_order_of_time() {
        let history = |keys: &[&str]| {
            vec![
                limit(2, 1..2),
                spend("a", 3..4),
                spend("b", 5..6),
                account(&[(keys, 9)]),
            ]
        };
        assert!(violations(history(&["a", "b"])).is_empty());
        assert!(violations(history(&["b", "a"]))[0].contains("between its begin and its response"));
    }

    #[test]
    fn the_face_says_how_many_were_used() {
        let told = |n| {
            let answered = Fields {
                n: Some(n),
                ..Fields::id("a")
            };
            did(Op::Spend, NAME, Fields::key("a"), 3..4, answered)
        };
        let history = |n| vec![limit(2, 1..2), told(n), account(&[(&["a"], 9)])];
        assert!(violations(history(1)).is_empty());
        only(history(2), "answered as number 2");
    }
}
