//! Workload I: the operations of the other mailbox workloads, mixed, over a thousand inboxes of which few are busy.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use rand::RngExt;

use super::load::Load;
use super::mailbox::{MailboxClient, ReadPosition};
use super::read::{limit, mark_some};
use super::send::{inboxes, load, pace};
use crate::workload::context::ClientContext;

const LANES: u64 = 16;
const INBOXES: usize = 1_000;
/// The exponent of the Zipf distribution of the inboxes.
const SKEW: f64 = 1.0;
const BATCH: usize = 10;

pub async fn start(ctx: &ClientContext) -> Result<Load> {
    let team = ctx.team("mixed", None).await?;
    let inboxes = inboxes("mixed", INBOXES);
    let mut load = load(&team, &inboxes);
    for _ in 0..LANES {
        let client = MailboxClient::new(ctx, &team, load.stop())?;
        load.spawn(mix(client, inboxes.clone(), pace(ctx.rate, LANES, 1)));
    }
    Ok(load)
}

async fn mix(mut client: MailboxClient, inboxes: Vec<String>, gap: Duration) -> Result<()> {
    let zipf = Zipf::new(inboxes.len(), SKEW);
    let mut places: HashMap<usize, ReadPosition> = HashMap::new();
    while !client.over() {
        let began = Instant::now();
        let number = zipf.place(client.random.random_range(0.0..1.0));
        let (inbox, node) = (&inboxes[number], client.any_node());
        match client.random.random_range(0..100) {
            0..60 => client.send(inbox, 1).await?,
            60..62 => client.send(inbox, BATCH).await?,
            62..65 => client.repeat().await?,
            65 => client.misuse().await?,
            66..86 => {
                let place = places.entry(number).or_default();
                let (limit, local) = (limit(&mut client, place), client.random.random_bool(0.3));
                client.read_on(node, inbox, place, limit, local).await;
            }
            86..94 => {
                let (limit, local) = (client.random.random_range(1..=5), client.random.random_bool(0.3));
                client.read_newest(node, inbox, limit, local).await;
            }
            _ => mark_some(&mut client, inbox).await?,
        }
        tokio::time::sleep(gap.saturating_sub(began.elapsed())).await;
    }
    Ok(())
}

/// Draws indexes with a Zipf distribution: the first ones most often.
struct Zipf {
    /// The cumulative probability of all indexes up to this one.
    until: Vec<f64>,
}

impl Zipf {
    fn new(count: usize, skew: f64) -> Self {
        let mut sum = 0.0;
        let until = (1..=count).map(|place| {
            sum += (place as f64).powf(-skew);
            sum
        });
        let mut until: Vec<f64> = until.collect();
        until.iter_mut().for_each(|share| *share /= sum);
        Zipf { until }
    }

    /// The index of a number from 0 to 1.
    fn place(&self, share: f64) -> usize {
        let place = self.until.partition_point(|until| *until <= share);
        place.min(self.until.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_places_are_met_most_often() {
        let zipf = Zipf::new(4, 1.0);
        // 1 : 1/2 : 1/3 : 1/4 of 25/12.
        let places = [0.0, 0.47, 0.49, 0.71, 0.73, 0.87, 0.89, 1.0].map(|share| zipf.place(share));
        assert_eq!(places, [0, 0, 1, 1, 2, 2, 3, 3]);
    }
}
