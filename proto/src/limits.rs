//! The bounds that several crates share, each with its reason. The defaults of the plan are quotas of a team; see
//! `TeamLimits`.

/// A message body on either API. Kite has the same limit.
pub const BODY_BYTES_MAX: usize = 256 * 1024;
/// A request that carries one message: the body, every second character escaped, and its JSON envelope.
pub const REQUEST_BYTES_MAX: usize = 2 * BODY_BYTES_MAX + 16 * 1024;
/// The whole body of `POST /messages/batch`.
pub const BATCH_BYTES_MAX: usize = 1024 * 1024;
/// Messages in a batch, so that its log entry stays well below the bound of a replication request.
pub const BATCH_ITEMS_MAX: usize = 100;
/// The body of any other request.
pub const SMALL_REQUEST_BYTES_MAX: usize = 64 * 1024;
/// The nesting depth of JSON in a body, well below serde_json's own limit of 128.
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
/// An API key in a request. A longer one is refused before it is hashed.
pub const API_KEY_BYTES_MAX: usize = 256;
/// A team or key name.
pub const DISPLAY_NAME_CHARS_MAX: usize = 128;
/// Scopes of a key or of one WebSocket subscription.
pub const SCOPES_MAX: usize = 64;
/// One scope.
pub const SCOPE_BYTES_MAX: usize = 256;
/// `subject`, `priority`, `callbackUrl` and `metadata` of a message together.
pub const EXTRAS_BYTES_MAX: usize = 16 * 1024;

/// Messages of an inbox page if the caller gives no limit.
pub const PAGE_DEFAULT: usize = 50;
/// The maximal number of messages of an inbox page.
pub const PAGE_MAX: usize = 200;
/// The approximate maximum of the bytes of bodies in a page, which may then have fewer messages than requested.
pub const PAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The maximal number of entries that a filtered page examines; it may then return fewer than `limit`.
pub const PAGE_EXAMINED_MAX: usize = 2_000;
/// The maximal duration of a long poll in seconds.
pub const WAIT_SECONDS_MAX: u64 = 60;

/// Entries of an inbox. Beyond this bound the oldest entries are removed, read ones first, so that no sender is
/// refused.
pub const INBOX_ENTRIES_MAX: u64 = 100_000;
/// Age at which mail is removed, in cluster time.
pub const RETENTION_MS: u64 = 30 * 24 * 3600 * 1000;
/// The lifetime of an idempotency key, in cluster time.
pub const IDEMPOTENCY_TTL_MS: u64 = 24 * 3600 * 1000;
/// The maximal number of rows that a Sweep entry removes, so that applying it takes little time.
pub const SWEEP_ROWS_MAX: usize = 256;

/// Plan default: sends of an agent per UTC day.
pub const DAILY_SENDS: u64 = 1_000;
/// Plan default: inbox reads of an agent per UTC day.
pub const DAILY_READS: u64 = 10_000;
/// Plan default: webhook registrations of an agent per UTC day.
pub const DAILY_WEBHOOK_REGISTRATIONS: u64 = 100;
/// Plan default: events of a team per UTC month.
pub const MONTHLY_EVENTS: u64 = 100_000;
/// The `events_limit` that stands for "unlimited": the largest integer that JavaScript represents exactly.
pub const UNLIMITED_EVENTS_SHOWN: u64 = 9_007_199_254_740_991;
/// The value of a rate limit header that stands for "unlimited".
pub const UNLIMITED_RATE_SHOWN: u64 = 2_147_483_647;

/// Operations that wait for Raft on one node. Further operations of clients are answered with 503 at once.
pub const PROPOSALS_IN_FLIGHT_MAX: usize = 4_096;
/// The part of [`PROPOSALS_IN_FLIGHT_MAX`] that is reserved for the cluster's own operations (claims, outcomes,
/// chunks), so that clients cannot starve them.
pub const PROPOSALS_RESERVED: usize = 512;
/// The payload of one replication request, small enough that sending it takes less than an election timeout.
pub const APPEND_PAYLOAD_BYTES_MAX: usize = 1024 * 1024;
/// A message on the peer port: an append payload whose last entry has the maximal size, and some reserve.
pub const PEER_MESSAGE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Bytes of one snapshot chunk.
pub const SNAPSHOT_CHUNK_BYTES: usize = 1024 * 1024;

/// A WebSocket message from a client.
pub const WS_MESSAGE_BYTES_MAX: usize = 256 * 1024;
/// A WebSocket frame from a client.
pub const WS_FRAME_BYTES_MAX: usize = 64 * 1024;
/// Encoded frames are gathered up to this size before they are written to a WebSocket. The end of a batch writes the
/// rest.
pub const WS_WRITE_CHUNK_BYTES: usize = 16 * 1024;
/// The write buffer of a WebSocket: a chunk that waits for the reader, and one event. The largest event has a body of
/// control characters, six bytes each in JSON. With a smaller buffer such an event could never be sent.
pub const WS_WRITE_BUFFER_BYTES_MAX: usize = WS_WRITE_CHUNK_BYTES + 7 * BODY_BYTES_MAX;
/// Events that a session reads and writes before it polls the socket again.
pub const WS_BATCH_EVENTS: usize = 64;
/// WebSockets of a node, each of which costs some 50 KiB when idle. Further ones are answered with 503 before the
/// upgrade.
pub const WS_SESSIONS_MAX: usize = 10_000;
/// Sessions of one inbox on a node: enough for every process of an agent, too few to exhaust the node.
pub const WS_SESSIONS_PER_AGENT_MAX: usize = 16;
/// Bytes of encoded events that a session buffers while its reader is slow. A single larger event is allowed.
pub const WS_BATCH_BYTES: usize = 256 * 1024;
/// Cursors in one AckCursors entry, so that applying it takes little time.
pub const ACKS_PER_ENTRY_MAX: usize = 512;
/// Cursors whose acks wait for a quorum on one node. Further acks are dropped, and their events are sent again.
pub const ACKS_WAITING_MAX: usize = 65_536;
/// Named cursors of a team. Beyond this bound no new name is accepted until an old cursor is forgotten.
pub const CURSORS_MAX: u32 = 10_000;
/// A cursor that was not used for this time is forgotten, in cluster time: twice the maximal age of mail.
pub const CURSOR_TTL_MS: u64 = 2 * RETENTION_MS;
/// The use of a cursor is recorded only if the last record is this old, so that not every ack moves an index row.
pub const CURSOR_TOUCH_MS: u64 = 24 * 3600 * 1000;
/// RPC requests that wait in one session. Beyond this bound the session reads no further request.
pub const RPC_REQUESTS_WAITING_MAX: usize = 16;
/// The id of an RPC request, which is kept in memory until the request is answered.
pub const RPC_ID_BYTES_MAX: usize = 128;
/// The maximal number of events of one `events.recent`.
pub const RECENT_EVENTS_MAX: u64 = 1_000;
/// Events of an `events.recent` without a limit.
pub const RECENT_EVENTS_DEFAULT: u64 = 100;
/// Bytes of encoded events in one `events.recent`, which then has fewer events and a position from which to continue. A
/// single larger event is allowed. The frame must fit into [`WS_WRITE_BUFFER_BYTES_MAX`], as the largest event does.
pub const RECENT_BYTES_MAX: usize = 1024 * 1024;

/// Bytes of scopes in one `keys.list`, so that [`KEYS_MAX`] keys fit into [`WS_WRITE_BUFFER_BYTES_MAX`]. If there are
/// more, keys with many scopes show some of them.
pub const LISTED_SCOPES_BYTES_MAX: usize = 256 * 1024;
/// Keys of a team, including revoked and expired ones. In a full team a new key replaces one of those.
pub const KEYS_MAX: u32 = 1_000;
/// Agents in the directory of a team.
pub const AGENTS_MAX: u32 = 20_000;

/// The lifetime of a device code, in cluster time.
pub const LOGIN_TTL_MS: u64 = 10 * 60 * 1000;
/// Seconds between two polls of a device. A device that polls faster is told to slow down.
pub const LOGIN_INTERVAL_S: u64 = 5;
/// Open device codes of a cluster. The bound is needed because anybody may request a code.
pub const LOGINS_MAX: u32 = 1_000;
/// Expired logins that a new login removes: more than one, so that their number falls.
pub const LOGINS_SWEPT_PER_START: usize = 2;
/// Device codes that one address gets from one node in a minute. Further requests are answered with 429.
pub const LOGIN_CODES_PER_MINUTE: u32 = 30;
/// Unknown device codes that one address may try on one node in a minute. Further polls are answered with 429, without
/// a request to the leader.
pub const LOGIN_MISSES_PER_MINUTE: u32 = 60;
/// Unknown user codes that one key may try on one node in a minute. Further tries are answered with 429.
pub const USER_CODE_MISSES_PER_MINUTE: u32 = 10;
/// Letters of a user code, which is shown in two halves. There are 20^8 = 2.56 * 10^10 codes.
pub const USER_CODE_LETTERS: usize = 8;
/// Consonants that are not confused with each other and do not form words (RFC 8628, section 6.1).
pub const USER_CODE_ALPHABET: &[u8; 20] = b"BCDFGHJKLMNPQRSTVWXZ";
/// The name that a device gives itself. A longer name is cut.
pub const LOGIN_CLIENT_CHARS_MAX: usize = 128;

/// A webhook URL.
pub const URL_BYTES_MAX: usize = 2_048;
/// Topics of a team.
pub const TOPICS_MAX: u32 = 1_000;
/// Open subscriptions of a team.
pub const SUBSCRIPTIONS_MAX: u32 = 50_000;
/// Endpoints of a team.
pub const ENDPOINTS_MAX: u32 = 1_000;
/// Subscription rows of a topic, including closed ones. This bounds the receivers of one publish.
pub const TOPIC_ROWS_MAX: u64 = 20_000;
/// Subscription rows that one entry processes. A publish to more becomes a job in chunks of this size.
pub const FANOUT_CHUNK_ROWS: usize = 256;
/// How long a publish waits for its last chunk before it is answered `fanout: "pending"`.
pub const FANOUT_WAIT_MS: u64 = 5_000;

/// Attempts in one Claim, Outcome or Takeover entry, so that applying it takes little time.
pub const CLAIMS_PER_ENTRY_MAX: usize = 256;
/// Deliveries that one CloseEndpoint entry ends.
pub const CLOSINGS_PER_ENTRY_MAX: usize = 256;
/// Attempts of one endpoint between claim and recorded outcome.
pub const ENDPOINT_CALLS_MAX: usize = 8;
/// Attempts of one team between claim and recorded outcome.
pub const TEAM_CALLS_MAX: usize = 64;
/// Attempts of the dispatching node between claim and recorded outcome.
pub const NODE_CALLS_MAX: usize = 512;
/// If the node has fewer free slots than this, no team gets more than its share of all slots.
pub const NODE_CALLS_SCARCE: usize = 128;
/// Consecutive failures to connect after which an endpoint gets only one call at a time.
pub const CONNECT_FAILURES_MAX: u32 = 10;
/// The time for which claims and outcomes are gathered before they are proposed. The first one after a pause does not
/// wait.
pub const GATHER_MS: u64 = 5;
/// The time after the application of its claim within which a call must begin. Otherwise it is not made.
pub const START_WINDOW_MS: u64 = 2_000;
/// The time for which a hand-over of leadership waits for calls: 2 s to start and 30 s to call.
pub const DRAIN_MS: u64 = 32_000;
/// Hints that wait for a worker. Beyond this bound the worker reads the whole state.
pub const HINTS_WAITING_MAX: usize = 16_384;
/// Chunks of one publish that are in flight.
pub const FANOUT_CHUNKS_IN_FLIGHT: usize = 8;
/// The maximal interval between two commands while rows in the state age.
pub const TICK_MS: u64 = 1_000;
/// A clock that diverges further from those of the other voters is logged, and nothing is signed with its time.
pub const CLOCK_DIVERGENCE_MS_MAX: u64 = 5_000;
/// The delays before each retry. There is one attempt more than delays.
pub const RETRY_DELAYS_MS: [u64; 3] = [1_000, 10_000, 100_000];
/// A longer `Retry-After` is ignored.
pub const RETRY_AFTER_MAX_MS: u64 = 24 * 3600 * 1000;
/// The delay after an attempt that was not sent.
pub const NOT_SENT_DELAY_MS: u64 = 1_000;
/// The age at which a claim without an outcome is taken over: 2 s to start, 30 s to call and 1 s to report.
pub const TAKEOVER_AFTER_MS: u64 = 33_000;
/// A delivery ends after more attempts than this with an unknown outcome, because its calls may be what kills the
/// nodes.
pub const UNKNOWN_CLOSINGS_MAX: u32 = 5;
/// Unknown and unsent attempts in the history of a delivery.
pub const OTHER_ATTEMPTS_KEPT: usize = 8;
/// Bytes of a webhook's response that are read.
pub const RESPONSE_BYTES_READ_MAX: usize = 64 * 1024;
/// Bytes of a webhook's response that are kept.
pub const RESPONSE_BYTES_KEPT_MAX: usize = 1024;
/// Headers of a webhook's response.
pub const RESPONSE_HEADERS_MAX: usize = 64;
/// Bytes of all names and values of the headers of a webhook's response.
pub const RESPONSE_HEADER_BYTES_MAX: usize = 16 * 1024;
/// Bytes of a `Retry-After` header. A longer header is not parsed.
pub const RETRY_AFTER_BYTES_MAX: usize = 64;
/// Calls in any second to one host outside `webhooks.allow_networks`, so that nobody can aim a cluster at a victim.
pub const HOST_CALLS_PER_S_MAX: u32 = 50;
/// DNS look-ups at a time on one node. Each occupies a thread that cannot be stopped.
pub const LOOKUPS_MAX: usize = 192;
/// DNS look-ups at a time for one team, so that names that hang delay only their own team.
pub const TEAM_LOOKUPS_MAX: usize = 16;
/// Idle connections of a team to one host: as many as the team has calls.
pub const IDLE_PER_HOST_MAX: usize = 64;
/// Hosts that a node keeps connections to.
pub const OUTBOUND_HOSTS_MAX: usize = 1_024;
/// Teams that a node keeps connections for.
pub const OUTBOUND_CLIENTS_MAX: usize = 256;
/// Characters of the class of a failed attempt.
pub const ATTEMPT_ERROR_CHARS_MAX: usize = 64;
/// Time limit of an attempt from the DNS look-up to the end of the TLS handshake.
pub const CONNECT_TIMEOUT_MS: u64 = 5_000;
/// Time limit of an attempt from the DNS look-up to the last byte.
pub const ATTEMPT_TIMEOUT_MS: u64 = 30_000;
/// Age at which a delivery that has ended is removed, in cluster time. A dead delivery keeps its message for this time,
/// and its row for as long again, so that a late redrive is answered with the reason.
pub const DELIVERY_RETENTION_MS: u64 = 30 * 24 * 3600 * 1000;

/// The maximal number of an agent's reads that a node leases at a time.
pub const LEASE_UNITS_MAX: u64 = 64;
/// The time for which a node may spend a lease, from its request on, by the monotonic clock.
pub const LEASE_SPENT_WITHIN_MS: u64 = 5_000;
/// Leases in one ReturnLeases entry.
pub const LEASES_PER_ENTRY_MAX: usize = 256;
/// Agents for which a node holds leases. Reads of further agents are answered with 503.
pub const LEASED_AGENTS_MAX: usize = 65_536;
/// Leases that wait on one node to be returned while there is no quorum. The unspent units of further leases are lost.
pub const LEASE_RETURNS_WAITING_MAX: usize = 65_536;
