//! The bounds that several crates, or their tests, share. A bound of one crate is beside its use. The defaults of the
//! plan are quotas of a team; see `TeamLimits`.

/// Upper bound on the bytes of a message body on either API. Kite has the same limit.
pub const BODY_BYTES_MAX: usize = 256 * 1024;
/// Upper bound on the bytes of the request body of `POST /messages/batch`.
pub const BATCH_BYTES_MAX: usize = 1024 * 1024;
/// Upper bound on the messages in a batch, so that its log entry stays well below the bound of a replication request.
pub const BATCH_ITEMS_MAX: usize = 100;

/// Upper bound on the bytes of an agent id.
pub const AGENT_ID_BYTES_MAX: usize = 128;
/// Upper bound on the bytes of a WebSocket `client_id`.
pub const CLIENT_ID_BYTES_MAX: usize = 128;
/// Upper bound on the bytes of an API key in a request. A longer one is refused before it is hashed.
pub const API_KEY_BYTES_MAX: usize = 256;
/// Upper bound on the characters of a team or key name.
pub const DISPLAY_NAME_CHARS_MAX: usize = 128;
/// Upper bound on the scopes of a key or of one WebSocket session.
pub const SCOPES_MAX: usize = 64;
/// Upper bound on the bytes of one scope.
pub const SCOPE_BYTES_MAX: usize = 256;
/// Upper bound on the bytes of `subject`, `priority`, `callbackUrl` and `metadata` of a message together.
pub const EXTRAS_BYTES_MAX: usize = 16 * 1024;

/// Upper bound on the messages of an inbox page.
pub const PAGE_MAX: usize = 200;
/// Upper bound on the entries that a filtered page examines; it may then return fewer than `limit`.
pub const PAGE_EXAMINED_MAX: usize = 2_000;
/// The approximate upper bound on the bytes of what a page examines.
pub const PAGE_EXAMINED_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Upper bound on the seconds of a long poll.
pub const WAIT_SECONDS_MAX: u64 = 60;

/// Upper bound on the entries of an inbox. Beyond it the oldest entries are removed, read ones first, so that no sender
/// is refused.
pub const INBOX_ENTRIES_MAX: u64 = 100_000;
/// The age at which mail is removed, in milliseconds of cluster time.
pub const RETENTION_MS: u64 = 30 * 24 * 3600 * 1000;

/// Plan default: sends of an agent per UTC day.
pub const DAILY_SENDS: u64 = 1_000;
/// Plan default: inbox reads of an agent per UTC day.
pub const DAILY_READS: u64 = 10_000;
/// Plan default: webhook registrations of an agent per UTC day.
pub const DAILY_WEBHOOK_REGISTRATIONS: u64 = 100;
/// Plan default: events of a team per UTC month.
pub const MONTHLY_EVENTS: u64 = 100_000;

/// Upper bound on the bytes of a WebSocket message from a client.
pub const WS_MESSAGE_BYTES_MAX: usize = 256 * 1024;
/// Encoded frames are gathered up to this number of bytes before they are written to a WebSocket. The end of a batch
/// writes the rest.
pub const WS_WRITE_CHUNK_BYTES: usize = 16 * 1024;
/// Upper bound on the bytes of the write buffer of a WebSocket: a chunk that waits for the reader, and one event. The
/// largest event has a body of control characters, six bytes each in JSON. With a smaller buffer such an event could
/// never be sent.
pub const WS_WRITE_BUFFER_BYTES_MAX: usize = WS_WRITE_CHUNK_BYTES + 7 * BODY_BYTES_MAX;
/// Upper bound on the cursors in one AckCursors entry, so that applying it takes little time.
pub const ACKS_PER_ENTRY_MAX: usize = 512;
/// Upper bound on the named cursors of a team. Beyond it no new name is accepted until an old cursor is forgotten.
pub const CURSORS_MAX: u32 = 10_000;
/// A cursor that was not used for this time is forgotten: twice the maximal age of mail, in milliseconds of cluster
/// time.
pub const CURSOR_TTL_MS: u64 = 2 * RETENTION_MS;
/// The use of a cursor is recorded only if the last record is this old, in milliseconds, so that not every ack moves an
/// index row.
pub const CURSOR_TOUCH_MS: u64 = 24 * 3600 * 1000;

/// The lifetime of a device code, in milliseconds of cluster time.
pub const LOGIN_TTL_MS: u64 = 10 * 60 * 1000;
/// Upper bound on the open device codes of a cluster. It is needed because anybody may request a code.
pub const LOGINS_MAX: u32 = 1_000;
/// The number of letters of a user code, which is shown in two halves. There are 20^8 = 2.56 * 10^10 codes.
pub const USER_CODE_LETTERS: usize = 8;
/// Consonants that are not confused with each other and do not form words (RFC 8628, section 6.1).
pub const USER_CODE_ALPHABET: &[u8; 20] = b"BCDFGHJKLMNPQRSTVWXZ";
/// Upper bound on the characters of the name that a device gives itself. A longer name is cut.
pub const LOGIN_CLIENT_CHARS_MAX: usize = 128;

/// Upper bound on the bytes of a webhook URL.
pub const URL_BYTES_MAX: usize = 2_048;
/// Upper bound on the topics of a team.
pub const TOPICS_MAX: u32 = 1_000;
/// Upper bound on the subscription rows that one entry processes. A publish to more becomes a job in chunks of this
/// size.
pub const FANOUT_CHUNK_ROWS: usize = 256;

/// Upper bound on the attempts in one Claim, Outcome or Takeover entry, so that applying it takes little time.
pub const CLAIMS_PER_ENTRY_MAX: usize = 256;
/// The milliseconds after the application of its claim within which a call must begin. Otherwise it is not made.
pub const START_WINDOW_MS: u64 = 2_000;
/// The delays before each retry, in milliseconds. There is one attempt more than delays.
pub const RETRY_DELAYS_MS: [u64; 3] = [1_000, 10_000, 100_000];
/// Upper bound on the milliseconds of a `Retry-After`. A longer one is ignored.
pub const RETRY_AFTER_MAX_MS: u64 = 24 * 3600 * 1000;
/// The age in milliseconds at which a claim without an outcome is taken over: a call has started and ended, or was not
/// made, and 1 s remained to report it.
pub const TAKEOVER_AFTER_MS: u64 = START_WINDOW_MS + ATTEMPT_TIMEOUT_MS + 1_000;
/// Upper bound on the bytes of a webhook's response that are kept.
pub const RESPONSE_BYTES_KEPT_MAX: usize = 1024;
/// Time limit of an attempt in milliseconds, from the DNS look-up to the last byte.
pub const ATTEMPT_TIMEOUT_MS: u64 = 30_000;

/// Upper bound on the leases in one ReturnLeases entry.
pub const LEASES_PER_ENTRY_MAX: usize = 256;
