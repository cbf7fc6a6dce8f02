//! Topics of the maximal size, and their bounds.

use agentpost_proto::command::operation::Op;
use agentpost_proto::command::{
    CancelDelivery, ErrorCode, FanoutChunk, FanoutReply, Permission, RegisterWebhook, SendReply, Subscribe,
    reply::Reply as R,
};
use agentpost_proto::id::DeliveryId;
use agentpost_proto::limits;
use agentpost_proto::record::{TeamHead, Topic};
use agentpost_raft_store::core::apply::endpoint::ENDPOINTS_MAX;
use agentpost_raft_store::core::apply::topic::{SUBSCRIPTIONS_MAX, TOPIC_ROWS_MAX};
use agentpost_raft_store::core::effect::Effect;
use agentpost_raft_store::core::keys;
use agentpost_raft_store::core::kv::Lookup;
use agentpost_raft_store::core::query;
use agentpost_raft_store::core::view::{HotCache, decode};
use agentpost_testkit::commands::{
    create_key, create_team, id_of, message_id, principal, publish, subscribe, team_id, unlimited,
};
use bytes::Bytes;
use prost::Message;

use crate::common::core::Core;

fn world() -> Core {
    let mut core = Core::begun(1_000);
    let root = || Some(principal("system", "root"));
    core.apply(root(), create_team("acme", Some(unlimited())));
    core.apply(root(), Op::CreateKey(create_key("acme", "w", Permission::Write, "")));
    core
}

fn by_key(core: &mut Core, op: Op) -> (R, Vec<Effect>) {
    let (reply, effects) = core.apply(Some(principal("acme", "w")), op);
    (reply.reply.unwrap(), effects)
}

fn done(core: &mut Core, op: Op) -> R {
    match by_key(core, op).0 {
        R::Rejection(r) => panic!("rejected: {}", r.message),
        reply => reply,
    }
}

fn refused(core: &mut Core, op: Op) -> ErrorCode {
    match by_key(core, op).0 {
        R::Rejection(r) => r.code(),
        reply => panic!("not refused: {reply:?}"),
    }
}

fn sent(reply: R) -> SendReply {
    match reply {
        R::Send(sent) => sent,
        reply => panic!("not sent: {reply:?}"),
    }
}

/// Applies the next chunk of the publish at `seq`.
fn chunk(core: &mut Core, topic: &str, seq: u64) -> (FanoutReply, Vec<Effect>) {
    let jobs = query::delivery::fanout_jobs(&core.memory).unwrap();
    let (team, _, _, job) = jobs.iter().find(|(_, t, s, _)| t == topic && *s == seq).unwrap();
    let op = FanoutChunk {
        epoch: core.epoch,
        team_id: team.to_bytes(),
        topic: topic.to_owned(),
        seq,
        from_serial: job.next_serial,
    };
    let (reply, effects) = core.apply(None, Op::FanoutChunk(op));
    match reply.reply.unwrap() {
        R::Fanout(reply) => (reply, effects),
        reply => panic!("no chunk: {reply:?}"),
    }
}

#[test]
fn ten_thousand_subscribers_get_each_publish_once_and_in_order() {
    const SUBSCRIBERS: usize = 10_000;
    let mut core = world();
    let agent = |n: usize| format!("agent-{n}");
    for n in 0..SUBSCRIBERS {
        done(&mut core, Op::Subscribe(subscribe(&agent(n), "all")));
    }
    let first = sent(done(&mut core, Op::Send(publish("m1", "agent-77", "all"))));
    let second = sent(done(&mut core, Op::Send(publish("m2", "somebody", "all"))));
    assert!(first.fanout_job && second.fanout_job);
    let team = team_id("acme");

    let (mut chunks, mut grown) = (0, 0);
    for seq in [first.seq, second.seq] {
        loop {
            let (reply, effects) = chunk(&mut core, "all", seq);
            assert!(!reply.stale);
            chunks += 1;
            let appended = effects
                .iter()
                .filter(|e| matches!(e, Effect::InboxAppended { .. }))
                .count();
            assert!(appended <= limits::FANOUT_CHUNK_ROWS);
            grown += appended;
            assert_eq!(reply.finished, effects.contains(&Effect::FanoutFinished { team, seq }));
            if reply.finished {
                break;
            }
        }
    }
    assert_eq!(chunks, 2 * SUBSCRIBERS.div_ceil(limits::FANOUT_CHUNK_ROWS));
    assert_eq!(grown, 2 * SUBSCRIBERS - 1, "all but the publisher itself");
    for n in 0..SUBSCRIBERS {
        let inbox = query::inbox::after(&core.memory, team, &agent(n), 0, 10).unwrap();
        let ids: Vec<Bytes> = inbox.iter().map(|item| item.message.id.clone()).collect();
        let both = [message_id("m1").to_bytes(), message_id("m2").to_bytes()];
        assert_eq!(ids, if n == 77 { &both[1..] } else { &both[..] }, "agent {n}");
    }
    let references = query::inbox::references(&core.memory, team, first.seq).unwrap();
    assert_eq!(
        references, SUBSCRIBERS as u64,
        "all entries but one, and the publish itself"
    );
    let receivers = query::topic::receivers(&core.memory, team, second.seq, SUBSCRIBERS + 1).unwrap();
    assert_eq!(receivers.len(), SUBSCRIBERS);
    assert_eq!(
        query::topic::receivers(&core.memory, team, second.seq, 300)
            .unwrap()
            .len(),
        300
    );
}

/// Writes a row directly, where commands would take too long.
fn pretend(core: &mut Core, key: Bytes, row: &impl Message) {
    core.memory.write(vec![(key, Some(row.encode_to_vec().into()))]);
    core.cache = HotCache::default();
}

#[test]
fn a_team_has_so_many_topics_subscriptions_and_urls() {
    let mut core = world();
    let team = team_id("acme");
    let with_url = |agent: &str, topic: &str, url: &str| {
        Op::Subscribe(Subscribe {
            url: Some(url.to_owned()),
            ..subscribe(agent, topic)
        })
    };
    done(&mut core, with_url("bob", "news", "https://b.example/"));
    let head: TeamHead = query::team::head(&core.memory, team).unwrap();
    let topic: Topic = decode(core.memory.get(&keys::topic(team, "news")).unwrap().unwrap()).unwrap();

    let full = TeamHead {
        topics: limits::TOPICS_MAX,
        ..head
    };
    pretend(&mut core, keys::team_head(team), &full);
    assert_eq!(
        refused(&mut core, Op::Subscribe(subscribe("bob", "more"))),
        ErrorCode::Forbidden
    );
    done(&mut core, Op::Subscribe(subscribe("carol", "news")));

    let full = TeamHead {
        subscriptions: SUBSCRIPTIONS_MAX,
        ..head
    };
    pretend(&mut core, keys::team_head(team), &full);
    assert_eq!(
        refused(&mut core, Op::Subscribe(subscribe("dave", "news"))),
        ErrorCode::Forbidden
    );
    done(&mut core, with_url("bob", "news", "https://b.example/2"));

    let full = TeamHead {
        endpoints: ENDPOINTS_MAX,
        ..head
    };
    pretend(&mut core, keys::team_head(team), &full);
    assert_eq!(
        refused(&mut core, with_url("dave", "news", "https://d.example/")),
        ErrorCode::Forbidden
    );
    let webhook = |url: &str| {
        Op::RegisterWebhook(RegisterWebhook {
            agent: "bob".to_owned(),
            webhook_id: Bytes::copy_from_slice(&id_of("bob")),
            url: url.to_owned(),
            events: vec![1],
        })
    };
    assert_eq!(refused(&mut core, webhook("https://b.example/3")), ErrorCode::Forbidden);
    done(&mut core, webhook("https://b.example/2"));

    pretend(&mut core, keys::team_head(team), &head);
    let full = Topic {
        rows: TOPIC_ROWS_MAX,
        ..topic
    };
    pretend(&mut core, keys::topic(team, "news"), &full);
    assert_eq!(
        refused(&mut core, Op::Subscribe(subscribe("dave", "news"))),
        ErrorCode::Forbidden
    );
    done(&mut core, Op::Subscribe(subscribe("bob", "news")));
}

/// Retention removes a message before its deliveries, and meanwhile its id may be used again.
#[test]
fn a_message_id_that_comes_again_has_deliveries_of_its_own() {
    let mut core = world();
    let team = team_id("acme");
    done(
        &mut core,
        Op::Subscribe(Subscribe {
            url: Some("https://b.example/".to_owned()),
            ..subscribe("bob", "news")
        }),
    );
    done(&mut core, Op::Send(publish("m1", "alice", "news")));
    core.cluster_ms += 1_000;
    let first = query::delivery::by_number(&core.memory, team, 1).unwrap().unwrap();
    let op = CancelDelivery {
        delivery_id: first.id.clone(),
        agent: "bob".to_owned(),
        team_id: Bytes::new(),
    };
    done(&mut core, Op::CancelDelivery(op));

    core.cluster_ms += limits::RETENTION_MS - 1;
    sweep(&mut core);
    assert_eq!(
        query::inbox::message(&core.memory, team, message_id("m1")).unwrap(),
        None
    );
    done(&mut core, Op::Send(publish("m1", "alice", "news")));
    let second = query::delivery::by_number(&core.memory, team, 2).unwrap().unwrap();
    let find = |core: &Core, id: &[u8]| {
        let id = DeliveryId::from_slice(id).unwrap();
        query::delivery::by_id(&core.memory, team, id)
            .unwrap()
            .map(|d| d.number)
    };
    assert_eq!((find(&core, &first.id), find(&core, &second.id)), (Some(1), Some(2)));

    core.cluster_ms += 1;
    sweep(&mut core);
    assert_eq!((find(&core, &first.id), find(&core, &second.id)), (None, Some(2)));
}

fn sweep(core: &mut Core) {
    while let Some(op) = query::due::sweep(&core.memory, core.cluster_ms, core.wall_ms).unwrap() {
        core.apply(None, Op::Sweep(op));
    }
}

#[test]
fn a_url_has_a_length() {
    let mut core = world();
    let url = |bytes: usize| {
        let url = format!("https://b.example/{}", "x".repeat(bytes - 18));
        Op::Subscribe(Subscribe {
            url: Some(url),
            ..subscribe("bob", "news")
        })
    };
    done(&mut core, url(limits::URL_BYTES_MAX));
    assert_eq!(refused(&mut core, url(limits::URL_BYTES_MAX + 1)), ErrorCode::Invalid);
}
