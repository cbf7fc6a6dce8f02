//! One delivery attempt: exactly one HTTP request, and its result.
//!
//! An attempt succeeds with a 2xx whose response ended in time or reached [`RESPONSE_BYTES_READ_MAX`], after
//! which nothing more is read. Every other attempt fails with a class that tells the team what happened but names no
//! address: `dns`, `connect`, `tls`, `timeout`, `refused` (by the egress rules), `protocol`, `status`.

use std::error::Error as StdError;
use std::io;
use std::time::{Duration, UNIX_EPOCH};

use agentpost_proto::command::AttemptResult;
use agentpost_proto::id::{DeliveryId, InvalidId, SubscriptionId, TeamId};
use agentpost_proto::peer::DelegatedCall;
use agentpost_proto::time::rfc3339;
use agentpost_proto::{limits, record};
use agentpost_raft_store::core::kv::Fatal;
use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use bytes::{Bytes, BytesMut};
use reqwest::Response;

use super::egress::{CannotCall, Egress};
use super::resolver::Refused;
use super::signature;
use crate::base::secrets::Secrets;
use crate::shard::wall_time::WallTime;
use crate::wire::json::Writer;
use crate::wire::message;

/// Upper bound on the bytes of a webhook's response that are read.
const RESPONSE_BYTES_READ_MAX: usize = 64 * 1024;
/// Upper bound on the bytes of all names and values of the headers of a webhook's response.
const RESPONSE_HEADER_BYTES_MAX: usize = 16 * 1024;
/// Upper bound on the bytes of a `Retry-After` header. A longer header is not parsed.
const RETRY_AFTER_BYTES_MAX: usize = 64;
/// With its header, this status means that the delivery must not be retried.
const NON_RETRYABLE: u16 = 489;

/// The input of an attempt.
pub struct Call {
    /// The team that owns the delivery.
    pub team: TeamId,
    /// The delivery as it was claimed.
    pub delivery: record::Delivery,
    /// The message that is delivered.
    pub message: record::Message,
    /// The endpoint's secret.
    pub secret: String,
    /// The team's current signing key.
    pub signing_key: String,
    /// The number of the attempt.
    pub attempt_no: u32,
    /// The epoch of the claim.
    pub epoch: u64,
    /// Whether an earlier attempt with an unknown outcome may have arrived.
    pub redelivery_possible: bool,
    /// How long the call waits for its turn at its host, within its time limit.
    pub wait: Duration,
}

impl Call {
    /// The call that the leader granted to this node, of a message to `team`.
    pub(super) fn of(team: TeamId, granted: DelegatedCall, secrets: &Secrets) -> Option<Self> {
        let (delivery, message) = (granted.delivery?, granted.message?);
        Some(Call {
            team,
            secret: secrets.endpoint_secret(team, delivery.generation),
            signing_key: secrets.signing_key(team, granted.signing_generation),
            attempt_no: delivery.attempt_no,
            epoch: delivery.claim?.epoch,
            redelivery_possible: delivery.closed_unknown > 0,
            wait: Duration::from_millis(granted.wait_ms),
            delivery,
            message,
        })
    }
}

/// An attempt that was made.
pub struct Made {
    pub result: AttemptResult,
    /// Whether calls to the host need not wait for their turn; `None` if no connection was made.
    pub host_is_exempt: Option<bool>,
}

/// Calls the URL once and returns the result. Ends within [`super::egress::Timeouts::attempt`].
pub async fn make(egress: &Egress, time: &WallTime, call: Call) -> Made {
    let (started_at_ms, begun) = (time.near_ms(), time.clock().now());
    let mut answer = Answer::default();
    let asking = ask(egress, time, &call, &mut answer);
    let ended = match tokio::time::timeout(egress.timeouts().attempt, asking).await {
        Ok(ended) => ended,
        Err(_) => Err("timeout"),
    };
    let success = (200..300).contains(&answer.status);
    let error = match ended {
        Err(class) => class,
        Ok(()) if success => "",
        Ok(()) => "status",
    };
    let result = AttemptResult {
        not_sent: false,
        // A response that broke off is no success, whatever its status.
        status: if success && !error.is_empty() {
            0
        } else {
            answer.status.into()
        },
        error: error.to_owned(),
        response: answer.body.freeze(),
        non_retryable: answer.non_retryable,
        retry_after_ms: if success { 0 } else { answer.retry_after_ms },
        started_at_ms,
        took_ms: begun.elapsed().as_millis() as u64,
    };
    Made {
        result,
        host_is_exempt: answer.host_is_exempt,
    }
}

/// The part of the response that has arrived.
#[derive(Default)]
struct Answer {
    status: u16,
    non_retryable: bool,
    retry_after_ms: u64,
    /// The start of the body, if the team may see it.
    body: BytesMut,
    host_is_exempt: Option<bool>,
}

/// Makes the request. The error is a class.
async fn ask(egress: &Egress, time: &WallTime, call: &Call, answer: &mut Answer) -> Result<(), &'static str> {
    let (headers, body) = request(call, time.near_ms() / 1000).map_err(|error| {
        tracing::error!(%error, team = %call.team, number = call.delivery.number, "a delivery could not be rendered; the attempt counts as failed; please report this");
        "protocol"
    })?;
    let target = egress.admit(&call.delivery.url).map_err(|_| "refused")?;
    if !call.wait.is_zero() {
        tokio::time::sleep(call.wait).await;
    }
    let client = egress.client(call.team, &target).await.map_err(|error| match error {
        CannotCall::Refused(_) => "refused",
        CannotCall::Client(_) => "protocol",
    })?;
    let sending = client.post(target.url.clone()).headers(headers).body(body).send();
    let response = sending.await.map_err(|error| class_of(&error))?;
    answer.note(&response, time.near_ms())?;
    let address = response.remote_addr().map(|peer| peer.ip());
    answer.host_is_exempt = address.map(|address| egress.is_exempt(address));
    let visible = address.is_some_and(|address| egress.may_show(address));
    answer.read(response, visible).await
}

impl Answer {
    fn note(&mut self, response: &Response, now_ms: u64) -> Result<(), &'static str> {
        let headers = response.headers();
        let length = |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len();
        if headers.iter().map(length).sum::<usize>() > RESPONSE_HEADER_BYTES_MAX {
            return Err("protocol");
        }
        self.status = response.status().as_u16();
        let says_so = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"true");
        self.non_retryable =
            self.status == NON_RETRYABLE && headers.get("upstash-nonretryable-error").is_some_and(says_so);
        self.retry_after_ms = headers
            .get(RETRY_AFTER)
            .filter(|value| value.len() <= RETRY_AFTER_BYTES_MAX)
            .and_then(|value| retry_after_ms(value.to_str().ok()?, now_ms))
            .filter(|ms| *ms <= limits::RETRY_AFTER_MAX_MS)
            .unwrap_or(0);
        Ok(())
    }

    async fn read(&mut self, mut response: Response, visible: bool) -> Result<(), &'static str> {
        let mut read = 0;
        while read < RESPONSE_BYTES_READ_MAX {
            let Some(chunk) = response.chunk().await.map_err(|error| class_of(&error))? else {
                break;
            };
            read += chunk.len();
            let room = limits::RESPONSE_BYTES_KEPT_MAX - self.body.len();
            if visible {
                self.body.extend_from_slice(&chunk[..chunk.len().min(room)]);
            }
        }
        Ok(())
    }
}

/// The headers and the body of the request.
fn request(call: &Call, now_s: u64) -> Result<(HeaderMap, Bytes), Fatal> {
    let delivery = &call.delivery;
    let id = stored(DeliveryId::from_slice(&delivery.id))?;
    let name = id.to_string();
    let body = body(call, id)?;
    let token_id = signature::token_id(id, call.attempt_no);
    let step = delivery.step.to_string();
    let mut headers = HeaderMap::with_capacity(16);
    let mut put = |header: &'static str, value: &str| {
        // The values are ids, numbers and encoded bytes, so this never fails.
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(HeaderName::from_static(header), value);
        }
    };
    put("content-type", "application/json");
    put("user-agent", "Upstash-QStash");
    put("upstash-message-id", &name);
    put("upstash-retried", &step);
    put(
        "upstash-signature",
        &signature::upstash(&call.signing_key, &delivery.url, &body, now_s, &token_id),
    );
    put("x-abbababa-signature", &signature::abbababa(&call.secret, now_s, &body));
    put("webhook-id", &name);
    put("webhook-timestamp", &now_s.to_string());
    put(
        "webhook-signature",
        &signature::standard(&call.secret, &name, now_s, &body),
    );
    put("idempotency-key", &name);
    put("x-attempt", &call.attempt_no.to_string());
    put("x-retry-step", &step);
    put("x-dispatch-epoch", &call.epoch.to_string());
    if call.redelivery_possible {
        put("x-redelivery", "possible");
    }
    Ok((headers, body.into()))
}

fn body(call: &Call, id: DeliveryId) -> Result<Vec<u8>, Fatal> {
    let (delivery, message) = (&call.delivery, &call.message);
    let mut out = Vec::with_capacity(1024 + 2 * message.body.len());
    let shown = message::Shown::received(message, &delivery.agent, 0)?;
    let topic = Some(delivery.topic.as_str()).filter(|topic| !topic.is_empty());
    let event = if topic.is_some() {
        "message.topic"
    } else {
        "message.received"
    };
    let mut object = Writer::new(&mut out);
    object.text("event", event);
    object.text("deliveryId", &*id.to_string());
    object.text("messageId", &*shown.id());
    object.text("fromAgentId", &*delivery.from);
    object.text("toAgentId", &*delivery.agent);
    object.text("topic", topic);
    object.text("type", &*message.r#type);
    message::push_body(object.key("body"), &shown);
    object.text("createdAt", &*rfc3339(message.created_at_ms));
    if !delivery.subscription_id.is_empty() {
        let subscription = stored(SubscriptionId::from_slice(&delivery.subscription_id))?;
        object.text("subscriptionId", &*subscription.to_string());
    }
    message::push_message(object.key("message"), &shown);
    object.end();
    Ok(out)
}

fn stored<T>(id: Result<T, InvalidId>) -> Result<T, Fatal> {
    id.map_err(|error| Fatal::Invariant(format!("stored delivery: {error}")))
}

/// The wait that the receiver asked for: seconds, an HTTP date, or a duration as Go writes it.
fn retry_after_ms(text: &str, now_ms: u64) -> Option<u64> {
    let text = text.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return seconds.checked_mul(1000);
    }
    if let Ok(date) = httpdate::parse_http_date(text) {
        let at_ms = date.duration_since(UNIX_EPOCH).ok()?.as_millis() as u64;
        return Some(at_ms.saturating_sub(now_ms));
    }
    go_duration_ms(text)
}

/// `1h2m3.5s`, rounded up. Go reads more than `jiff` does: `1.5h30m`, `30m1h`, `.5s`, and `1μs` with the Greek letter.
fn go_duration_ms(text: &str) -> Option<u64> {
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (value, after) = rest.split_at(digits);
        let value: f64 = value.parse().ok()?;
        let unit = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, next) = after.split_at(unit);
        total += value
            * match unit {
                "h" => 3_600_000.0,
                "m" => 60_000.0,
                "s" => 1_000.0,
                "ms" => 1.0,
                "us" | "µs" | "μs" => 1e-3,
                "ns" => 1e-6,
                _ => return None,
            };
        rest = next;
    }
    (!text.is_empty() && total.is_finite()).then(|| total.ceil() as u64)
}

/// The class of a failed request.
fn class_of(error: &reqwest::Error) -> &'static str {
    if has::<Refused>(error) {
        "refused"
    } else if has::<rustls::Error>(error) {
        "tls"
    } else if error.is_dns() {
        "dns"
    } else if error.is_connect() {
        // A connect timeout counts as `connect`: an absent host must not look like a slow one.
        "connect"
    } else if error.is_timeout() {
        "timeout"
    } else {
        "protocol"
    }
}

/// Whether the chain contains an error of this type. An error wrapped in an [`io::Error`] is not among its sources.
fn has<E: StdError + 'static>(error: &(dyn StdError + 'static)) -> bool {
    let packed = || error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    error.is::<E>() || packed().is_some_and(|inner| has::<E>(inner)) || error.source().is_some_and(has::<E>)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const NOW_MS: u64 = 1_770_906_600_000;

    #[test]
    fn a_wait_is_seconds_a_date_or_a_duration() {
        for (text, ms) in [
            ("0", 0),
            ("120", 120_000),
            (" 7 ", 7_000),
            ("Thu, 12 Feb 2026 14:30:30 GMT", 30_000),
            ("Thursday, 12-Feb-26 14:30:30 GMT", 30_000),
            ("Thu, 12 Feb 2026 14:29:00 GMT", 0),
            ("6m5s", 365_000),
            ("1h", 3_600_000),
            ("1.5s", 1_500),
            ("300ms", 300),
            ("1us", 1),
            ("1500µs", 2),
            ("2h45m0.5s", 9_900_500),
            // Forms that are odd and that Go reads.
            ("1500\u{b5}s", 2),
            ("1500\u{3bc}s", 2),
            ("1.5h", 5_400_000),
            ("1.5h30m", 7_200_000),
            ("30m1h", 5_400_000),
            ("1m1m", 120_000),
            ("1h60m", 7_200_000),
            ("01h", 3_600_000),
            (".5s", 500),
            ("5.s", 5_000),
            ("0s", 0),
            ("0h0m", 0),
            // Rounded up to milliseconds, once for the whole text.
            ("1ns", 1),
            ("1us1ns", 1),
            ("0.0000000001s", 1),
            ("1.000001s", 1_001),
            ("1.1111111111s", 1_112),
            // The caller ignores such waits.
            ("9999999999h", 35_999_999_996_400_000),
            ("99999999999999999999h", u64::MAX),
        ] {
            assert_eq!(retry_after_ms(text, NOW_MS), Some(ms), "{text}");
        }
        for text in [
            "",
            "soon",
            "-1",
            "1.5",
            "5 s",
            "s",
            "1x",
            "1..5s",
            "-5s",
            "0x10",
            "1h-5m",
            "99999999999999999999",
            "Thu, 12 Feb 2026",
            "+5s",
            "1h 5m",
            "1h,5m",
            "1 h",
            "1,5s",
            "1e3s",
            "1h5",
            ".s",
            "0.5.5s",
            "1\u{b5}",
            "1mns",
            "1d",
            "1H",
            "1hour",
            "1hr",
            "1sec",
            "PT5S",
            "pt5s",
            "\u{661}s",
        ] {
            assert_eq!(retry_after_ms(text, NOW_MS), None, "{text}");
        }
    }

    fn response(status: u16, headers: &[(&'static str, &str)], body: Vec<u8>) -> Response {
        let mut response = axum::http::Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        response.body(body).unwrap().into()
    }

    fn noted(status: u16, headers: &[(&'static str, &str)]) -> Answer {
        let mut answer = Answer::default();
        answer.note(&response(status, headers, Vec::new()), NOW_MS).unwrap();
        answer
    }

    #[test]
    fn only_489_with_its_header_is_final() {
        let header = ("upstash-nonretryable-error", "true");
        assert!(noted(489, &[header]).non_retryable);
        assert!(noted(489, &[("upstash-nonretryable-error", "True")]).non_retryable);
        assert!(!noted(489, &[]).non_retryable);
        assert!(!noted(489, &[("upstash-nonretryable-error", "false")]).non_retryable);
        assert!(!noted(500, &[header]).non_retryable);
    }

    #[test]
    fn a_wait_that_is_too_long_counts_as_none() {
        assert_eq!(noted(503, &[("retry-after", "86400")]).retry_after_ms, 86_400_000);
        assert_eq!(noted(503, &[("retry-after", "86401")]).retry_after_ms, 0);
        let long = format!("{}1", "0".repeat(64));
        assert_eq!(noted(503, &[("retry-after", &long)]).retry_after_ms, 0);
        assert_eq!(noted(503, &[("retry-after", &long[1..])]).retry_after_ms, 1_000);
    }

    #[test]
    fn headers_are_bounded() {
        let value = "x".repeat(RESPONSE_HEADER_BYTES_MAX);
        let answer = response(200, &[("x-large", &value)], Vec::new());
        assert_eq!(Answer::default().note(&answer, NOW_MS), Err("protocol"));
    }

    #[tokio::test]
    async fn one_kibibyte_of_a_public_answer_is_kept_and_nothing_of_a_private_one() {
        let body: Vec<u8> = (0..5_000u32).map(|i| i as u8).collect();
        let mut answer = Answer::default();
        answer.read(response(200, &[], body.clone()), true).await.unwrap();
        assert_eq!(answer.body[..], body[..1024]);
        let mut answer = Answer::default();
        answer.read(response(200, &[], body), false).await.unwrap();
        assert!(answer.body.is_empty());
    }
}
