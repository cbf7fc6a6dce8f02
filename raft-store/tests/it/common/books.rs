//! Checks that the rows of a state agree with each other: counters, indexes, references.

use std::collections::{BTreeMap, BTreeSet};

use agentpost_proto::id::{KeyId, MessageId, TeamId};
use agentpost_proto::limits;
use agentpost_proto::record::{
    Closing, Cursor, DeadLetter, Delivery, DeliveryState, Endpoint, EndpointHead, FanoutJob, InboxEntry, InboxHead,
    Key, Login, LoginHead, LoginState, Message, Receivers, Subscription, TeamHead, Topic, Webhook,
};
use agentpost_raft_store::core::apply::delivery::UNKNOWN_CLOSINGS_MAX;
use agentpost_raft_store::core::keys::{self, Queue};
use agentpost_raft_store::core::kv::{Kv, Lookup, Memory, Order};
use agentpost_raft_store::core::query;
use agentpost_raft_store::core::view::decode;
use bytes::Bytes;
use proptest::prelude::*;

pub type Check = Result<(), TestCaseError>;

/// An inbox entry, with its inbox and seq.
pub struct Entry {
    pub agent: String,
    pub seq: u64,
    pub message_seq: u64,
    pub position: u64,
    pub is_read: bool,
}

/// All rows with a tag, decoded.
fn all<T: prost::Message + Default>(kv: &Memory, tag: &[u8; 2]) -> Vec<(Bytes, T)> {
    let end = [tag[0], tag[1] + 1];
    kv.range(tag.to_vec()..end.to_vec(), Order::Ascending)
        .map(|row| row.map(|(key, value)| (key, decode(value).unwrap())).unwrap())
        .collect()
}

/// All rows of a team with a tag, decoded.
fn of_team<T: prost::Message + Default>(kv: &Memory, tag: &[u8; 2], team: TeamId) -> Vec<(Bytes, T)> {
    let mut rows = all(kv, tag);
    rows.retain(|(key, _)| key[2..18] == team.0);
    rows
}

/// The keys of a team's rows with a tag.
fn keys_of(kv: &Memory, tag: &[u8; 2], team: TeamId) -> BTreeSet<Bytes> {
    let prefix = [&tag[..], &team.0].concat();
    let rows = kv.rows().filter(|(key, _)| key.starts_with(&prefix));
    rows.map(|(key, _)| key.clone()).collect()
}

/// The text field after the team in a key.
fn text(key: &[u8]) -> String {
    let end = 18 + key[18..].iter().position(|byte| *byte == 0).unwrap();
    String::from_utf8(key[18..end].to_vec()).unwrap()
}

fn number(key: &[u8]) -> u64 {
    keys::trailing_number(key).unwrap()
}

/// All inbox entries of a team, by inbox and seq.
pub fn entries(kv: &Memory, team: TeamId) -> Vec<Entry> {
    let mut entries: Vec<Entry> = [(b"iu", false), (b"ir", true)]
        .into_iter()
        .flat_map(|(tag, is_read)| {
            of_team::<InboxEntry>(kv, tag, team)
                .into_iter()
                .map(move |(key, row)| Entry {
                    agent: text(&key),
                    seq: number(&key),
                    message_seq: row.message_seq,
                    position: row.position,
                    is_read,
                })
        })
        .collect();
    entries.sort_by(|a, b| (&a.agent, a.seq).cmp(&(&b.agent, b.seq)));
    entries
}

fn deliveries(kv: &Memory, team: TeamId) -> Vec<Delivery> {
    of_team(kv, b"dl", team).into_iter().map(|(_, d)| d).collect()
}

fn is_open(delivery: &Delivery) -> bool {
    matches!(delivery.state(), DeliveryState::Scheduled | DeliveryState::Claimed)
}

/// All checks below, for one team.
pub fn check(kv: &Memory, team: TeamId) -> Check {
    members(kv, team)?;
    members(kv, TeamId::SYSTEM)?;
    logins(kv)?;
    cursors(kv, team)?;
    queues(kv, team)?;
    inboxes(kv, team)?;
    references(kv, team)?;
    topics(kv, team)?;
    endpoints(kv, team)?;
    delivery_rows(kv, team)?;
    delivery_indexes(kv, team)?;
    nothing_is_stuck(kv, team)
}

/// Every key is counted and can be found by its hash and by its id. Every agent is counted.
pub fn members(kv: &Memory, team: TeamId) -> Check {
    let head: TeamHead = query::team::head(kv, team).unwrap();
    let own = of_team::<Key>(kv, b"ke", team);
    prop_assert_eq!(head.keys as usize, own.len());
    for (row, key) in own {
        let id = KeyId::from_slice(&key.id).unwrap();
        prop_assert_eq!(&row, &keys::key(team, id));
        prop_assert_eq!(&key.team_id, &team.to_bytes());
        prop_assert_eq!(query::key::by_hash(kv, &key.hash).unwrap(), Some(key));
        prop_assert_eq!(kv.get(&keys::key_team(id)).unwrap(), Some(team.to_bytes()));
    }
    let rows = |tag: &[u8; 2]| kv.rows().filter(|(key, _)| key.starts_with(tag)).count();
    prop_assert_eq!((rows(b"kh"), rows(b"ki")), (rows(b"ke"), rows(b"ke")));
    prop_assert_eq!(head.agents as usize, keys_of(kv, b"ag", team).len());
    Ok(())
}

/// Every login is counted, can be found by its device, and has an expiry row. An approved one was approved by an
/// administrator of its team.
pub fn logins(kv: &Memory) -> Check {
    let head: Option<LoginHead> = kv.get(&keys::login_head()).unwrap().map(|row| decode(row).unwrap());
    let logins = all::<Login>(kv, b"lo");
    prop_assert_eq!(head.unwrap_or_default().open as usize, logins.len());
    let (mut devices, mut expiries) = (BTreeMap::new(), BTreeSet::new());
    for (row, login) in logins {
        prop_assert_eq!(&row, &keys::login(&login.user_code));
        let is_decided = login.state() != LoginState::Pending;
        prop_assert_eq!(is_decided, login.decided_by.is_some());
        prop_assert_eq!(login.state() == LoginState::Approved, !login.team_id.is_empty());
        if let Some(by) = login.decided_by.filter(|_| !login.team_id.is_empty()) {
            prop_assert!(by.team_id == login.team_id || by.team_id == TeamId::SYSTEM.to_bytes());
        }
        devices.insert(
            keys::login_device(&login.device_hash),
            Bytes::from(login.user_code.clone()),
        );
        expiries.insert(keys::login_expiry(login.expires_ct_ms, &login.user_code));
    }
    let rows = |tag: &'static [u8; 2]| kv.rows().filter(move |(key, _)| key.starts_with(tag));
    let found: BTreeMap<Bytes, Bytes> = rows(b"ld").map(|(key, value)| (key.clone(), value.clone())).collect();
    prop_assert_eq!(found, devices);
    // The rows of logins that are gone stay until their time.
    let queued: BTreeSet<Bytes> = rows(b"lx").map(|(key, _)| key.clone()).collect();
    prop_assert!(expiries.is_subset(&queued));
    Ok(())
}

/// Every cursor has one row of a use, not later than its last one, every such row has its cursor, and cursors with a
/// client id are counted.
fn cursors(kv: &Memory, team: TeamId) -> Check {
    let head: TeamHead = query::team::head(kv, team).unwrap();
    let (mut named, mut notes) = (0, BTreeSet::new());
    let now = query::applied(kv).unwrap().cluster_ms;
    for (key, cursor) in of_team::<Cursor>(kv, b"cu", team) {
        let agent = text(&key);
        let client = std::str::from_utf8(&key[18 + agent.len() + 1..key.len() - 1]).unwrap();
        named += u32::from(!client.is_empty());
        prop_assert!(cursor.seq <= head.last_seq && (1..=now.max(1)).contains(&cursor.used_ct_ms));
        notes.insert((key, cursor.used_ct_ms));
    }
    prop_assert_eq!(head.cursors, named);
    let rows = kv.rows().map(|(key, _)| key.clone());
    let found: Vec<Bytes> = rows
        .filter(|key| key.starts_with(b"cx") && key[10..26] == team.0)
        .collect();
    prop_assert_eq!(found.len(), notes.len());
    for (cursor, used_ct_ms) in notes {
        let own = |row: &&Bytes| keys::cursor_of_use(row) == Some(cursor.clone());
        let noted = found.iter().find(own).and_then(|row| keys::time_of(row));
        prop_assert!(noted.is_some_and(|noted| noted <= used_ct_ms));
    }
    Ok(())
}

/// No queue has a row below its floor. A team is in the queue of retention once if it has messages that retention has
/// not passed, and a message that expires within the time of retention is in that of expiry.
fn queues(kv: &Memory, team: TeamId) -> Check {
    for queue in Queue::ALL {
        let floor = kv.get(&keys::queue_floor(queue)).unwrap();
        let first = kv.range(keys::queue_from(queue, None), Order::Ascending).next();
        if let (Some(floor), Some(first)) = (floor, first) {
            prop_assert!(first.unwrap().0 >= floor, "a row below the floor of {:?}", queue);
        }
    }
    let queued = |queue: Queue| {
        kv.range(keys::queue_from(queue, None), Order::Ascending)
            .map(|row| row.unwrap().0)
    };
    let own = queued(Queue::Retention).filter(|key| keys::parse_retention_end(key) == Some(team));
    let head: TeamHead = query::team::head(kv, team).unwrap();
    prop_assert_eq!(own.count(), usize::from(head.in_retention));
    let in_inboxes: BTreeSet<u64> = entries(kv, team).iter().map(|entry| entry.message_seq).collect();
    let expiring: BTreeSet<(TeamId, u64)> = queued(Queue::Expiry)
        .filter_map(|key| keys::parse_message_expiry(&key))
        .collect();
    for message in query::inbox::team_after(kv, team, 0, usize::MAX).unwrap() {
        prop_assert!(head.in_retention || message.seq <= head.swept_seq);
        let expires_soon =
            message.expires_at_ms != 0 && message.expires_at_ms < message.created_at_ms + limits::RETENTION_MS;
        if expires_soon && in_inboxes.contains(&message.seq) {
            let is_pending = query::topic::fanout_pending(kv, team, &message.topic, message.seq).unwrap();
            prop_assert!(is_pending || expiring.contains(&(team, message.seq)));
        }
    }
    Ok(())
}

/// The head of each inbox counts its entries and knows the first read and unread one, and seq and position rise along the inbox.
fn inboxes(kv: &Memory, team: TeamId) -> Check {
    let entries = entries(kv, team);
    for (key, head) in of_team::<InboxHead>(kv, b"ih", team) {
        let own: Vec<&Entry> = entries.iter().filter(|e| e.agent == text(&key)).collect();
        prop_assert_eq!(head.entries, own.len() as u64);
        prop_assert_eq!(head.unread, own.iter().filter(|e| !e.is_read).count() as u64);
        for (is_read, floor) in [(false, head.unread_floor), (true, head.read_floor)] {
            let first = own.iter().find(|e| e.is_read == is_read);
            prop_assert!(
                first.is_none_or(|e| e.seq == floor),
                "the first row of each kind is known"
            );
        }
        prop_assert!(
            own.windows(2)
                .all(|w| w[0].seq < w[1].seq && w[0].position < w[1].position)
        );
        prop_assert!(own.last().is_none_or(|e| e.position <= head.last_position));
    }
    Ok(())
}

/// A message exists exactly as long as something refers to it: inbox entries, open and dead deliveries, its publish.
fn references(kv: &Memory, team: TeamId) -> Check {
    let mut referred: BTreeMap<u64, u64> = BTreeMap::new();
    for entry in entries(kv, team) {
        *referred.entry(entry.message_seq).or_default() += 1;
    }
    for delivery in deliveries(kv, team) {
        let is_kept = delivery.state() == DeliveryState::Dead && !delivery.message_released;
        if is_open(&delivery) || is_kept {
            *referred.entry(delivery.message_seq).or_default() += 1;
        }
    }
    for (key, _) in of_team::<Receivers>(kv, b"rc", team) {
        let publish = u64::from_be_bytes(key[18..26].try_into().unwrap());
        let own = kv.get(&keys::receivers(team, publish, publish)).unwrap();
        prop_assert!(own.is_some(), "the publish's own row goes last");
        if number(&key) == publish {
            *referred.entry(publish).or_default() += 1;
        }
    }
    let messages: Vec<Message> = query::inbox::team_after(kv, team, 0, usize::MAX).unwrap();
    let counted: BTreeMap<u64, u64> = messages
        .iter()
        .map(|m| (m.seq, query::inbox::references(kv, team, m.seq).unwrap()))
        .collect();
    prop_assert_eq!(counted, referred);
    for count in keys_of(kv, b"rf", team) {
        prop_assert!(
            messages.iter().any(|m| m.seq == number(&count)),
            "a count without its message"
        );
    }
    let ids: BTreeSet<_> = messages.iter().map(|m| m.id.clone()).collect();
    prop_assert_eq!(ids.len(), messages.len(), "one message per id");
    for message in &messages {
        let id = MessageId::from_slice(&message.id).unwrap();
        prop_assert_eq!(query::inbox::message(kv, team, id).unwrap().unwrap().seq, message.seq);
    }
    Ok(())
}

/// The counters of topics equal their rows, and every subscription can be found by its topic and by its agent.
fn topics(kv: &Memory, team: TeamId) -> Check {
    let head: TeamHead = query::team::head(kv, team).unwrap();
    let topics = of_team::<Topic>(kv, b"tp", team);
    let rows = of_team::<Subscription>(kv, b"su", team);
    let jobs: Vec<(String, u64, FanoutJob)> = query::delivery::fanout_jobs(kv)
        .unwrap()
        .into_iter()
        .filter(|(t, ..)| *t == team)
        .map(|(_, topic, seq, job)| (topic, seq, job))
        .collect();
    prop_assert_eq!(head.topics as usize, topics.len());
    for (key, topic) in &topics {
        let name = text(key);
        let own = rows.iter().filter(|(row, _)| text(row) == name).count();
        prop_assert_eq!(topic.rows as usize, own);
        let serials: BTreeSet<u64> = rows
            .iter()
            .filter(|(row, _)| text(row) == name)
            .map(|(row, _)| number(row))
            .collect();
        prop_assert_eq!(
            serials,
            (1..=topic.rows).collect(),
            "the serials of a topic have no gap"
        );
        let first_job = jobs.iter().filter(|(t, ..)| *t == name).map(|(_, seq, _)| *seq).min();
        prop_assert_eq!(topic.first_job_seq, first_job.unwrap_or(0));
        prop_assert_eq!(topic.jobs as usize, jobs.iter().filter(|(t, ..)| *t == name).count());
        prop_assert!(topic.rows + u64::from(topic.jobs) > 0, "an empty topic is gone");
    }
    for (topic, seq, job) in &jobs {
        let message: Option<Message> = kv
            .get(&keys::message(team, *seq))
            .unwrap()
            .map(|row| decode(row).unwrap());
        prop_assert_eq!(&message.unwrap().topic, topic);
        prop_assert!(job.next_serial <= job.last_serial.max(1));
    }
    let open: BTreeSet<(String, String, u64)> = rows
        .iter()
        .filter(|(_, row)| row.until_index == 0)
        .map(|(key, row)| (row.agent.clone(), text(key), number(key)))
        .collect();
    prop_assert_eq!(head.subscriptions as usize, open.len());
    let agents: BTreeSet<String> = rows.iter().map(|(_, row)| row.agent.clone()).collect();
    let mut found = BTreeSet::new();
    for agent in &agents {
        for (topic, row) in query::topic::subscriptions(kv, team, agent).unwrap() {
            let (serial, same) = query::topic::open(kv, team, agent, &topic).unwrap().unwrap();
            prop_assert_eq!(row, same);
            found.insert((agent.clone(), topic, serial));
        }
    }
    prop_assert_eq!(open, found);
    Ok(())
}

/// An endpoint exists as long as webhooks and subscriptions use its URL, and counts them.
fn endpoints(kv: &Memory, team: TeamId) -> Check {
    let mut users: BTreeMap<(String, String), u32> = BTreeMap::new();
    for (key, webhook) in of_team::<Webhook>(kv, b"wh", team) {
        *users.entry((text(&key), webhook.url)).or_default() += 1;
    }
    for (_, row) in of_team::<Subscription>(kv, b"su", team) {
        prop_assert!(row.until_index == 0 || row.url.is_empty(), "a closed row has no URL");
        if !row.url.is_empty() {
            *users.entry((row.agent, row.url)).or_default() += 1;
        }
    }
    let rows = of_team::<Endpoint>(kv, b"ep", team);
    let counted: BTreeMap<(String, String), u32> = rows
        .iter()
        .map(|(key, row)| {
            let agent = text(key);
            let url = &key[18 + agent.len() + 1..key.len() - 1];
            ((agent, String::from_utf8(url.to_vec()).unwrap()), row.users)
        })
        .collect();
    let head = query::team::head(kv, team).unwrap();
    prop_assert_eq!(head.endpoints as usize, rows.len());
    prop_assert_eq!(counted, users);
    let generations: BTreeSet<u64> = rows.iter().map(|(_, row)| row.generation).collect();
    prop_assert_eq!(generations.len(), rows.len(), "a generation names one endpoint");
    Ok(())
}

/// The invariants D3 and D7 of deliveries, and the fields that belong to each state.
fn delivery_rows(kv: &Memory, team: TeamId) -> Check {
    let dead_letters: BTreeMap<u64, DeadLetter> = of_team(kv, b"dd", team)
        .into_iter()
        .map(|(key, row)| (number(&key), row))
        .collect();
    let mut notices = BTreeSet::new();
    let head = query::team::head(kv, team).unwrap();
    let deliveries = deliveries(kv, team);
    for d in &deliveries {
        let is_claimed = d.state() == DeliveryState::Claimed;
        let closed = d.closed_failed + d.closed_unknown + d.closed_not_sent + d.closed_delivered;
        prop_assert_eq!(closed + u32::from(is_claimed), d.attempt_no, "D3");
        prop_assert_eq!(is_claimed, d.claim.is_some());
        prop_assert!(d.step <= 3 && d.number <= head.last_delivery);
        prop_assert_eq!(
            d.closed_delivered,
            u32::from(d.state() == DeliveryState::Delivered),
            "D7"
        );
        let dead = dead_letters.get(&d.number);
        prop_assert_eq!(d.state() == DeliveryState::Dead, dead.is_some(), "D7");
        if let Some(dead) = dead {
            prop_assert_eq!(&dead.delivery_id, &d.id);
            prop_assert!(notices.insert(dead.notice_id.clone()), "D7: a notice of its own");
            let id = MessageId::from_slice(&dead.notice_id).unwrap();
            // The notice is mail of the sender, so retention may have removed it.
            if let Some(notice) = query::inbox::message(kv, team, id).unwrap() {
                prop_assert_eq!((&notice.to, notice.seq), (&d.from, dead.notice_seq));
            }
        }
    }
    prop_assert_eq!(
        notices.len(),
        dead_letters.len(),
        "D7: no dead letter without its delivery"
    );
    let one_each: BTreeSet<(u64, &str, &str, u32)> = deliveries
        .iter()
        .map(|d| (d.message_seq, d.agent.as_str(), d.url.as_str(), d.redrive_no))
        .collect();
    prop_assert_eq!(
        one_each.len(),
        deliveries.len(),
        "one delivery per message, agent and URL"
    );
    Ok(())
}

/// The indexes contain exactly the deliveries that they must.
fn delivery_indexes(kv: &Memory, team: TeamId) -> Check {
    let deliveries = deliveries(kv, team);
    let expected =
        |key: &dyn Fn(&Delivery) -> Option<Bytes>| -> BTreeSet<Bytes> { deliveries.iter().filter_map(key).collect() };
    let scheduled = |d: &Delivery| d.state() == DeliveryState::Scheduled;
    let due = expected(&|d| scheduled(d).then(|| keys::due(team, d.generation, d.due_ms, d.number)));
    prop_assert_eq!(keys_of(kv, b"du", team), due, "du");
    let of_message = expected(&|d| Some(keys::delivery_of_message(team, d.message_seq, d.number)));
    prop_assert_eq!(keys_of(kv, b"dm", team), of_message, "dm");
    let dead = expected(&|d| (d.state() == DeliveryState::Dead).then(|| keys::dead_letter(team, d.number)));
    prop_assert_eq!(keys_of(kv, b"dd", team), dead, "dd");

    let ids = kv
        .rows()
        .filter(|(key, _)| key.starts_with(&[b"di", &team.0[..]].concat()))
        .map(|(key, value)| (key.clone(), number(value)))
        .collect::<BTreeMap<_, _>>();
    let id_of = |d: &Delivery| agentpost_proto::id::DeliveryId::from_slice(&d.id).unwrap();
    let expected_ids: BTreeMap<Bytes, u64> = deliveries
        .iter()
        .map(|d| (keys::delivery_id(team, id_of(d)), d.number))
        .collect();
    prop_assert_eq!(ids, expected_ids, "di");

    let mut heads: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    for d in deliveries.iter().filter(|d| scheduled(d)) {
        let first = heads.entry(d.generation).or_insert((d.due_ms, d.number));
        *first = (*first).min((d.due_ms, d.number));
    }
    let stored: BTreeMap<u64, (u64, u64)> = of_team::<EndpointHead>(kv, b"eh", team)
        .into_iter()
        .map(|(key, head)| (number(&key), (head.due_ms, head.number)))
        .collect();
    prop_assert_eq!(stored, heads, "eh");

    let claims: BTreeSet<(u64, u64)> = query::delivery::claims(kv)
        .unwrap()
        .into_iter()
        .filter(|(_, t, _)| *t == team)
        .map(|(epoch, _, number)| (epoch, number))
        .collect();
    let claimed: BTreeSet<(u64, u64)> = deliveries
        .iter()
        .filter_map(|d| d.claim.map(|claim| (claim.epoch, d.number)))
        .collect();
    prop_assert_eq!(claims, claimed, "cl");

    let ageing: Vec<u64> = all::<()>(kv, b"dx")
        .into_iter()
        .filter(|(key, ())| key[10..26] == team.0)
        .map(|(key, ())| number(&key))
        .collect();
    let once: BTreeSet<u64> = ageing.iter().copied().collect();
    prop_assert_eq!(once.len(), ageing.len(), "dx: each once");
    let ended: BTreeSet<u64> = deliveries.iter().filter(|d| !is_open(d)).map(|d| d.number).collect();
    prop_assert_eq!(once, ended, "dx");
    Ok(())
}

/// The endpoint of a scheduled delivery either accepts deliveries or is being closed.
fn nothing_is_stuck(kv: &Memory, team: TeamId) -> Check {
    let open: BTreeSet<u64> = of_team::<Endpoint>(kv, b"ep", team)
        .into_iter()
        .filter(|(_, row)| !row.disabled)
        .map(|(_, row)| row.generation)
        .collect();
    let closing: BTreeSet<u64> = of_team::<Closing>(kv, b"ec", team)
        .into_iter()
        .map(|(key, _)| number(&key))
        .collect();
    for d in deliveries(kv, team) {
        if d.state() == DeliveryState::Scheduled {
            prop_assert!(
                open.contains(&d.generation) || closing.contains(&d.generation),
                "delivery {} is stuck",
                d.number
            );
        }
        prop_assert!(d.closed_unknown <= UNKNOWN_CLOSINGS_MAX + 1);
    }
    Ok(())
}
