//! Questions about deliveries: what the dispatcher has to do, and what people ask.

use agentpost_proto::id::{DeliveryId, TeamId};
use agentpost_proto::limits;
use agentpost_proto::record::{Delivery, DeliveryState, EndpointHead, FanoutJob, Message};

use crate::core::keys;
use crate::core::kv::{Fatal, Kv, Order, Row};
use crate::core::view::{decode, load};

/// A delivery by its number in the team.
pub fn by_number(kv: &(impl Kv + ?Sized), team: TeamId, number: u64) -> Result<Option<Delivery>, Fatal> {
    load(kv, &keys::delivery(team, number))
}

/// A delivery by id.
pub fn by_id(kv: &(impl Kv + ?Sized), team: TeamId, id: DeliveryId) -> Result<Option<Delivery>, Fatal> {
    match kv
        .get(&keys::delivery_id(team, id))?
        .and_then(|row| keys::trailing_number(&row))
    {
        Some(number) => by_number(kv, team, number),
        None => Ok(None),
    }
}

/// When the earliest scheduled delivery of an endpoint is due, in cluster time.
pub fn endpoint_head(kv: &(impl Kv + ?Sized), team: TeamId, generation: u64) -> Result<Option<u64>, Fatal> {
    let head: Option<EndpointHead> = load(kv, &keys::endpoint_head(team, generation))?;
    Ok(head.map(|head| head.due_ms))
}

/// Every endpoint with scheduled deliveries: team, generation, earliest due time.
pub fn endpoint_heads(kv: &(impl Kv + ?Sized)) -> Result<Vec<(TeamId, u64, u64)>, Fatal> {
    kv.range(keys::endpoint_heads(), Order::Ascending)
        .map(|row| {
            let (key, value) = row?;
            let (team, generation) = parsed(keys::parse_endpoint_key(&key), "eh")?;
            let head: EndpointHead = decode(value)?;
            Ok((team, generation, head.due_ms))
        })
        .collect()
}

/// An endpoint's scheduled deliveries, the earliest first: when each is due, in cluster time, and its number.
pub fn scheduled(
    kv: &(impl Kv + ?Sized),
    team: TeamId,
    generation: u64,
    limit: usize,
) -> Result<Vec<(u64, u64)>, Fatal> {
    // From the head on: a scan from the start would cross the traces of all rows removed before it.
    let Some(first) = endpoint_head(kv, team, generation)? else {
        return Ok(Vec::new());
    };
    kv.range(keys::due_from(team, generation, first), Order::Ascending)
        .take(limit)
        .map(|row| parsed(keys::parse_due(&row?.0), "du"))
        .collect()
}

/// The message that a delivery carries. It is there for as long as the delivery may be attempted.
pub fn message(kv: &(impl Kv + ?Sized), team: TeamId, delivery: &Delivery) -> Result<Option<Message>, Fatal> {
    load(kv, &keys::message(team, delivery.message_seq))
}

/// Every claimed delivery: epoch, team, number; the oldest epoch first.
pub fn claims(kv: &(impl Kv + ?Sized)) -> Result<Vec<(u64, TeamId, u64)>, Fatal> {
    kv.range(keys::claims(), Order::Ascending)
        .map(|row| parsed(keys::parse_claimed(&row?.0), "cl"))
        .collect()
}

/// Every endpoint whose deliveries are being closed.
pub fn closings(kv: &(impl Kv + ?Sized)) -> Result<Vec<(TeamId, u64)>, Fatal> {
    kv.range(keys::closings(), Order::Ascending)
        .map(|row| parsed(keys::parse_endpoint_key(&row?.0), "ec"))
        .collect()
}

/// Every unfinished publish: team, topic, seq; those of a topic in order.
pub fn fanout_jobs(kv: &(impl Kv + ?Sized)) -> Result<Vec<(TeamId, String, u64, FanoutJob)>, Fatal> {
    kv.range(keys::fanout_jobs(), Order::Ascending)
        .map(|row| {
            let (key, value) = row?;
            let (team, topic, seq) = parsed(keys::parse_fanout_job(&key), "fj")?;
            Ok((team, topic.to_owned(), seq, decode(value)?))
        })
        .collect()
}

/// The oldest unfinished publish of a topic: the only one whose chunks count now.
pub fn first_fanout_job(kv: &(impl Kv + ?Sized), team: TeamId, topic: &str) -> Result<Option<(u64, FanoutJob)>, Fatal> {
    let Some(row) = kv.range(keys::fanout_jobs_of(team, topic), Order::Ascending).next() else {
        return Ok(None);
    };
    let (key, value) = row?;
    Ok(Some((parsed(keys::trailing_number(&key), "fj")?, decode(value)?)))
}

/// Where the next chunks of a publish begin, at most `limit` of them: each walks
/// `limits::FANOUT_CHUNK_ROWS` subscription rows. While a publish is unfinished no row of its receivers goes
/// away but by its own chunks, so the places can be known before the chunks are applied.
pub fn chunk_starts(
    kv: &(impl Kv + ?Sized),
    team: TeamId,
    topic: &str,
    job: &FanoutJob,
    limit: usize,
) -> Result<Vec<u64>, Fatal> {
    let mut starts = vec![job.next_serial];
    let rows = keys::subscriptions_between(team, topic, job.next_serial, job.last_serial);
    for (n, row) in kv.range(rows, Order::Ascending).enumerate() {
        if starts.len() == limit {
            break;
        }
        let serial = parsed(keys::trailing_number(&row?.0), "su")?;
        if (n + 1) % limits::FANOUT_CHUNK_ROWS == 0 && serial != job.last_serial {
            starts.push(serial + 1);
        }
    }
    Ok(starts)
}

/// The deliveries of a message, in the order they were made, at most `limit`.
pub fn of_message(kv: &(impl Kv + ?Sized), team: TeamId, seq: u64, limit: usize) -> Result<Vec<Delivery>, Fatal> {
    let mut deliveries = Vec::new();
    for row in kv
        .range(keys::deliveries_of_message(team, seq), Order::Ascending)
        .take(limit)
    {
        let number = parsed(keys::trailing_number(&row?.0), "dm")?;
        deliveries.extend(by_number(kv, team, number)?);
    }
    Ok(deliveries)
}

/// What a page of deliveries shall hold.
#[derive(Debug, Clone)]
pub struct DeliveryQuery<'a> {
    /// Continue behind this number.
    pub after: Option<u64>,
    /// Oldest or newest first.
    pub order: Order,
    /// Deliveries at most.
    pub limit: usize,
    /// Only in this state.
    pub state: Option<DeliveryState>,
    /// Only those to or from this agent.
    pub agent: Option<&'a str>,
}

/// A page of deliveries; examines at most `limits::PAGE_EXAMINED_MAX` of them.
#[derive(Debug, Clone)]
pub struct DeliveryPage {
    /// In the order asked for.
    pub deliveries: Vec<Delivery>,
    /// Where the next page continues; that of the query when nothing was examined.
    pub last: Option<u64>,
}

/// A page of a team's deliveries.
pub fn page(kv: &impl Kv, team: TeamId, query: &DeliveryQuery<'_>) -> Result<DeliveryPage, Fatal> {
    let frozen = kv.frozen();
    let kv = frozen.as_ref();
    let mut page = DeliveryPage {
        deliveries: Vec::new(),
        last: query.after,
    };
    for number in numbers(kv, team, query).take(limits::PAGE_EXAMINED_MAX) {
        if page.deliveries.len() == query.limit {
            break;
        }
        let number = number?;
        page.last = Some(number);
        let Some(delivery) = by_number(kv, team, number)? else {
            continue;
        };
        let in_state = query.state.is_none_or(|state| delivery.state() == state);
        let concerns = query
            .agent
            .is_none_or(|agent| delivery.agent == agent || delivery.from == agent);
        if in_state && concerns {
            page.deliveries.push(delivery);
        }
    }
    Ok(page)
}

/// The dead ones have rows of their own, so that they are found among millions.
fn numbers<'a>(
    kv: &'a (impl Kv + ?Sized),
    team: TeamId,
    query: &DeliveryQuery<'_>,
) -> impl Iterator<Item = Result<u64, Fatal>> + 'a {
    let dead = query.state == Some(DeliveryState::Dead);
    let range = match (query.order, query.after, dead) {
        (Order::Descending, Some(before), true) => keys::dead_letters_until(team, before),
        (Order::Descending, Some(before), false) => keys::deliveries_until(team, before),
        (_, after, dead) => {
            let from = after.map_or(0, |after| after.saturating_add(1));
            if dead {
                keys::dead_letters_from(team, from)
            } else {
                keys::deliveries_from(team, from)
            }
        }
    };
    kv.range(range, query.order)
        .map(|row: Result<Row, Fatal>| parsed(keys::trailing_number(&row?.0), "dl"))
}

fn parsed<T>(field: Option<T>, tag: &str) -> Result<T, Fatal> {
    field.ok_or_else(|| Fatal::Invariant(format!("a malformed {tag} key")))
}
