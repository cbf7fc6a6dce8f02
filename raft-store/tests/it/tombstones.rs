//! What was removed costs nothing. RocksDB keeps a removed row as a tombstone until a compaction, and counts how many of
//! them its iterators step over. These tests run on RocksDB without compactions in between, as a node does for minutes.

use agentpost_proto::command::operation::Op;
use agentpost_proto::command::reply::Reply as R;
use agentpost_proto::command::{
    AckCursors, AttemptOutcome, AttemptRef, AttemptResult, BeginEpoch, Claim, ClaimLogin, FanoutChunk, Grant,
    LeaseReads, LeaseReturn, Outcome, Permission, Principal, RegisterWebhook, Reply, ReturnLeases, SendBatch, Sweep,
    TeamLimits, Unsubscribe, WebhookEvent,
};
use agentpost_proto::limits;
use agentpost_proto::record::LogId;
use agentpost_raft_store::core::apply::apply_command;
use agentpost_raft_store::core::query;
use agentpost_raft_store::core::view::{HotCache, View};
use agentpost_raft_store::disk::options::Options;
use agentpost_raft_store::disk::state::StateDb;
use agentpost_testkit::commands::{
    ack, approve_login, bootstrap, create_key, create_team, encode, id_of, principal, send, start_login, subscribe,
    team_id, unlimited,
};
use bytes::Bytes;
use rocksdb::perf::{PerfContext, PerfMetric, PerfStatsLevel, set_perf_stats};

const DAY_MS: u64 = 24 * 3600 * 1000;
/// Rows in a queue: many sweeps long.
const ROWS: usize = 2_500;

/// A replica on RocksDB, whose clocks the test sets.
struct Disk {
    db: StateDb,
    _dir: tempfile::TempDir,
    cache: HotCache,
    index: u64,
    epoch: u64,
    now_ms: u64,
}

fn key() -> Option<Principal> {
    Some(principal("acme", "w"))
}

impl Disk {
    /// A replica with a team and an administrator.
    fn new(limits: TeamLimits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let db = StateDb::open(dir.path(), &Options::default()).unwrap();
        let mut disk = Disk {
            db,
            _dir: dir,
            cache: HotCache::default(),
            index: 0,
            epoch: 0,
            now_ms: DAY_MS,
        };
        disk.apply([(None, Op::BeginEpoch(BeginEpoch { node: 1, term: 1 }))]);
        disk.epoch = disk.index;
        let root = || Some(principal("system", "root"));
        disk.apply([
            (None, bootstrap("root")),
            (root(), create_team("acme", Some(limits))),
            (root(), Op::CreateKey(create_key("acme", "w", Permission::Write, ""))),
            (root(), Op::CreateKey(create_key("acme", "boss", Permission::Admin, ""))),
        ]);
        disk
    }

    /// Applies commands in one batch. None may be rejected.
    fn apply(&mut self, commands: impl IntoIterator<Item = (Option<Principal>, Op)>) -> Vec<Reply> {
        let mut view = View::new(&self.db, &mut self.cache).unwrap();
        let mut replies = Vec::new();
        for (by, op) in commands {
            self.index += 1;
            let (term, node, index) = (1, 1, self.index);
            let command: Bytes = encode(self.now_ms, self.epoch, self.now_ms, by, op);
            let reply = apply_command(&mut view, &LogId { term, node, index }, &command, &mut Vec::new()).unwrap();
            assert!(!matches!(reply.reply, Some(R::Rejection(_))), "{reply:?}");
            replies.push(reply);
        }
        let writes = view.into_writes();
        self.db.write(writes).unwrap();
        replies
    }

    /// Sends `count` messages from alice, made by `message`.
    fn sends(&mut self, count: usize, message: impl Fn(usize) -> agentpost_proto::command::Send) {
        let all: Vec<_> = (0..count).map(message).collect();
        let batches = all.chunks(limits::BATCH_ITEMS_MAX).map(|sends| {
            let sends = sends.to_vec();
            (key(), Op::SendBatch(SendBatch { sends }))
        });
        let batches: Vec<_> = batches.collect();
        self.apply(batches);
    }

    /// Lets time pass, and sweeps as the leader does until nothing is due. Returns the rows that were removed, and the
    /// tombstones that were stepped over.
    fn sweep_after(&mut self, ms: u64) -> (usize, u64) {
        self.now_ms += ms;
        let mut rows = 0;
        let skipped = skipped(|| {
            while let Some(sweep) = query::due::sweep(&self.db, self.now_ms, self.now_ms).unwrap() {
                let reply = self.apply([(None, Op::Sweep(sweep))]).remove(0);
                let Some(R::Sweep(swept)) = reply.reply else {
                    panic!("{reply:?}")
                };
                assert!(swept.rows > 0, "a sweep that was due removes something");
                rows += swept.rows as usize;
            }
            query::due::ages(&self.db).unwrap();
        });
        (rows, skipped)
    }
}

/// How many tombstones the iterators of this thread step over in `work`.
fn skipped(work: impl FnOnce()) -> u64 {
    set_perf_stats(PerfStatsLevel::EnableCount);
    let mut counted = PerfContext::default();
    counted.reset();
    work();
    let skipped = counted.metric(PerfMetric::InternalDeleteSkippedCount);
    set_perf_stats(PerfStatsLevel::Disable);
    skipped
}

#[track_caller]
fn assert_swept((rows, skipped): (usize, u64), wanted: usize) {
    assert!(rows >= wanted, "{rows} of {wanted} rows were removed");
    assert!(skipped < 64, "{skipped} tombstones were in the way of {rows} rows");
}

#[test]
fn idempotency_keys() {
    let mut disk = Disk::new(unlimited());
    disk.sends(ROWS, |n| agentpost_proto::command::Send {
        idempotency_key: format!("key{n}"),
        ..send(&format!("m{n}"), "alice", "bob")
    });
    assert_swept(disk.sweep_after(DAY_MS), ROWS);
}

#[test]
fn messages_that_expire() {
    let mut disk = Disk::new(unlimited());
    let now_ms = disk.now_ms;
    disk.sends(ROWS, |n| agentpost_proto::command::Send {
        expires_at_ms: now_ms + 1_000 + n as u64,
        ..send(&format!("m{n}"), "alice", "bob")
    });
    assert_swept(disk.sweep_after(10_000), ROWS);
}

/// Most messages were removed before their time, by other ways than retention: then the sweep passes their numbers.
#[test]
fn messages_at_their_age() {
    let mut disk = Disk::new(unlimited());
    let now_ms = disk.now_ms;
    disk.sends(ROWS, |n| {
        let (expires_at_ms, to) = if n % 10 == 0 {
            (0, "bob")
        } else {
            (now_ms + 1_000, "carol")
        };
        agentpost_proto::command::Send {
            expires_at_ms,
            ..send(&format!("m{n}"), "alice", to)
        }
    });
    assert_swept(disk.sweep_after(10_000), ROWS * 9 / 10);
    assert_swept(disk.sweep_after(limits::RETENTION_MS), ROWS / 10);
    assert_eq!(
        query::team::head(&disk.db, team_id("acme")).unwrap().swept_seq,
        ROWS as u64
    );
}

#[test]
fn leases_that_were_returned() {
    let mut disk = Disk::new(TeamLimits {
        daily_reads: 1_000_000,
        ..unlimited()
    });
    let lease_id = |n: usize| Bytes::copy_from_slice(&id_of(&format!("lease{n}")));
    for n in 0..ROWS {
        let lease = LeaseReads {
            agent: "bob".to_owned(),
            lease_id: lease_id(n),
            node: 1,
            nodes: 3,
        };
        disk.apply([(key(), Op::LeaseReads(lease))]);
    }
    let day = (disk.now_ms / DAY_MS) as u32;
    for n in 0..ROWS {
        let lease = LeaseReturn {
            team_id: team_id("acme").to_bytes(),
            day,
            lease_id: lease_id(n),
            unused: 1,
        };
        let leases = vec![lease];
        disk.apply([(None, Op::ReturnLeases(ReturnLeases { leases }))]);
    }
    assert_swept(disk.sweep_after(DAY_MS), ROWS);
}

#[test]
fn logins_that_were_fetched() {
    let mut disk = Disk::new(unlimited());
    let code = |n: usize| -> String {
        let letter = |place: u32| limits::USER_CODE_ALPHABET[n / 20_usize.pow(place) % 20] as char;
        (0..8).map(letter).collect()
    };
    let skipped = skipped(|| {
        for n in 0..500 {
            let device = format!("d{n}");
            let boss = Some(principal("acme", "boss"));
            disk.apply([(None, Op::StartLogin(start_login(&code(n), &device, &format!("k{n}"))))]);
            disk.apply([(boss, Op::DecideLogin(approve_login(&code(n), "acme")))]);
            let claim: ClaimLogin = agentpost_testkit::commands::claim_login(&device);
            disk.apply([(None, Op::ClaimLogin(claim))]);
        }
    });
    assert!(skipped < 64, "{skipped} tombstones were in the way of a login");
    assert_swept(disk.sweep_after(limits::LOGIN_TTL_MS), 500);
}

#[test]
fn cursors_that_are_used_again_and_again() {
    let mut disk = Disk::new(unlimited());
    let acks = || (0..200).map(|n| ack("acme", "bob", &format!("c{n}"), 0)).collect();
    for _ in 0..50 {
        disk.now_ms += limits::CURSOR_TOUCH_MS;
        disk.apply([(None, Op::AckCursors(AckCursors { acks: acks() }))]);
    }
    // All of them are still in use, so the sweeps only look again later.
    assert_swept(disk.sweep_after(limits::CURSOR_TTL_MS - DAY_MS), 200);
    assert_eq!(query::team::head(&disk.db, team_id("acme")).unwrap().cursors, 200);
    assert_swept(disk.sweep_after(DAY_MS), 200);
    assert_eq!(query::team::head(&disk.db, team_id("acme")).unwrap().cursors, 0);
}

/// A sweep of one command is bounded, and shares its rows between the queues.
#[test]
fn a_busy_queue_delays_no_other() {
    let mut disk = Disk::new(unlimited());
    let now_ms = disk.now_ms;
    disk.sends(ROWS, |n| agentpost_proto::command::Send {
        idempotency_key: format!("key{n}"),
        ..send(&format!("m{n}"), "alice", "bob")
    });
    disk.sends(10, |n| agentpost_proto::command::Send {
        expires_at_ms: now_ms + 1_000,
        ..send(&format!("e{n}"), "alice", "carol")
    });
    disk.now_ms += DAY_MS;
    disk.apply([(None, Op::Sweep(Sweep::default()))]);
    let carol = query::inbox::head(&disk.db, team_id("acme"), "carol").unwrap();
    assert_eq!(carol.entries, 0, "the first sweep removes what has expired");
}

/// Agents come and go while a few stay. A publish reads the rows of those who are there.
#[test]
fn subscriptions_that_came_and_went() {
    let mut disk = Disk::new(unlimited());
    let join = |agent: String| (key(), Op::Subscribe(subscribe(&agent, "news")));
    let leave = |agent: String| {
        let topic = "news".to_owned();
        (key(), Op::Unsubscribe(Unsubscribe { agent, topic }))
    };
    disk.apply((0..10).map(|n| join(format!("stays{n}"))));
    for n in 0..ROWS {
        disk.apply([join(format!("x{n}"))]);
        if n > 0 {
            disk.apply([leave(format!("x{}", n - 1))]);
        }
    }
    let publish = agentpost_proto::command::Send {
        topic: "news".to_owned(),
        ..send("m1", "alice", "")
    };
    let stepped_over = skipped(|| drop(disk.apply([(key(), Op::Send(publish))])));
    assert!(
        stepped_over < 64,
        "{stepped_over} tombstones were in the way of a publish"
    );
    let receivers = query::topic::receivers(&disk.db, team_id("acme"), 1, usize::MAX).unwrap();
    assert_eq!(receivers.len(), 11);
}

#[test]
fn fan_out_jobs_that_were_finished() {
    const JOBS: u64 = 60;
    let mut disk = Disk::new(unlimited());
    disk.apply((0..300).map(|n| (key(), Op::Subscribe(subscribe(&format!("x{n}"), "big")))));
    disk.sends(JOBS as usize, |n| agentpost_proto::command::Send {
        topic: "big".to_owned(),
        ..send(&format!("m{n}"), "alice", "")
    });
    let team = team_id("acme");
    let stepped_over = skipped(|| {
        while let Some((seq, job)) = query::delivery::first_fanout_job(&disk.db, team, "big").unwrap() {
            let chunk = FanoutChunk {
                epoch: disk.epoch,
                team_id: team.to_bytes(),
                topic: "big".to_owned(),
                seq,
                from_serial: job.next_serial,
            };
            disk.apply([(None, Op::FanoutChunk(chunk))]);
        }
    });
    assert!(
        stepped_over < 64,
        "{stepped_over} tombstones were in the way of the jobs"
    );
    let last = query::inbox::head(&disk.db, team, "x299").unwrap();
    assert_eq!(last.entries, JOBS);
}

/// The leader reads all claims every second.
#[test]
fn claims_that_were_closed() {
    const OPEN: usize = 8;
    let mut disk = Disk::new(unlimited());
    let register = RegisterWebhook {
        agent: "bob".to_owned(),
        webhook_id: Bytes::copy_from_slice(&id_of("hook")),
        url: "https://bob.example/hook".to_owned(),
        events: vec![WebhookEvent::MessageReceived as i32],
    };
    disk.apply([(key(), Op::RegisterWebhook(register))]);
    disk.sends(ROWS, |n| send(&format!("m{n}"), "alice", "bob"));
    let team_id = team_id("acme").to_bytes();
    let attempt = |number: usize| AttemptRef {
        team_id: team_id.clone(),
        number: number as u64,
        attempt_no: 1,
    };
    let epoch = disk.epoch;
    for number in 1..=ROWS {
        let grants = vec![Grant {
            attempt: Some(attempt(number)),
            node: 1,
        }];
        disk.apply([(None, Op::Claim(Claim { epoch, grants }))]);
        if number > OPEN {
            let outcome = AttemptOutcome {
                attempt: Some(attempt(number - OPEN)),
                epoch,
                result: Some(AttemptResult {
                    status: 200,
                    ..AttemptResult::default()
                }),
            };
            let outcomes = vec![outcome];
            disk.apply([(None, Op::Outcome(Outcome { outcomes }))]);
        }
    }
    let (mut read, mut claims) = (0, Vec::new());
    let stepped_over = skipped(|| {
        let view = View::new(&disk.db, &mut disk.cache).unwrap();
        claims = query::delivery::claims(&view).unwrap();
        read = view.touched();
    });
    let numbers: Vec<usize> = claims.iter().map(|(_, _, number)| *number as usize).collect();
    assert_eq!(numbers, (ROWS - OPEN + 1..=ROWS).collect::<Vec<_>>());
    assert!(read < 64, "{read} rows for {OPEN} claims");
    assert!(
        stepped_over < 64,
        "{stepped_over} tombstones were in the way of {OPEN} claims"
    );
}
