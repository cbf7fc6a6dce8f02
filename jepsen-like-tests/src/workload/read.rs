//! Workload B: a few inboxes that some clients fill and many read from every node: page by page with cursors, each
//! page from another node or all from one; the newest first; and the unread messages, which they mark as read.

use std::time::{Duration, Instant};

use anyhow::Result;
use rand::RngExt;

use super::Load;
use super::mailbox::{Actor, Place};
use super::send::{inboxes, load, pace, send_on};
use crate::world::World;

/// Inboxes; each has two clients that read on from a cursor, and one that marks.
const INBOXES: usize = 4;
/// Clients that fill the inboxes.
const SENDERS: u64 = 4;
/// Clients that read the inboxes.
const READERS: u64 = 3 * INBOXES as u64;
/// Sizes of pages: small, so that page boundaries are frequent …
const LIMITS: [usize; 5] = [1, 2, 3, 7, 20];
/// … unless a reader is far behind; then it catches up with pages of this size.
const LIMIT_MAX: usize = 200;
/// The probability that a reader goes back to an earlier position.
const BACK: f64 = 0.02;
/// Positions that a reader remembers.
const REMEMBERED: usize = 16;

/// Starts the clients: half of the rate sends, the other half reads.
pub async fn start(world: &World) -> Result<Load> {
    let team = world.team("read", None).await?;
    let inboxes = inboxes("read", INBOXES);
    let mut load = load(&team, &inboxes);
    // At least 1, because 0 means no limit.
    let half = if world.rate == 0 { 0 } else { world.rate.div_ceil(2) };
    for _ in 0..SENDERS {
        let actor = Actor::new(world, &team, load.stop())?;
        load.spawn(send_on(actor, inboxes.clone(), 1, pace(half, SENDERS, 1)));
    }
    let gap = pace(half, READERS, 1);
    for inbox in &inboxes {
        for local in [false, true] {
            let actor = Actor::new(world, &team, load.stop())?;
            load.spawn(walk(actor, inbox.clone(), local, gap));
        }
        let actor = Actor::new(world, &team, load.stop())?;
        load.spawn(look_and_mark(actor, inbox.clone(), gap));
    }
    Ok(load)
}

/// Reads an inbox from its beginning, and sometimes again from an earlier position, each page from a random node.
async fn walk(mut actor: Actor, inbox: String, local: bool, gap: Duration) -> Result<()> {
    let mut place = Place::default();
    let mut remembered = vec![place.clone()];
    while !actor.over() {
        let began = Instant::now();
        let node = actor.any_node();
        let limit = limit(&mut actor, &place);
        actor.read_on(node, &inbox, &mut place, limit, local).await;
        if actor.random.random_bool(BACK) {
            let other = actor.random.random_range(0..remembered.len());
            let back = remembered[other].clone();
            match remembered.len() {
                REMEMBERED => remembered[other] = place,
                _ => remembered.push(place),
            }
            place = back;
        }
        tokio::time::sleep(gap.saturating_sub(began.elapsed())).await;
    }
    Ok(())
}

/// The size of the next page.
pub fn limit(actor: &mut Actor, place: &Place) -> usize {
    if place.more && actor.random.random_bool(0.7) {
        return LIMIT_MAX;
    }
    LIMITS[actor.random.random_range(0..LIMITS.len())]
}

/// Reads the newest and the unread messages in turn and marks some of the unread.
async fn look_and_mark(mut actor: Actor, inbox: String, gap: Duration) -> Result<()> {
    while !actor.over() {
        let began = Instant::now();
        let (node, limit, local) = (
            actor.any_node(),
            actor.random.random_range(1..=5),
            actor.random.random_bool(0.2),
        );
        actor.read_newest(node, &inbox, limit, local).await;
        tokio::time::sleep(gap.saturating_sub(began.elapsed())).await;
        let began = Instant::now();
        mark_some(&mut actor, &inbox).await?;
        tokio::time::sleep(gap.saturating_sub(began.elapsed())).await;
    }
    Ok(())
}

/// Lists the unread messages at one node and marks the first few at others.
pub async fn mark_some(actor: &mut Actor, inbox: &str) -> Result<()> {
    let (node, limit, marked) = (
        actor.any_node(),
        actor.random.random_range(1..=20),
        actor.random.random_range(0..=3),
    );
    let unread = actor.read_unread(node, inbox, limit).await;
    for id in unread.iter().take(marked) {
        let node = actor.any_node();
        actor.mark(node, inbox, id).await?;
    }
    Ok(())
}
