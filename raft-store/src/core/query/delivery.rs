//! Queries about deliveries, for the dispatcher and for people.

use agentpost_proto::id::{DeliveryId, TeamId};
use agentpost_proto::limits;
use agentpost_proto::record::{
    ClaimSlot, ClaimTable, Delivery, DeliveryState, EndpointHead, FanoutJob, Message, Topic,
};
use prost::Message as _;

use crate::core::keys;
use crate::core::kv::{Fatal, Kv, Lookup, Order, Row};
use crate::core::view::{decode, load};

/// A delivery by its number in the team.
pub fn by_number(kv: &(impl Lookup + ?Sized), team: TeamId, number: u64) -> Result<Option<Delivery>, Fatal> {
    load(kv, &keys::delivery(team, number))
}

/// A delivery by id.
pub fn by_id(kv: &(impl Lookup + ?Sized), team: TeamId, id: DeliveryId) -> Result<Option<Delivery>, Fatal> {
    match kv
        .get(&keys::delivery_id(team, id))?
        .and_then(|row| keys::trailing_number(&row))
    {
        Some(number) => by_number(kv, team, number),
        None => Ok(None),
    }
}

/// The cluster time at which the earliest scheduled delivery of an endpoint is due, or `None` if none is scheduled.
pub fn endpoint_head(kv: &(impl Lookup + ?Sized), team: TeamId, generation: u64) -> Result<Option<u64>, Fatal> {
    let head: Option<EndpointHead> = load(kv, &keys::endpoint_head(team, generation))?;
    Ok(head.map(|head| head.due_ms))
}

/// All endpoints with scheduled deliveries: team, generation, earliest due time.
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

/// The scheduled deliveries of an endpoint, earliest first: the cluster time at which each is due, and its number.
pub fn scheduled(
    kv: &(impl Kv + ?Sized),
    team: TeamId,
    generation: u64,
    limit: usize,
) -> Result<Vec<(u64, u64)>, Fatal> {
    // The scan begins at the first row, so that it does not step over the tombstones of removed rows.
    let Some(first) = load::<EndpointHead>(kv, &keys::endpoint_head(team, generation))? else {
        return Ok(Vec::new());
    };
    let range = keys::due_from(team, generation, first.due_ms, first.number);
    kv.range(range, Order::Ascending)
        .take(limit)
        .map(|row| parsed(keys::parse_due(&row?.0), "du"))
        .collect()
}

/// The message of a delivery. It exists as long as the delivery may be attempted.
pub fn message(kv: &(impl Kv + ?Sized), team: TeamId, delivery: &Delivery) -> Result<Option<Message>, Fatal> {
    load(kv, &keys::message(team, delivery.message_seq))
}

/// All claimed deliveries, oldest epoch first: epoch, team, number.
pub fn claims(kv: &(impl Kv + ?Sized)) -> Result<Vec<(u64, TeamId, u64)>, Fatal> {
    let table = claim_table(kv)?;
    let slots = if table.open == 0 { 0 } else { table.slots };
    let mut claims = Vec::new();
    for slot in 1..=slots {
        let held: Option<ClaimSlot> = load(kv, &keys::claim_slot(slot))?;
        if let Some(held) = held.filter(|held| held.epoch != 0) {
            let team = TeamId::from_slice(&held.team_id).map_err(|e| Fatal::Invariant(e.to_string()))?;
            claims.push((held.epoch, team, held.number));
        }
    }
    claims.sort_unstable();
    Ok(claims)
}

/// Whether any delivery is claimed.
pub fn has_claims(kv: &(impl Kv + ?Sized)) -> Result<bool, Fatal> {
    Ok(claim_table(kv)?.open > 0)
}

fn claim_table(kv: &(impl Kv + ?Sized)) -> Result<ClaimTable, Fatal> {
    Ok(load(kv, &keys::claim_table())?.unwrap_or_default())
}

/// Whether the delivery is claimed with this attempt number.
pub fn is_claimed(kv: &(impl Kv + ?Sized), team: TeamId, number: u64, attempt_no: u32) -> Result<bool, Fatal> {
    let delivery = by_number(kv, team, number)?;
    Ok(delivery.is_some_and(|delivery| delivery.claim.is_some() && delivery.attempt_no == attempt_no))
}

/// All endpoints whose deliveries are being closed: team, generation.
pub fn closings(kv: &(impl Kv + ?Sized)) -> Result<Vec<(TeamId, u64)>, Fatal> {
    kv.range(keys::closings(), Order::Ascending)
        .map(|row| parsed(keys::parse_endpoint_key(&row?.0), "ec"))
        .collect()
}

/// All unfinished fan-out jobs: team, topic, seq of the publish, job. The jobs of a topic are in the order of their
/// publishes.
pub fn fanout_jobs(kv: &(impl Kv + ?Sized)) -> Result<Vec<(TeamId, String, u64, FanoutJob)>, Fatal> {
    kv.range(keys::fanout_jobs(), Order::Ascending)
        .map(|row| {
            let (key, value) = row?;
            let (team, topic, seq) = parsed(keys::parse_fanout_job(&key), "fj")?;
            Ok((team, topic.to_owned(), seq, decode(value)?))
        })
        .collect()
}

/// The oldest unfinished fan-out job of a topic, the only one whose chunks are accepted.
pub fn first_fanout_job(kv: &(impl Kv + ?Sized), team: TeamId, topic: &str) -> Result<Option<(u64, FanoutJob)>, Fatal> {
    let Some(row) = load::<Topic>(kv, &keys::topic(team, topic))?.filter(|row| row.jobs > 0) else {
        return Ok(None);
    };
    let job = load(kv, &keys::fanout_job(team, topic, row.first_job_seq))?;
    let missing = || Fatal::Invariant(format!("the topic {topic:?} of {team} without its first job"));
    Ok(Some((row.first_job_seq, job.ok_or_else(missing)?)))
}

/// The serials at which the next chunks of a fan-out job begin, at most `limit` of them. A chunk reads
/// `limits::FANOUT_CHUNK_ROWS` subscription rows, which have no gaps between them. A chunk that removes rows reads fewer
/// serials; then the chunks after it are stale and are computed again.
pub fn chunk_starts(
    kv: &(impl Kv + ?Sized),
    team: TeamId,
    topic: &str,
    job: &FanoutJob,
    limit: usize,
) -> Result<Vec<u64>, Fatal> {
    let row: Topic = load(kv, &keys::topic(team, topic))?.unwrap_or_default();
    let last = job.last_serial.min(row.rows);
    let mut starts = vec![job.next_serial];
    starts.extend((job.next_serial..=last).step_by(limits::FANOUT_CHUNK_ROWS).skip(1));
    starts.truncate(limit);
    Ok(starts)
}

/// The deliveries of a message, oldest first, at most `limit`.
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

/// The parameters of a page of deliveries.
#[derive(Debug, Clone)]
pub struct DeliveryQuery<'a> {
    /// Continue after this number.
    pub after: Option<u64>,
    /// Whether the oldest or the newest come first.
    pub order: Order,
    /// The maximal number of deliveries.
    pub limit: usize,
    /// Only deliveries in this state.
    pub state: Option<DeliveryState>,
    /// Only deliveries to or from this agent.
    pub agent: Option<&'a str>,
}

/// A page of deliveries.
#[derive(Debug, Clone)]
pub struct DeliveryPage {
    /// The deliveries, in the order of the query.
    pub deliveries: Vec<Delivery>,
    /// The `after` of the next page. It equals that of the query if nothing was examined.
    pub last: Option<u64>,
}

/// A page of a team's deliveries. It examines at most `limits::PAGE_EXAMINED_MAX` of them, and
/// `limits::PAGE_EXAMINED_BYTES_MAX` of their rows.
pub fn page(kv: &impl Kv, team: TeamId, query: &DeliveryQuery<'_>) -> Result<DeliveryPage, Fatal> {
    let frozen = kv.frozen();
    let kv = frozen.as_ref();
    let mut bytes = 0;
    let mut page = DeliveryPage {
        deliveries: Vec::new(),
        last: query.after,
    };
    for number in numbers(kv, team, query).take(limits::PAGE_EXAMINED_MAX) {
        if page.deliveries.len() == query.limit || bytes > limits::PAGE_EXAMINED_BYTES_MAX {
            break;
        }
        let number = number?;
        page.last = Some(number);
        let Some(delivery) = by_number(kv, team, number)? else {
            continue;
        };
        bytes += delivery.encoded_len();
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

/// The numbers of the deliveries to examine. Dead deliveries are found by their dead-letter rows, without reading the
/// others.
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
