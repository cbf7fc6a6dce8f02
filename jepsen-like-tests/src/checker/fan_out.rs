//! A publish reaches exactly the agents that were subscribed at its position in the order, each once; and all
//! subscribers of a topic see its publishes in the same order.
//!
//! The instant at which an operation took effect is not observable, only a window that contains it. The window of a
//! publish lasts from its begin to its acknowledgement, narrowed by the publishes before and after it in its topic.
//! An agent that was certainly subscribed during the whole window must have the publish; an agent that was certainly
//! not subscribed must not; others may have it or not.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::evidence::Evidence;
use crate::record::history::{Item, Op, Operation, Outcome};
use crate::record::verdict::Check;

/// Checks all publishes against all inboxes on all nodes.
pub fn check(evidence: &Evidence) -> Check {
    let mut publishes = Publishes::of(&evidence.operations);
    let audits: Vec<&Operation> = evidence.operations.iter().filter(|o| o.op == Op::Inbox).collect();
    let mut violations = Vec::new();
    publishes.put_in_order(&audits, &mut violations);
    let subscriptions = subscriptions(&evidence.operations);
    let mut looked_at = 0;
    for audit in &audits {
        let Some(answered) = audit.answered() else {
            violations.push(format!(
                "node {} does not show the inbox {} after healing: {:?}",
                node(audit),
                audit.k,
                audit.outcome
            ));
            continue;
        };
        looked_at += answered.items.len();
        let inbox = Inbox {
            name: &audit.k,
            node: node(audit),
            items: &answered.items,
        };
        inbox.check(&publishes, &subscriptions, &mut violations);
    }
    Check::new("fan-out", looked_at, violations)
}

fn node(audit: &Operation) -> usize {
    audit.node.unwrap_or(0)
}

struct Publish<'a> {
    key: &'a str,
    topic: &'a str,
    from: &'a str,
    /// The window in which it took effect.
    began: u64,
    ended: u64,
    acknowledged: bool,
    refused: bool,
    /// Whether any inbox contains it.
    seen: bool,
}

struct Publishes<'a> {
    all: Vec<Publish<'a>>,
    by_key: HashMap<&'a str, usize>,
    /// The publishes of each topic that reached any inbox, in order.
    order: BTreeMap<&'a str, Vec<usize>>,
    /// The position of each publish in that order.
    place: HashMap<usize, usize>,
    /// The publishes of each topic that reached no inbox.
    unseen: BTreeMap<&'a str, Vec<usize>>,
}

impl<'a> Publishes<'a> {
    fn of(operations: &'a [Operation]) -> Self {
        let mut all: Vec<Publish<'a>> = Vec::new();
        let mut by_key = HashMap::new();
        for operation in operations.iter().filter(|o| o.op == Op::Publish) {
            let key = operation.asked.key.as_deref().unwrap_or_default();
            // A client may repeat a publish under the same key.
            let place = *by_key.entry(key).or_insert_with(|| {
                all.push(Publish {
                    key,
                    topic: &operation.k,
                    from: operation.asked.name.as_deref().unwrap_or_default(),
                    began: operation.began,
                    ended: u64::MAX,
                    acknowledged: false,
                    refused: true,
                    seen: false,
                });
                all.len() - 1
            });
            let publish = &mut all[place];
            publish.refused &= matches!(operation.outcome, Outcome::Fail(_));
            if operation.answered().is_some() {
                publish.acknowledged = true;
                publish.ended = publish.ended.min(operation.ended.unwrap_or(u64::MAX));
            }
        }
        Publishes {
            all,
            by_key,
            order: BTreeMap::new(),
            place: HashMap::new(),
            unseen: BTreeMap::new(),
        }
    }

    /// Takes the order of each topic from the inbox that contains most of it, and narrows the windows by it.
    fn put_in_order(&mut self, audits: &[&'a Operation], violations: &mut Vec<String>) {
        let mut longest: HashMap<&str, (usize, &Operation)> = HashMap::new();
        for audit in audits {
            let mut counts: HashMap<&str, usize> = HashMap::new();
            for item in audit.answered().map_or(&[][..], |answered| &answered.items) {
                if let Some(&number) = self.by_key.get(item.key.as_str()) {
                    self.all[number].seen = true;
                    *counts.entry(self.all[number].topic).or_default() += 1;
                }
            }
            for (topic, count) in counts {
                let most = longest.entry(topic).or_insert((count, audit));
                if count > most.0 {
                    *most = (count, audit);
                }
            }
        }
        for (topic, (_, audit)) in longest {
            let items = audit.answered().map_or(&[][..], |answered| &answered.items);
            let mut met = HashSet::new();
            let numbers = items
                .iter()
                .filter_map(|item| self.by_key.get(item.key.as_str()).copied());
            let order: Vec<usize> = numbers
                .filter(|number| self.all[*number].topic == topic && met.insert(*number))
                .collect();
            self.narrow(topic, &order, violations);
            self.place.extend(order.iter().copied().zip(0..));
            self.order.insert(topic, order);
        }
        for number in (0..self.all.len()).filter(|number| !self.place.contains_key(number)) {
            self.unseen.entry(self.all[number].topic).or_default().push(number);
        }
    }

    fn narrow(&mut self, topic: &str, order: &[usize], violations: &mut Vec<String>) {
        let mut began = (0, "");
        for number in order {
            let publish = &mut self.all[*number];
            if publish.ended < began.0 {
                violations.push(format!(
                    "{topic}: {} follows {}, but was acknowledged before the latter was published",
                    publish.key, began.1
                ));
            }
            began = began.max((publish.began, publish.key));
            publish.began = began.0;
        }
        let mut ended = u64::MAX;
        for number in order.iter().rev() {
            let publish = &mut self.all[*number];
            ended = ended.min(publish.ended);
            publish.ended = ended;
        }
    }

    fn of_topic(&self, topic: &str) -> impl Iterator<Item = &Publish<'a>> {
        let order = self.order.get(topic).into_iter().flatten();
        let unseen = self.unseen.get(topic).into_iter().flatten();
        order.chain(unseen).map(|number| &self.all[*number])
    }
}

/// The changes of one agent's subscription to one topic.
#[derive(Default)]
struct Subscription {
    on: Changes,
    off: Changes,
}

/// Whether an agent was subscribed while a publish took effect.
#[derive(Debug, PartialEq, Eq)]
enum Covered {
    Surely,
    SurelyNot,
    Perhaps,
}

impl Subscription {
    fn covers(&self, publish: &Publish<'_>) -> Covered {
        let (began, ended) = (publish.began, publish.ended);
        if self.on.may_last_until(ended) == 0 || self.off.stands(&self.on, began, ended) {
            Covered::SurelyNot
        } else if self.on.stands(&self.off, began, ended) {
            Covered::Surely
        } else {
            Covered::Perhaps
        }
    }
}

/// The changes in one direction: all subscribes, or all unsubscribes.
#[derive(Default)]
struct Changes {
    /// For each change that may have happened, sorted by its begin: the begin, and the latest end up to and including
    /// it.
    may: Vec<(u64, u64)>,
    /// For each change that certainly happened, sorted by its end: the end, and the latest begin up to and including
    /// it.
    done: Vec<(u64, u64)>,
}

impl Changes {
    fn of(operations: &[&Operation]) -> Self {
        let happened = |o: &&&Operation| o.answered().is_some();
        let possible = |o: &&&Operation| !matches!(o.outcome, Outcome::Fail(_));
        let end = |o: &Operation| if o.answered().is_some() { o.ended } else { None }.unwrap_or(u64::MAX);
        Changes {
            may: with_latest(operations.iter().filter(possible).map(|o| (o.began, end(o))).collect()),
            done: with_latest(operations.iter().filter(happened).map(|o| (end(o), o.began)).collect()),
        }
    }

    /// Whether one of these changes certainly happened before `began` and no opposite change can have followed it by
    /// `ended`.
    fn stands(&self, others: &Changes, began: u64, ended: u64) -> bool {
        let latest = latest(&self.done, began.saturating_sub(1));
        latest > 0 && others.may_last_until(ended) < latest
    }

    /// The latest end of the changes that may have begun by `time`; 0 if there is none.
    fn may_last_until(&self, time: u64) -> u64 {
        latest(&self.may, time)
    }
}

/// Sorts by the first element and replaces each second element by the maximum so far.
fn with_latest(mut pairs: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    pairs.sort_unstable();
    let mut highest = 0;
    for (_, second) in &mut pairs {
        highest = highest.max(*second);
        *second = highest;
    }
    pairs
}

/// The maximum of the second elements whose first element is at most `at`.
fn latest(pairs: &[(u64, u64)], at: u64) -> u64 {
    let count = pairs.partition_point(|(first, _)| *first <= at);
    count.checked_sub(1).map_or(0, |last| pairs[last].1)
}

/// The subscriptions by agent, then by topic.
type Subscriptions<'a> = HashMap<&'a str, BTreeMap<&'a str, Subscription>>;

fn subscriptions(operations: &[Operation]) -> Subscriptions<'_> {
    let mut changes: HashMap<&str, BTreeMap<&str, [Vec<&Operation>; 2]>> = HashMap::new();
    for operation in operations {
        let direction = match operation.op {
            Op::Subscribe => 0,
            Op::Unsubscribe => 1,
            _ => continue,
        };
        let agent = operation.asked.name.as_deref().unwrap_or_default();
        changes.entry(agent).or_default().entry(&operation.k).or_default()[direction].push(operation);
    }
    let of_topic = |[on, off]: [Vec<&Operation>; 2]| Subscription {
        on: Changes::of(&on),
        off: Changes::of(&off),
    };
    let mut subscriptions: Subscriptions<'_> = HashMap::new();
    for (agent, topics) in changes {
        let topics = topics.into_iter().map(|(topic, both)| (topic, of_topic(both)));
        subscriptions.insert(agent, topics.collect());
    }
    subscriptions
}

/// An inbox as one node shows it.
struct Inbox<'a> {
    name: &'a str,
    node: usize,
    items: &'a [Item],
}

impl Inbox<'_> {
    fn check(&self, publishes: &Publishes<'_>, subscriptions: &Subscriptions<'_>, violations: &mut Vec<String>) {
        let (name, node) = (self.name, self.node);
        let mut counts: HashMap<usize, usize> = HashMap::new();
        let mut last: HashMap<&str, usize> = HashMap::new();
        for item in self.items {
            // Messages that are not publishes are checked by other checkers.
            let Some(&number) = publishes.by_key.get(item.key.as_str()) else {
                continue;
            };
            *counts.entry(number).or_default() += 1;
            let Some(&place) = publishes.place.get(&number) else {
                continue;
            };
            let topic = publishes.all[number].topic;
            let before = last.insert(topic, place);
            if before.is_some_and(|before| before > place) {
                violations.push(format!(
                    "node {node}, {name}: {} is not in the order that other inboxes have for {topic}",
                    item.key
                ));
            }
        }
        let none = BTreeMap::new();
        let mine = subscriptions.get(name).unwrap_or(&none);
        for (number, count) in &counts {
            let publish = &publishes.all[*number];
            let covered = mine
                .get(publish.topic)
                .map_or(Covered::SurelyNot, |s| s.covers(publish));
            let why = match () {
                () if *count > 1 => format!("has it {count} times"),
                () if publish.refused => "has it, although it was refused".to_owned(),
                () if publish.from == name => "has what it published itself".to_owned(),
                () if covered == Covered::SurelyNot => "has it without a subscription".to_owned(),
                () => continue,
            };
            violations.push(format!(
                "node {node}, {name}, {} of {}: {why}",
                publish.key, publish.topic
            ));
        }
        for (topic, subscription) in mine {
            for publish in publishes.of_topic(topic) {
                let happened = publish.acknowledged || publish.seen;
                let has = publishes
                    .by_key
                    .get(publish.key)
                    .is_some_and(|number| counts.contains_key(number));
                if happened && !has && publish.from != name && subscription.covers(publish) == Covered::Surely {
                    violations.push(format!(
                        "node {node}, {name}, {} of {topic}: is subscribed, but does not have it",
                        publish.key
                    ));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
