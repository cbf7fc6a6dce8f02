//! Connections of the client port. They are bounded in size and time, and are closed in order when the node stops. Each
//! request carries the origin of its connection.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::http::{Extensions, Request};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::base::repeats::Repeats;

/// Upper bound on the open connections of a node. Further ones wait to be accepted.
const CONNECTIONS_MAX: usize = 10_000;
/// Upper bound on the headers of a request. A request with more is answered with 431.
const HEADERS_MAX: usize = 64;
/// Upper bound on the bytes of a request line with its headers. A longer one is answered with 431.
const HEADER_BYTES_MAX: usize = 24 * 1024;
/// Read buffer of a connection; a request's header must fit.
const READ_AHEAD_BYTES: usize = 64 * 1024;
/// Time limit from the end of an answer to the end of the next request's header. hyper has one timer for both, so it
/// bounds the idle time of a connection and the time that a slow client may take for its header.
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause after a failed accept (too many open files), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The origin of a connection, for limits: an IPv4 address, or the network half of an IPv6 address, because a host owns
/// all of the other half. Behind a proxy it is the proxy's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Origin(IpAddr);

impl Origin {
    /// The origin of a client's address.
    pub fn of(address: IpAddr) -> Self {
        Origin(match address.to_canonical() {
            IpAddr::V4(whole) => IpAddr::V4(whole),
            IpAddr::V6(whole) => IpAddr::V6(Ipv6Addr::from_bits(whole.to_bits() >> 64 << 64)),
        })
    }

    /// The origin of a request that came through [`serve`].
    pub fn noted(extensions: &Extensions) -> Self {
        let unknown = Origin(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        extensions.get().copied().unwrap_or(unknown)
    }
}

/// The routes of a port. They can be replaced once, while the port serves.
pub struct Routes {
    first: Router,
    second: OnceLock<Router>,
}

impl Routes {
    /// Routes that serve until they are replaced.
    pub fn new(first: Router) -> Arc<Self> {
        let second = OnceLock::new();
        Arc::new(Routes { first, second })
    }

    /// Serves `second` from the next request on, also on open connections. Does nothing if the routes were replaced
    /// before.
    pub fn replace(&self, second: Router) {
        drop(self.second.set(second));
    }

    fn now(&self) -> &Router {
        self.second.get().unwrap_or(&self.first)
    }
}

/// Serves `routes` until `shutdown`. Then no new connection is accepted, and open ones end after their current answer.
/// Every connection runs in `tasks`.
pub async fn serve(listener: TcpListener, routes: Arc<Routes>, shutdown: CancellationToken, tasks: TaskTracker) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let not_accepted = Repeats::default();
    loop {
        let accepted = async {
            // Cannot fail: the semaphore is never closed.
            let slot = Arc::clone(&slots).acquire_owned().await.ok();
            (slot, listener.accept().await)
        };
        let (slot, accepted) = tokio::select! {
            accepted = accepted => accepted,
            () = shutdown.cancelled() => return,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                if let Some(left_out) = not_accepted.due(()) {
                    tracing::warn!(%error, left_out, "accepting a client connection failed; trying again; raise the limit of open files if there are too many");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (routes, shutdown) = (routes.clone(), shutdown.clone());
        tasks.spawn(async move {
            connection(stream, Origin::of(from.ip()), routes, shutdown).await;
            drop(slot);
        });
    }
}

async fn connection(stream: TcpStream, origin: Origin, routes: Arc<Routes>, shutdown: CancellationToken) {
    // Answers are written whole, so Nagle's algorithm would only delay them.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "setting TCP_NODELAY failed; answers may be delayed");
    }
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(origin);
        TowerToHyperService::new(routes.now().clone()).call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_headers(HEADERS_MAX)
        .max_header_size(HEADER_BYTES_MAX)
        .max_buf_size(READ_AHEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        // Clients may disconnect at any time.
        tracing::debug!(%error, "client connection ended");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn hosts_are_told_apart_and_their_own_addresses_are_not() {
        let of = |text: &str| Origin::of(text.parse().unwrap());
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
        assert_eq!(of("10.0.0.1"), of("::ffff:10.0.0.1"));
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff:ffff:ffff:ffff"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
    }
}
