//! Finds circular imports.

use std::collections::{BTreeMap, BTreeSet};

type Graph = BTreeMap<String, BTreeSet<String>>;

/// The groups of modules in one folder that import each other in a circle, for every folder.
pub(super) fn of<'a>(arrows: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<Vec<String>> {
    let mut graph = Graph::new();
    for (from, to) in arrows {
        let (from, to) = siblings(from, to);
        graph.entry(from).or_default().insert(to);
    }
    let reached: Graph = graph
        .keys()
        .map(|module| (module.clone(), reach(&graph, module)))
        .collect();
    let mut circles = BTreeSet::new();
    for (module, beyond) in &reached {
        let circle: Vec<String> = beyond
            .iter()
            .filter(|other| reached.get(*other).is_some_and(|back| back.contains(module)))
            .cloned()
            .collect();
        if circle.len() > 1 {
            circles.insert(circle);
        }
    }
    circles.into_iter().collect()
}

/// The two modules of the innermost common folder that contain `from` and `to`, or are them.
fn siblings(from: &str, to: &str) -> (String, String) {
    let (from, to): (Vec<&str>, Vec<&str>) = (from.split("::").collect(), to.split("::").collect());
    let shared = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
    let up_to = |path: &[&str]| path[..path.len().min(shared + 1)].join("::");
    (up_to(&from), up_to(&to))
}

/// Every module that `from` imports directly or indirectly.
fn reach(graph: &Graph, from: &str) -> BTreeSet<String> {
    let mut reached = BTreeSet::new();
    let mut open = vec![from];
    while let Some(module) = open.pop() {
        for next in graph.get(module).into_iter().flatten() {
            if reached.insert(next.clone()) {
                open.push(next);
            }
        }
    }
    reached
}
