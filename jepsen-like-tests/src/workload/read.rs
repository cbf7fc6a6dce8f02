//! Workload B: a few inboxes that some clients fill and many read from every node: page by page with cursors, each
//! page from another node or all from one; the newest first; and the unread messages, which they mark as read.

use std::time::{Duration, Instant};

use anyhow::Result;
use rand::RngExt;

use super::load::Load;
use super::mailbox::{MailboxClient, ReadPosition};
use super::send::{inboxes, load, pace, send_on};
use crate::workload::context::ClientContext;

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
pub async fn start(ctx: &ClientContext) -> Result<Load> {
    let team = ctx.team("read", None).await?;
    let inboxes = inboxes("read", INBOXES);
    let mut load = load(&team, &inboxes);
    // At least 1, because 0 means no limit.
    let half = if ctx.rate == 0 { 0 } else { ctx.rate.div_ceil(2) };
    for _ in 0..SENDERS {
        let client = MailboxClient::new(ctx, &team, load.stop())?;
        load.spawn(send_on(client, inboxes.clone(), 1, pace(half, SENDERS, 1)));
    }
    let gap = pace(half, READERS, 1);
    for inbox in &inboxes {
        for local in [false, true] {
            let client = MailboxClient::new(ctx, &team, load.stop())?;
            load.spawn(walk(client, inbox.clone(), local, gap));
        }
        let client = MailboxClient::new(ctx, &team, load.stop())?;
        load.spawn(look_and_mark(client, inbox.clone(), gap));
    }
    Ok(load)
}

/// Reads an inbox from its beginning, and sometimes again from an earlier position, each page from a random node.
async fn walk(mut client: MailboxClient, inbox: String, local: bool, gap: Duration) -> Result<()> {
    let mut place = ReadPosition::default();
    let mut remembered = vec![place.clone()];
    while !client.over() {
        let began = Instant::now();
        let node = client.any_node();
        let limit = limit(&mut client, &place);
        client.read_on(node, &inbox, &mut place, limit, local).await;
        if client.random.random_bool(BACK) {
            let other = client.random.random_range(0..remembered.len());
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
pub fn limit(client: &mut MailboxClient, place: &ReadPosition) -> usize {
    if place.more && client.random.random_bool(0.7) {
        return LIMIT_MAX;
    }
    LIMITS[client.random.random_range(0..LIMITS.len())]
}

/// Reads the newest and the unread messages in turn and marks some of the unread.
async fn look_and_mark(mut client: MailboxClient, inbox: String, gap: Duration) -> Result<()> {
    while !client.over() {
        let began = Instant::now();
        let (node, limit, local) = (
            client.any_node(),
            client.random.random_range(1..=5),
            client.random.random_bool(0.2),
        );
        client.read_newest(node, &inbox, limit, local).await;
        tokio::time::sleep(gap.saturating_sub(began.elapsed())).await;
        let began = Instant::now();
        mark_some(&mut client, &inbox).await?;
        tokio::time::sleep(gap.saturating_sub(began.elapsed())).await;
    }
    Ok(())
}

/// Lists the unread messages at one node and marks the first few at others.
pub async fn mark_some(client: &mut MailboxClient, inbox: &str) -> Result<()> {
    let (node, limit, marked) = (
        client.any_node(),
        client.random.random_range(1..=20),
        client.random.random_range(0..=3),
    );
    let unread = client.read_unread(node, inbox, limit).await;
    for id in unread.iter().take(marked) {
        let node = client.any_node();
        client.mark(node, inbox, id).await?;
    }
    Ok(())
}
