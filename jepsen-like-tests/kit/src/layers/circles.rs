//! Circles of modules.

use std::collections::{BTreeMap, BTreeSet};

type Graph = BTreeMap<String, BTreeSet<String>>;

/// The circles of arrows between the modules of one folder, for every folder.
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

/// The two modules of one folder that these are in, or are.
fn siblings(from: &str, to: &str) -> (String, String) {
    let (from, to): (Vec<&str>, Vec<&str>) = (from.split("::").collect(), to.split("::").collect());
    let shared = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
    let up_to = |path: &[&str]| path[..path.len().min(shared + 1)].join("::");
    (up_to(&from), up_to(&to))
}

/// Every module that can be reached by arrows.
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
