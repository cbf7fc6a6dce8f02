//! Request bodies: charged to the node's budget, then read within bounds on size and time, and drained for a moment when
//! a handler does not read them.
//!
//! The charge is taken before the first byte is read: for the announced bytes, or for the bound of the route if the body
//! is chunked. A handler proposes under the same charge, which lasts until its answer is made and its log entry is durable.
//!
//! Closing a connection with unread bytes resets it, and a client that still writes then loses the answer that refused
//! it. So a bounded part of a body that a handler drops is read in the background.

use std::ops::Deref;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use agentpost_proto::limits;
use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;
use tokio_util::task::TaskTracker;

use crate::server::error::{ApiError, Result};
use crate::server::services::SMALL_REQUEST_BYTES_MAX;
use crate::shard::budget::{Payer, Permit};
use crate::shard::proposer::Proposer;

/// Upper bound on the bytes of a request that carries one message: the body, every second character escaped, and its
/// JSON envelope.
pub const MESSAGE_REQUEST_BYTES_MAX: usize = 2 * limits::BODY_BYTES_MAX + 16 * 1024;
/// Time limit for a body; it ends slow clients.
const TIMEOUT: Duration = Duration::from_secs(20);
/// How much of an unread body is drained, and for how long.
const DISCARD_BYTES_MAX: usize = 4 * 1024 * 1024;
const DISCARD_TIMEOUT: Duration = Duration::from_secs(2);

/// A body that was read, with the charge for it.
pub struct Charged {
    bytes: Bytes,
    permit: Permit,
}

impl Deref for Charged {
    type Target = Bytes;

    fn deref(&self) -> &Bytes {
        &self.bytes
    }
}

impl AsRef<Permit> for Charged {
    fn as_ref(&self) -> &Permit {
        &self.permit
    }
}

/// Reads the body of a request that carries no message.
pub async fn read_small(proposer: &Proposer, payer: Payer, headers: &HeaderMap, body: Body) -> Result<Charged> {
    read(proposer, payer, headers, body, SMALL_REQUEST_BYTES_MAX).await
}

/// Reads a body of at most `bytes_max`. A larger one is refused by its Content-Length, or as soon as too many bytes
/// arrive.
pub async fn read(
    proposer: &Proposer,
    payer: Payer,
    headers: &HeaderMap,
    mut body: Body,
    bytes_max: usize,
) -> Result<Charged> {
    let announced = headers.get(header::CONTENT_LENGTH);
    let announced: Option<u64> = announced.and_then(|value| value.to_str().ok()?.parse().ok());
    if announced.is_some_and(|bytes| bytes > bytes_max as u64) {
        return Err(ApiError::too_large("the request body", bytes_max));
    }
    // The upper bound is what Content-Length announces, and zero without a body.
    let bytes = HttpBody::size_hint(&body)
        .upper()
        .map_or(bytes_max, |bytes| bytes as usize);
    let permit = proposer.admit(payer, bytes.min(bytes_max))?;
    let collected = tokio::time::timeout(TIMEOUT, collect(&mut body, bytes_max));
    let bytes = collected.await.unwrap_or_else(|_| Err(ApiError::too_slow()))?;
    permit.settle(bytes.len());
    Ok(Charged { bytes, permit })
}

/// Collects a body. The usual body arrives in one piece and is not copied.
async fn collect(body: &mut Body, bytes_max: usize) -> Result<Bytes> {
    let mut first = Bytes::new();
    let mut joined = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| ApiError::invalid("the request body ended early"))?;
        let Ok(data) = frame.into_data() else { continue };
        if first.len() + joined.len() + data.len() > bytes_max {
            return Err(ApiError::too_large("the request body", bytes_max));
        }
        if first.is_empty() && joined.is_empty() {
            first = data;
        } else {
            joined.extend_from_slice(&std::mem::take(&mut first));
            joined.extend_from_slice(&data);
        }
    }
    Ok(if joined.is_empty() { first } else { joined.freeze() })
}

/// Wraps the body so that a handler may drop it at any point. The body of a request with `Expect: 100-continue` was not
/// sent yet, so there is nothing to drain.
pub fn guarded(request: Request, tasks: &TaskTracker) -> Request {
    if request.body().is_end_stream() || request.headers().contains_key(header::EXPECT) {
        return request;
    }
    let tasks = tasks.clone();
    request.map(|body| {
        Body::new(Guarded {
            rest: Some(body),
            tasks,
        })
    })
}

struct Guarded {
    /// `None` once the body has ended.
    rest: Option<Body>,
    tasks: TaskTracker,
}

impl HttpBody for Guarded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Some(body) = &mut self.rest else {
            return Poll::Ready(None);
        };
        let frame = ready!(Pin::new(body).poll_frame(context));
        if !matches!(frame, Some(Ok(_))) {
            self.rest = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.rest.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.rest.as_ref().map_or(SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let unread = self.rest.take().filter(|body| !body.is_end_stream());
        // Without a runtime the process is ending.
        if let (Some(body), Ok(runtime)) = (unread, tokio::runtime::Handle::try_current()) {
            self.tasks.spawn_on(discard(body), &runtime);
        }
    }
}

async fn discard(mut body: Body) {
    let rest = async {
        let mut bytes = 0;
        while let Some(Ok(frame)) = body.frame().await {
            bytes += frame.data_ref().map_or(0, Bytes::len);
            if bytes > DISCARD_BYTES_MAX {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(DISCARD_TIMEOUT, rest).await;
}
