//! A model of the dispatch protocol, explored in every order of events: three nodes, two deliveries, two changes of the
//! epoch, a process that is stopped at any moment and continues at any later one, a lost outcome or a lost reply to it,
//! and a lost reply to a claim. A second model has calls of another node, of which the claim may be lost on its way, and
//! one change of the epoch: such a node looks at the start window and not at the leadership.
//!
//! The replicated state is real: `replica.rs` calls the real `apply`, so what is proved is what runs. The dispatchers
//! around it are a model (`world.rs`). The model leaves out Raft itself (there is one log, which also accepts proposals
//! of a replaced leader; openraft would refuse those), batches, fair turns, and the statuses 410 and 489. Without a
//! fault a dispatcher acts as soon as it can; only faults make it late. States that agree in everything that decides
//! their future count as one: 1.4 million states of the first model and 0.4 million of the second are explored in about
//! 30 seconds.
//!
//! Every path ends, because an action advances an attempt, uses up a fault, or moves to a later time. So "nothing stays
//! claimed for ever" is a property of the states in which nothing can happen any more.

mod replica;
mod world;

use stateright::{Checker, Model, Property};

use self::world::{Dispatch, Rule, Weakness};

/// The initial state of a model, and its faults.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// For each delivery, how many steps of its retry schedule have failed already.
    pub failed_before: &'static [u8],
    /// How often the epoch changes.
    pub epochs: u8,
    /// How many processes may be stopped.
    pub stops: u8,
    /// How many replies to claims, outcomes, or replies to outcomes may be lost.
    pub losses: u8,
    /// Whether another node makes every second call.
    pub delegated: bool,
}

/// Two deliveries on the last step of their retry schedule, which ends delivered or dead, with every fault.
const EVERYTHING: Setup = Setup {
    failed_before: &[3, 3],
    epochs: 2,
    stops: 1,
    losses: 1,
    delegated: false,
};

/// The same while another node makes half of the calls, with one change of the epoch.
const DELEGATED: Setup = Setup {
    epochs: 1,
    delegated: true,
    ..EVERYTHING
};

/// One delivery through its whole retry schedule.
const LADDER: Setup = Setup {
    failed_before: &[0],
    epochs: 1,
    stops: 1,
    losses: 1,
    delegated: true,
};

fn properties() -> Vec<Property<Dispatch>> {
    vec![
        Property::<Dispatch>::always("D1: an attempt is started once", |_, world| {
            world.broken != Some(Rule::D1)
        }),
        Property::<Dispatch>::always("D4: an attempt is closed once", |_, world| {
            world.broken != Some(Rule::D4)
        }),
        Property::<Dispatch>::always("D6: no call without a record", |_, world| {
            world.broken != Some(Rule::D6)
        }),
        Property::<Dispatch>::always("D8: no call before its time", |_, world| world.broken != Some(Rule::D8)),
        Property::<Dispatch>::always("D9: no claim of an old epoch", |_, world| {
            world.broken != Some(Rule::D9)
        }),
        Property::<Dispatch>::always("one call at a time", |_, world| {
            world.broken != Some(Rule::OneCallAtATime)
        }),
        Property::<Dispatch>::always("D3, D4, D5, D7 and the indexes, in the rows", |model, world| {
            model.replicas.broken(world.replica).is_empty()
        }),
        Property::<Dispatch>::always("everything ends", |model, world| {
            let mut actions = Vec::new();
            model.actions(world, &mut actions);
            !actions.is_empty() || world.broken.is_some() || model.is_over(world)
        }),
        Property::<Dispatch>::sometimes("some end delivered and some dead", |model, world| {
            model.ends_differ(world)
        }),
    ]
}

fn explore(setup: Setup) {
    let checker = Dispatch::new(setup, None).checker().threads(2).spawn_bfs().join();
    let (states, entries) = checker.model().replicas.figures();
    println!(
        "{} worlds on {states} states of the replicas, {entries} entries applied",
        checker.unique_state_count()
    );
    for (name, path) in checker.discoveries() {
        let world = path.last_state();
        let rows = checker.model().replicas.broken(world.replica);
        let actions = path.into_actions();
        assert!(name.starts_with("some end"), "{name}: {rows:?} after {actions:#?}");
    }
    assert!(checker.discovery("some end delivered and some dead").is_some());
    assert!(checker.is_done());
}

#[test]
fn the_protocol_holds_through_every_order_of_faults() {
    explore(EVERYTHING);
}

#[test]
fn calls_of_another_node_hold_through_every_order_of_faults() {
    explore(DELEGATED);
}

#[test]
fn the_retry_schedule_holds_through_every_order_of_faults() {
    explore(LADDER);
}

/// The model can fail: each weakened rule breaks the property that the rule protects.
#[test]
fn every_weakened_rule_is_noticed() {
    let rules = [
        (Weakness::EarlyTakeover, &["one call"][..]),
        (Weakness::NumbersReused, &["D1"]),
        (Weakness::OutcomesOfAnyNumber, &["D4"]),
        (Weakness::OutcomesAfterTheEnd, &["D4", "D3"]),
        (Weakness::ClaimsOfOldEpochs, &["D9"]),
        (Weakness::NoLookBeforeTheCall, &["one call"]),
        (Weakness::OwnClaimsForgotten, &["everything ends"]),
    ];
    let both = [EVERYTHING, DELEGATED].map(|setup| rules.map(|rule| (setup, rule)));
    for (setup, (weakness, properties)) in both.into_iter().flatten() {
        let checker = Dispatch::new(setup, Some(weakness)).checker();
        let checker = checker
            .finish_when(stateright::HasDiscoveries::AnyFailures)
            .spawn_bfs()
            .join();
        let found: Vec<&str> = checker
            .discoveries()
            .into_keys()
            .filter(|name| !name.starts_with("some end"))
            .collect();
        println!("{weakness:?}: {found:?} after {} worlds", checker.unique_state_count());
        let expected = |name: &&str| properties.iter().any(|p| name.starts_with(p));
        assert!(found.iter().any(expected), "{weakness:?}: {found:?}");
    }
}
