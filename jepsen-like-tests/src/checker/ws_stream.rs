//! WebSocket sessions show the inbox in its order, from the position that the client acknowledged to the end, without
//! a gap.
//!
//! | rule | meaning |
//! |---|---|
//! | foreign | a frame is a message of the client's inbox |
//! | seq | each message has one seq, each seq one message; both orders agree |
//! | order | within a session each frame follows the one before it and the resume position: no frame repeats |
//! | gap | a session begins with the first message after its resume position and leaves none out |
//! | resume | the resume position is that of a message, never moves back, and never lies after what the client acknowledged |
//! | end | the last session of a client reaches the end of the inbox |
//! | expired | no client is told that messages were removed; these runs remove none |

use std::collections::{BTreeMap, HashMap};

use super::evidence::Evidence;
use crate::record::history::{Item, Op, Operation};
use crate::record::verdict::Check;

/// Compares each client's sessions with the final inbox.
pub fn check(evidence: &Evidence) -> Check {
    let (looked_at, violations) = compare(&evidence.operations);
    Check::new("ws-stream", looked_at, violations)
}

/// The number of frames, and of frames that were sent again in a later session.
pub fn figures(evidence: &Evidence) -> BTreeMap<String, f64> {
    let (mut frames, mut sessions, mut distinct) = (0, 0, 0);
    for client in clients(&evidence.operations).values() {
        sessions += client.sessions.len();
        let all = || client.sessions.iter().flat_map(|session| &session.items);
        frames += all().count();
        let keys: std::collections::HashSet<&str> = all().map(|item| item.key.as_str()).collect();
        distinct += keys.len();
    }
    if sessions == 0 {
        return BTreeMap::new();
    }
    let counts = [
        ("frames", frames),
        ("frames sent again", frames - distinct),
        ("sessions with frames", sessions),
    ];
    counts
        .into_iter()
        .map(|(name, n)| (name.to_owned(), n as f64))
        .collect()
}

/// One session of a client.
#[derive(Default)]
struct Session<'a> {
    number: u64,
    /// The seq after which it resumes.
    after_seq: u64,
    items: Vec<&'a Item>,
    /// Errors that are visible without the inbox.
    odd: Vec<String>,
}

/// A client with a name, for which the server keeps a cursor.
#[derive(Default)]
struct Client<'a> {
    inbox: &'a str,
    sessions: Vec<Session<'a>>,
    /// Acknowledged seqs, with the session.
    acks: Vec<(u64, u64)>,
}

/// The final state of an inbox.
struct Inbox<'a> {
    /// Positions by the key of a message.
    places: HashMap<&'a str, usize>,
    /// Positions by seq, learned from all frames.
    seqs: BTreeMap<u64, usize>,
}

fn compare(operations: &[Operation]) -> (usize, Vec<String>) {
    let clients = clients(operations);
    let mut violations = Vec::new();
    let mut inboxes: HashMap<&str, Inbox> = HashMap::new();
    for audit in operations.iter().filter(|o| o.op == Op::Audit) {
        if let Some(answered) = audit.answered() {
            let keys = answered.items.iter().map(|item| item.key.as_str());
            inboxes.entry(&audit.k).or_insert_with(|| Inbox {
                places: keys.zip(0..).collect(),
                seqs: BTreeMap::new(),
            });
        }
    }
    for (name, client) in &clients {
        match inboxes.get_mut(client.inbox) {
            Some(inbox) => violations.extend(learn(name, client, inbox)),
            None => violations.push(format!("end: the inbox of {name} cannot be read")),
        }
    }
    for (id, inbox) in &inboxes {
        if let Some((seq, place)) = inbox
            .seqs
            .iter()
            .zip(inbox.seqs.iter().skip(1))
            .find_map(|(a, b)| (a.1 >= b.1).then_some((b.0, b.1)))
        {
            violations.push(format!(
                "seq: {id} has seq {seq} at position {place}, not after the seqs before it"
            ));
        }
    }
    for (name, client) in &clients {
        if let Some(inbox) = inboxes.get(client.inbox) {
            violations.extend(of_client(name, client, inbox));
        }
    }
    let frames = clients.values().flat_map(|c| &c.sessions).map(|s| s.items.len());
    (frames.sum(), violations)
}

fn clients(operations: &[Operation]) -> BTreeMap<&str, Client<'_>> {
    let mut clients: BTreeMap<&str, Client> = BTreeMap::new();
    for operation in operations {
        let (Some(name), Some(number)) = (&operation.asked.name, operation.asked.n) else {
            continue;
        };
        let seq = operation.asked.seq.unwrap_or_default();
        match operation.op {
            Op::FrameAck => clients.entry(name).or_default().acks.push((number, seq)),
            Op::Frame => {
                let client = clients.entry(name).or_default();
                client.inbox = &operation.k;
                if client.sessions.last().is_none_or(|last| last.number != number) {
                    client.sessions.push(Session {
                        number,
                        after_seq: seq,
                        ..Session::default()
                    });
                }
                if let (Some(session), Some(answered)) = (client.sessions.last_mut(), operation.answered()) {
                    session.items.extend(&answered.items);
                    session
                        .odd
                        .extend(answered.n.map(|oldest| format!("expired: everything before {oldest}")));
                    session
                        .odd
                        .extend(answered.name.iter().map(|what| format!("foreign: {what}")));
                }
            }
            _ => {}
        }
    }
    clients
}

/// Learns the seqs of an inbox from a client's frames.
fn learn(name: &str, client: &Client, inbox: &mut Inbox) -> Vec<String> {
    let mut violations = Vec::new();
    for item in client.sessions.iter().flat_map(|session| &session.items) {
        let Some(place) = inbox.places.get(item.key.as_str()).copied() else {
            violations.push(format!(
                "foreign: {name} was shown {} ({}), which {} does not have",
                item.id, item.key, client.inbox
            ));
            continue;
        };
        let Some(seq) = item.seq else { continue };
        let known = *inbox.seqs.entry(seq).or_insert(place);
        if known != place {
            violations.push(format!(
                "seq: {seq} is at the positions {known} and {place} of {}",
                client.inbox
            ));
        }
    }
    violations
}

fn of_client(name: &str, client: &Client, inbox: &Inbox) -> Vec<String> {
    let mut violations = Vec::new();
    let mut acks = client.acks.iter().peekable();
    let (mut acked, mut got, mut resumed) = (None, 0, 0);
    for session in &client.sessions {
        while let Some((_, seq)) = acks.next_if(|(number, _)| *number < session.number) {
            acked = acked.max(Some(*seq));
        }
        let about = format!("{name}, session {}", session.number);
        violations.extend(session.odd.iter().map(|odd| format!("{odd}: {about}")));
        // A client that never sent an ack acknowledges by answering pings.
        let most = acked.unwrap_or(got);
        if session.after_seq < resumed || session.after_seq > most {
            violations.push(format!(
                "resume: {about} begins after {}; the session before it began after {resumed}, and {most} is acknowledged",
                session.after_seq
            ));
        }
        resumed = session.after_seq;
        violations.extend(of_session(&about, session, inbox));
        let newest = session.items.iter().filter_map(|item| item.seq).max();
        got = got.max(newest.unwrap_or(0));
    }
    // The last session may have resumed after the last message.
    let last = client.sessions.last();
    let reached = last.map(|session| {
        session
            .items
            .iter()
            .filter_map(|item| item.seq)
            .fold(session.after_seq, u64::max)
    });
    let place = reached
        .and_then(|seq| inbox.seqs.get(&seq))
        .map_or(0, |place| place + 1);
    if place != inbox.places.len() {
        violations.push(format!(
            "end: {name} reached position {place} of {}",
            inbox.places.len()
        ));
    }
    violations
}

fn of_session(about: &str, session: &Session, inbox: &Inbox) -> Vec<String> {
    let mut violations = Vec::new();
    let mut expected = match session.after_seq {
        0 => Some(0),
        seq => inbox.seqs.get(&seq).map(|place| place + 1),
    };
    if expected.is_none() {
        violations.push(format!(
            "resume: {about} begins after {}, which is not the seq of a message",
            session.after_seq
        ));
    }
    let mut before = session.after_seq;
    for item in &session.items {
        let seq = item.seq.unwrap_or(0);
        if seq <= before {
            violations.push(format!("order: {about} has {seq} after {before}"));
        }
        before = before.max(seq);
        let Some(place) = inbox.places.get(item.key.as_str()).copied() else {
            continue; // reported as foreign
        };
        if let Some(expected) = expected.filter(|expected| *expected < place) {
            violations.push(format!(
                "gap: {about} was not shown the positions {expected} to {} before seq {seq}",
                place - 1
            ));
        }
        expected = Some(expected.map_or(place, |expected| expected.max(place)).max(place) + 1);
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::history::{Fields, Outcome};

    fn item(n: u64) -> Item {
        Item {
            id: format!("id-{n}"),
            key: format!("key-{n}"),
            seq: Some(10 * n),
        }
    }

    fn operation(op: Op, asked: Fields, answered: Fields) -> Operation {
        Operation {
            lane: 0,
            node: Some(1),
            op,
            k: "inbox".to_owned(),
            asked,
            began: 0,
            ended: Some(1),
            outcome: Outcome::Ok(answered),
        }
    }

    fn asked(session: u64, seq: u64) -> Fields {
        Fields {
            name: Some("client".to_owned()),
            n: Some(session),
            seq: Some(seq),
            ..Fields::default()
        }
    }

    fn frames(session: u64, after: u64, numbers: &[u64]) -> Operation {
        let items = numbers.iter().map(|n| item(*n)).collect();
        operation(Op::Frame, asked(session, 10 * after), Fields::items(items))
    }

    fn ack(session: u64, n: u64) -> Operation {
        operation(Op::FrameAck, asked(session, 10 * n), Fields::default())
    }

    /// Two sessions over four messages; the second shows again what was not acknowledged.
    fn good() -> Vec<Operation> {
        let audit = Fields::items((1..=4).map(item).collect());
        vec![
            frames(1, 0, &[1, 2]),
            ack(1, 1),
            frames(2, 1, &[2, 3]),
            frames(2, 1, &[4]),
            operation(Op::Audit, Fields::default(), audit),
        ]
    }

    fn violates(operations: &[Operation], rule: &str) {
        let (_, violations) = compare(operations);
        assert!(
            violations.iter().any(|v| v.starts_with(rule)),
            "no {rule} in {violations:?}"
        );
    }

    #[test]
    fn a_client_that_is_shown_its_inbox_is_well_served() {
        assert_eq!(compare(&good()), (5, Vec::new()));
    }

    #[test]
    fn a_skipped_event_is_a_gap() {
        let mut bad = good();
        bad[2] = frames(2, 1, &[3]);
        violates(&bad, "gap");
        let mut bad = good();
        bad[0] = frames(1, 0, &[2]);
        violates(&bad, "gap");
        let mut bad = good();
        bad[2] = frames(2, 1, &[2]);
        violates(&bad, "gap");
    }

    #[test]
    fn repeated_and_swapped_events_are_out_of_order() {
        for shown in [[2, 2].as_slice(), &[1, 2], &[3, 2]] {
            let mut bad = good();
            bad[2] = frames(2, 1, shown);
            violates(&bad, "order");
        }
    }

    #[test]
    fn a_message_from_elsewhere_is_foreign() {
        let mut bad = good();
        bad[3] = frames(2, 1, &[4, 9]);
        violates(&bad, "foreign");
        let mut bad = good();
        let Outcome::Ok(fields) = &mut bad[3].outcome else {
            unreachable!()
        };
        fields.name = Some("id-4 is for somebody".to_owned());
        violates(&bad, "foreign");
    }

    #[test]
    fn a_seq_is_one_message() {
        let mut bad = good();
        let Outcome::Ok(fields) = &mut bad[3].outcome else {
            unreachable!()
        };
        fields.items[0].seq = Some(30);
        violates(&bad, "seq");
    }

    #[test]
    fn the_place_to_resume_is_acknowledged_and_does_not_go_back() {
        let mut beyond = good();
        (beyond[2], beyond[3]) = (frames(2, 2, &[3]), frames(2, 2, &[4]));
        violates(&beyond, "resume");
        beyond[1] = ack(1, 2);
        assert_eq!(compare(&beyond).1, Vec::<String>::new());
        let mut back = good();
        back.insert(4, frames(3, 0, &[1, 2, 3, 4]));
        violates(&back, "resume");
        let mut nowhere = good();
        nowhere[1] = ack(1, 5);
        nowhere[2].asked.seq = Some(45);
        violates(&nowhere, "resume");
    }

    #[test]
    fn a_client_that_never_gets_the_end_is_starved() {
        let mut bad = good();
        bad.remove(3);
        violates(&bad, "end");
    }

    #[test]
    fn nothing_expires() {
        let mut bad = good();
        let Outcome::Ok(fields) = &mut bad[3].outcome else {
            unreachable!()
        };
        fields.n = Some(40);
        violates(&bad, "expired");
    }
}
