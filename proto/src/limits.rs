//! Every bound of the system, with its reason. Defaults of the plan (quotas) are per team; see `TeamLimits`.

/// A message body on either face; Kite's ingress limit.
pub const BODY_BYTES_MAX: usize = 256 * 1024;
/// A request that carries one message: the body, every second character escaped, and its JSON envelope.
pub const REQUEST_BYTES_MAX: usize = 2 * BODY_BYTES_MAX + 16 * 1024;
/// `POST /messages/batch` as a whole.
pub const BATCH_BYTES_MAX: usize = 1024 * 1024;
/// Messages in a batch: one log entry stays well below the replication payload bound.
pub const BATCH_ITEMS_MAX: usize = 100;
/// Any other request.
pub const SMALL_REQUEST_BYTES_MAX: usize = 64 * 1024;
/// JSON nesting in a body; serde_json's own guard of 128 stays on beneath it.
pub const JSON_DEPTH_MAX: usize = 32;

/// An agent id.
pub const AGENT_ID_BYTES_MAX: usize = 128;
/// A topic or message type.
pub const NAME_BYTES_MAX: usize = 128;
/// A thread or reply id, a subject.
pub const OPAQUE_CHARS_MAX: usize = 128;
/// An idempotency key.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 128;
/// A WebSocket `client_id`.
pub const CLIENT_ID_BYTES_MAX: usize = 128;
/// A presented API key: longer ones are refused before they are hashed.
pub const API_KEY_BYTES_MAX: usize = 256;
/// A team or key name.
pub const DISPLAY_NAME_CHARS_MAX: usize = 128;
/// Scopes of a key or of one WebSocket subscription.
pub const SCOPES_MAX: usize = 64;
/// One scope.
pub const SCOPE_BYTES_MAX: usize = 256;
/// `subject`, `priority`, `callbackUrl` and `metadata` of a message together.
pub const EXTRAS_BYTES_MAX: usize = 16 * 1024;

/// Messages of an inbox page when the caller names none.
pub const PAGE_DEFAULT: usize = 50;
/// Messages of an inbox page at most.
pub const PAGE_MAX: usize = 200;
/// Bytes of bodies in a page, about: it may then hold fewer messages than asked for.
pub const PAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Entries that one filtered page examines at most; it may then return fewer than `limit`.
pub const PAGE_EXAMINED_MAX: usize = 2_000;
/// Seconds of a long poll.
pub const WAIT_SECONDS_MAX: u64 = 60;

/// Inbox entries before the oldest are removed, read ones first. A sender is never refused.
pub const INBOX_ENTRIES_MAX: u64 = 100_000;
/// Age at which mail is removed, in cluster time.
pub const RETENTION_MS: u64 = 30 * 24 * 3600 * 1000;
/// Life of an idempotency key, in cluster time.
pub const IDEMPOTENCY_TTL_MS: u64 = 24 * 3600 * 1000;
/// Rows that one Sweep entry removes at most: apply stays short.
pub const SWEEP_ROWS_MAX: usize = 256;

/// Plan default: sends of an agent per UTC day.
pub const DAILY_SENDS: u64 = 1_000;
/// Plan default: inbox reads of an agent per UTC day.
pub const DAILY_READS: u64 = 10_000;
/// Plan default: webhook registrations of an agent per UTC day.
pub const DAILY_WEBHOOK_REGISTRATIONS: u64 = 100;
/// Plan default: events of a team per UTC month.
pub const MONTHLY_EVENTS: u64 = 100_000;
/// How an unlimited `events_limit` is printed: the largest integer that JavaScript holds exactly.
pub const UNLIMITED_EVENTS_SHOWN: u64 = 9_007_199_254_740_991;
/// How an unlimited rate limit header is printed.
pub const UNLIMITED_RATE_SHOWN: u64 = 2_147_483_647;

/// Operations waiting for Raft on one node; more of clients are answered 503 at once.
pub const PROPOSALS_IN_FLIGHT_MAX: usize = 4_096;
/// Of those, kept free for the cluster's own operations (claims, outcomes, chunks): clients cannot starve them.
pub const PROPOSALS_RESERVED: usize = 512;
/// Of one replication request: it must not outlast an election timeout.
pub const APPEND_PAYLOAD_BYTES_MAX: usize = 1024 * 1024;
/// A message on the peer port: an append payload that ends with one largest entry, with room.
pub const PEER_MESSAGE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Bytes of one snapshot chunk.
pub const SNAPSHOT_CHUNK_BYTES: usize = 1024 * 1024;

/// A WebSocket message from a client.
pub const WS_MESSAGE_BYTES_MAX: usize = 256 * 1024;
/// A WebSocket frame from a client.
pub const WS_FRAME_BYTES_MAX: usize = 64 * 1024;
/// Encoded frames gather up to this before they are written to a WebSocket; a batch ends with a write anyway.
pub const WS_WRITE_CHUNK_BYTES: usize = 16 * 1024;
/// What a WebSocket's write buffer may hold: one chunk that waits for the reader and one event. The largest
/// event is a body of control characters, six bytes each in JSON; a smaller buffer would make it poison.
pub const WS_WRITE_BUFFER_BYTES_MAX: usize = WS_WRITE_CHUNK_BYTES + 7 * BODY_BYTES_MAX;
/// Events that a session reads and writes before it looks at the socket again.
pub const WS_BATCH_EVENTS: usize = 64;
/// Sockets of a node: each costs some 50 KiB when idle. More are answered 503 before the upgrade.
pub const WS_SESSIONS_MAX: usize = 10_000;
/// Sessions of one inbox on a node: enough for every process of an agent, too few to exhaust the node.
pub const WS_SESSIONS_PER_AGENT_MAX: usize = 16;
/// Answers waiting for a slow reader before its next request is left unread.
pub const WS_ANSWERS_WAITING_MAX: usize = 16;
/// Encoded events that a session holds while its reader is slow, except that one event is always possible.
pub const WS_BATCH_BYTES: usize = 256 * 1024;
/// Cursors in one AckCursors entry: apply stays short.
pub const ACKS_PER_ENTRY_MAX: usize = 512;
/// Cursors with acks that wait for a quorum on one node; further ones are dropped and their events seen twice.
pub const ACKS_WAITING_MAX: usize = 65_536;
/// Named cursors of a team. Another one has to wait until one was forgotten.
pub const CURSORS_MAX: u32 = 10_000;
/// A cursor that nobody used for so long is forgotten, in cluster time: twice the age that mail reaches.
pub const CURSOR_TTL_MS: u64 = 2 * RETENTION_MS;
/// A use of a cursor is noted when the last note is as old as this: not every ack moves an index row.
pub const CURSOR_TOUCH_MS: u64 = 24 * 3600 * 1000;
/// RPC requests of one session that wait for their turn; a further one is left unread.
pub const RPC_REQUESTS_WAITING_MAX: usize = 16;
/// Events of one `events.recent` at most.
pub const RECENT_EVENTS_MAX: u64 = 1_000;
/// Events of an `events.recent` that names no limit.
pub const RECENT_EVENTS_DEFAULT: u64 = 100;
/// Bytes of bodies in one `events.recent`, about: it then holds fewer events and says where to go on.
pub const RECENT_BYTES_MAX: usize = 1024 * 1024;

/// Keys of a team, revoked and expired ones included. Beyond it a new key takes the place of one of those.
pub const KEYS_MAX: u32 = 1_000;
/// Agents in the directory of a team.
pub const AGENTS_MAX: u32 = 20_000;

/// Life of a device code, in cluster time.
pub const LOGIN_TTL_MS: u64 = 10 * 60 * 1000;
/// Seconds between two questions of a device; a faster one is told to slow down.
pub const LOGIN_INTERVAL_S: u64 = 5;
/// Open device codes of a cluster: anybody may ask for one.
pub const LOGINS_MAX: u32 = 1_000;
/// Expired logins that a new one takes away: more than one, so that they become fewer.
pub const LOGINS_SWEPT_PER_START: usize = 2;
/// Device codes that one address gets from one node in a minute; then 429.
pub const LOGIN_CODES_PER_MINUTE: u32 = 30;
/// Unknown device codes that one address may ask one node for in a minute; then 429, before any reading.
pub const LOGIN_MISSES_PER_MINUTE: u32 = 60;
/// Unknown user codes that one key may try on one node in a minute; then 429.
pub const USER_CODE_MISSES_PER_MINUTE: u32 = 10;
/// Letters of a user code, shown in two halves: 20^8 are 2.5 * 10^10.
pub const USER_CODE_LETTERS: usize = 8;
/// Consonants that nobody mistakes for another or reads as a word (RFC 8628, 6.1).
pub const USER_CODE_ALPHABET: &[u8; 20] = b"BCDFGHJKLMNPQRSTVWXZ";
/// What a device calls itself; longer ones are cut.
pub const LOGIN_CLIENT_CHARS_MAX: usize = 128;

/// A webhook URL.
pub const URL_BYTES_MAX: usize = 2_048;
/// Topics of a team.
pub const TOPICS_MAX: u32 = 1_000;
/// Open subscriptions of a team.
pub const SUBSCRIPTIONS_MAX: u32 = 50_000;
/// Endpoints of a team.
pub const ENDPOINTS_MAX: u32 = 1_000;
/// Subscription rows of a topic, closed ones included: the receivers of one publish at most.
pub const TOPIC_ROWS_MAX: u64 = 20_000;
/// Subscription rows that one entry walks: a publish to more becomes a job of chunks of this size.
pub const FANOUT_CHUNK_ROWS: usize = 256;
/// How long a publish waits for its last chunk before it is answered `fanout: "pending"`.
pub const FANOUT_WAIT_MS: u64 = 5_000;

/// Attempts in one Claim, Outcome or Takeover entry: apply stays short.
pub const CLAIMS_PER_ENTRY_MAX: usize = 256;
/// Deliveries that one CloseEndpoint entry ends.
pub const CLOSINGS_PER_ENTRY_MAX: usize = 256;
/// Attempts of one endpoint between claim and recorded outcome.
pub const ENDPOINT_CALLS_MAX: usize = 8;
/// The same of a team.
pub const TEAM_CALLS_MAX: usize = 64;
/// The same of the dispatching node.
pub const NODE_CALLS_MAX: usize = 512;
/// When fewer slots than these are free on the node, a team holds at most its share of them all.
pub const NODE_CALLS_SCARCE: usize = 128;
/// Failures to connect in a row, after which an endpoint is tried by one call at a time.
pub const CONNECT_FAILURES_MAX: u32 = 10;
/// How long claims and outcomes gather before they are proposed; the first after a pause does not wait.
pub const GATHER_MS: u64 = 5;
/// A call begins within this time of its claim's application, or not at all.
pub const START_WINDOW_MS: u64 = 2_000;
/// A hand-over of leadership waits this long for calls: 2 s to start and 30 s to call.
pub const DRAIN_MS: u64 = 32_000;
/// Hints that wait for a worker; beyond it the worker looks at everything.
pub const HINTS_WAITING_MAX: usize = 16_384;
/// Chunks of one publish that are proposed at a time.
pub const FANOUT_CHUNKS_IN_FLIGHT: usize = 8;
/// The state ages although nobody writes: a command at least this often.
pub const TICK_MS: u64 = 1_000;
/// A clock that is further from those of the other voters shows in the log; nothing is signed with its time.
pub const CLOCK_DIVERGENCE_MS_MAX: u64 = 5_000;
/// Waits before each retry; one step fewer than attempts.
pub const RETRY_DELAYS_MS: [u64; 3] = [1_000, 10_000, 100_000];
/// A `Retry-After` beyond it is ignored.
pub const RETRY_AFTER_MAX_MS: u64 = 24 * 3600 * 1000;
/// The wait after an attempt that was never sent.
pub const NOT_SENT_DELAY_MS: u64 = 1_000;
/// A claim that nobody reported on is taken over after 2 s to start, 30 s to call and 1 s to report.
pub const TAKEOVER_AFTER_MS: u64 = 33_000;
/// More attempts than this without a known outcome end a delivery: its call may be what kills the nodes.
pub const UNKNOWN_CLOSINGS_MAX: u32 = 5;
/// Unknown and not-sent attempts that a delivery remembers.
pub const OTHER_ATTEMPTS_KEPT: usize = 8;
/// Of a webhook's response: read at most, kept at most.
pub const RESPONSE_BYTES_READ_MAX: usize = 64 * 1024;
/// See [`RESPONSE_BYTES_READ_MAX`].
pub const RESPONSE_BYTES_KEPT_MAX: usize = 1024;
/// Headers of a webhook's response: how many, and their names and values together.
pub const RESPONSE_HEADERS_MAX: usize = 64;
/// See [`RESPONSE_HEADERS_MAX`].
pub const RESPONSE_HEADER_BYTES_MAX: usize = 16 * 1024;
/// A longer `Retry-After` is not read.
pub const RETRY_AFTER_BYTES_MAX: usize = 64;
/// Calls in any second to one host outside `webhooks.allow_networks`: a cluster cannot be aimed at a victim.
pub const HOST_CALLS_PER_S_MAX: u32 = 50;
/// Names that a node looks up at once: a look-up takes a thread that cannot be stopped.
pub const LOOKUPS_MAX: usize = 192;
/// The same for one team: names that hang are the trouble of their team alone.
pub const TEAM_LOOKUPS_MAX: usize = 16;
/// Idle connections of a team to one host; as many as it has calls.
pub const IDLE_PER_HOST_MAX: usize = 64;
/// Hosts that a node keeps connections to.
pub const OUTBOUND_HOSTS_MAX: usize = 1_024;
/// Teams that a node keeps connections for.
pub const OUTBOUND_CLIENTS_MAX: usize = 256;
/// The class of a failed attempt's error.
pub const ATTEMPT_ERROR_CHARS_MAX: usize = 64;
/// Of an attempt, from DNS to the end of the TLS handshake.
pub const CONNECT_TIMEOUT_MS: u64 = 5_000;
/// One webhook attempt, from DNS to the last byte.
pub const ATTEMPT_TIMEOUT_MS: u64 = 30_000;
/// Age at which a terminal delivery is removed, in cluster time. A dead one keeps its message this long and
/// stays itself as long again, so that a late redrive is told why.
pub const DELIVERY_RETENTION_MS: u64 = 30 * 24 * 3600 * 1000;

/// Units of an agent's reads that a node leases at a time, at most.
pub const LEASE_UNITS_MAX: u64 = 64;
/// How long a node spends a lease after it asked for it, in its monotonic clock.
pub const LEASE_SPENT_WITHIN_MS: u64 = 5_000;
/// Leases in one ReturnLeases entry.
pub const LEASES_PER_ENTRY_MAX: usize = 256;
/// Agents whose reads a node leases at one time; the readers of further ones are answered 503.
pub const LEASED_AGENTS_MAX: usize = 65_536;
/// Leases waiting to be returned on one node while there is no quorum; what is unspent of further ones is lost.
pub const LEASE_RETURNS_WAITING_MAX: usize = 65_536;
