use super::*;

const A: TeamId = TeamId([1; 16]);

#[test]
fn an_inbox_is_one_range_in_seq_order() {
    let range = inbox_from(ReadState::Unread, A, "bob", 0);
    let inside = [1, 255, 256, u64::MAX].map(|seq| inbox_entry(ReadState::Unread, A, "bob", seq));
    assert!(inside.is_sorted());
    for key in &inside {
        assert!(range.contains(&key.to_vec()));
    }
    for key in [
        inbox_entry(ReadState::Read, A, "bob", 1),
        inbox_entry(ReadState::Unread, A, "bobby", 1),
        inbox_entry(ReadState::Unread, A, "bo", 1),
        inbox_entry(ReadState::Unread, TeamId([2; 16]), "bob", 1),
    ] {
        assert!(!range.contains(&key.to_vec()));
    }
    assert!(inbox_between(ReadState::Unread, A, "bob", 0, 256).contains(&inside[1].to_vec()));
    assert!(!inbox_between(ReadState::Unread, A, "bob", 0, 256).contains(&inside[2].to_vec()));
}

#[test]
fn a_prefix_of_ff_bytes_ends_where_its_parent_ends() {
    let range = keys_of(TeamId([0xff; 16]));
    assert!(range.contains(&key(TeamId([0xff; 16]), KeyId([0xff; 16])).to_vec()));
    assert_eq!(range.end, b"kf".to_vec());
}

#[test]
fn expiry_keys_lead_back_to_their_rows() {
    let expiry = idempotency_expiry(77, A, "bob", "k1");
    assert_eq!(idempotency_of_expiry(&expiry), Some(idempotency(A, "bob", "k1")));
    assert!(queue_before(Queue::Idempotency, None, 78).contains(&expiry.to_vec()));
    assert!(!queue_before(Queue::Idempotency, None, 77).contains(&expiry.to_vec()));
    assert_eq!(parse_message_expiry(&message_expiry(5, A, 9)), Some((A, 9)));
}
