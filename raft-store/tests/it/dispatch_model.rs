//! The dispatch protocol, explored in every order of events: three nodes, two deliveries, two changes of the
//! epoch, a process that is stopped at any moment and goes on at any other, an outcome that is lost (or the
//! answer to it), the answer to a Claim that is lost.
//!
//! What is replicated is the real `apply` (`replica.rs`); what the dispatchers do around it is a model
//! (`world.rs`). What it leaves out: Raft itself (one log, in which also proposals of a replaced leader still
//! land; openraft would refuse those), batches, fair turns, and the answers 410 and 489. While nothing fails
//! a dispatcher does at once what it can do; only faults make it late.
//!
//! Every path ends: an action moves an attempt on, uses a fault up, or passes to a later moment. So "nothing
//! stays claimed for ever" is a property of the states in which nothing can happen any more.

mod replica;
mod world;

use stateright::{Checker, Model, Property};

use self::world::{Dispatch, Rule, Setup, Weakness};

/// Both deliveries on their last step, which ends in success or death: every fault at once.
const EVERYTHING: Setup = Setup {
    failed_before: &[3, 3],
    epochs: 2,
    stops: 1,
    losses: 1,
};

/// One delivery, all the way down the ladder.
const LADDER: Setup = Setup {
    failed_before: &[0],
    epochs: 1,
    stops: 1,
    losses: 1,
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
fn the_ladder_holds_through_every_order_of_faults() {
    explore(LADDER);
}

/// The model can fail: each weakened rule breaks the property that it is there for.
#[test]
fn every_weakened_rule_is_noticed() {
    for (weakness, properties) in [
        (Weakness::EarlyTakeover, &["one call"][..]),
        (Weakness::NumbersReused, &["D1"]),
        (Weakness::OutcomesOfAnyNumber, &["D4"]),
        (Weakness::OutcomesAfterTheEnd, &["D4", "D3"]),
        (Weakness::ClaimsOfOldEpochs, &["D9"]),
        (Weakness::NoLookBeforeTheCall, &["one call"]),
        (Weakness::OwnClaimsForgotten, &["everything ends"]),
    ] {
        let checker = Dispatch::new(EVERYTHING, Some(weakness)).checker();
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
