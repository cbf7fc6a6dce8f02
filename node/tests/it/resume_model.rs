//! Resuming, over every interleaving that chance finds: sends and publishes, sessions that break and come back on
//! replicas that lag as they like, acks of honest clients, of clients that never ack and of those that invent
//! numbers, acks that are lost, repeated or in the log unknown to their node, retention, expiry, a full inbox,
//! and cursors that age.
//!
//! Real are the decisions: `Request::start`, `Feed`, `Progress`, the table of acks, `apply`. Played here is what
//! carries them: sockets, nodes, time, and the order of a handshake ([`World::connect`]).

mod cluster;
mod oracle;
mod steps;
mod world;

use proptest::prelude::*;

use world::World;

proptest! {
    #![proptest_config(ProptestConfig { cases: 384, ..ProptestConfig::default() })]

    #[test]
    fn who_resumes_misses_nothing_and_sees_nothing_foreign(
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

/// The histories above mean little if the inbox that is nearly full never overflows.
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
