//! A model of resuming, tested with random histories: sends and publishes; sessions that break and resume on replicas that
//! lag; clients that acknowledge honestly, never, or with invented numbers; acknowledgements that are lost, repeated, or
//! logged without their node knowing; retention, expiry, a full inbox, and cursors that are forgotten.
//!
//! The decisions are the real code: `Request::start`, `Feed`, `Progress`, the table of acks, `apply`. The model stands in
//! for sockets, nodes, time, and the order of a handshake ([`World::connect`]).

mod cluster;
mod oracle;
mod steps;
mod world;

use proptest::prelude::*;

use world::World;

proptest! {
    #![proptest_config(ProptestConfig { cases: 384, ..ProptestConfig::default() })]

    #[test]
    fn resumed_sessions_miss_nothing_and_see_only_what_is_theirs(
        stage in steps::stage(),
        steps in prop::collection::vec(steps::step(), 0..240),
    ) {
        let mut world = World::new(stage);
        for step in steps {
            world.step(step)?;
        }
        world.finish()?;
    }
}

/// The histories cover a full inbox only if the inbox that is nearly full does overflow.
#[test]
fn the_bounded_inbox_of_the_stage_loses_its_oldest() {
    let stage = steps::Stage {
        subscriptions: vec![1],
        nodes: 1,
    };
    let mut world = World::new(stage);
    let to_bounded = || steps::Step::Send {
        from: 0,
        to: 1,
        expires: false,
    };
    for _ in 0..=steps::BOUNDED_ENTRIES {
        assert_eq!(world.oldest_removed(), 0);
        world.step(to_bounded()).unwrap();
    }
    assert_eq!(world.oldest_removed(), 1);
    world.finish().unwrap();
}
