//! The HTTP server of the receivers. It passes each call to a handler and gives the answer that the handler returns.
//!
//! ```no_run
//! # async fn example() -> std::io::Result<()> {
//! use agentpost_testkit::receiver::{Answer, Server};
//!
//! let server = Server::start("127.0.0.1:0", |call| {
//!     println!("{} {}", call.method, call.path);
//!     Answer::status(200)
//! })
//! .await?;
//! println!("listening at {}", server.url());
//! # Ok(())
//! # }
//! ```

use std::convert::Infallible;
use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Either, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream, ToSocketAddrs};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;

use super::exchange::{Answer, Body, Call};

/// Several times the largest webhook body. A larger one is answered with 413 and does not reach the handler.
const BODY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Pause after a failed accept: if file descriptors have run out, a loop without a pause would also use up the processor.
const ACCEPT_RETRY_PAUSE: Duration = Duration::from_millis(50);

/// A running server. Dropping it closes the port and all connections.
pub struct Server {
    address: SocketAddr,
    started: Instant,
    accepting: JoinHandle<()>,
}

impl Server {
    /// Binds `address` and answers each call with the value that `handler` returns. Each connection calls the handler in
    /// the order of arrival. The handler must not block.
    pub async fn start(
        address: impl ToSocketAddrs,
        handler: impl Fn(Call) -> Answer + Send + Sync + 'static,
    ) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let started = Instant::now();
        let accepting = tokio::spawn(accept(listener, Arc::new(Shared { handler, started })));
        Ok(Server {
            address,
            started,
            accepting,
        })
    }

    /// `http://address:port`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The time from which [`Call::at_us`] counts.
    pub fn started(&self) -> Instant {
        self.started
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

struct Shared<H> {
    handler: H,
    started: Instant,
}

async fn accept<H: Fn(Call) -> Answer + Send + Sync + 'static>(listener: TcpListener, shared: Arc<Shared<H>>) {
    // Dropping this set, which ends with the task, closes the connections.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => drop(connections.spawn(serve(stream, shared.clone()))),
            Err(_) => sleep(ACCEPT_RETRY_PAUSE).await,
        }
    }
}

async fn serve<H: Fn(Call) -> Answer + Send + Sync + 'static>(stream: TcpStream, shared: Arc<Shared<H>>) {
    // An answer is one small segment and must not wait for an acknowledgement.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let shared = shared.clone();
        async move { answer(request, &shared).await }
    });
    // An error here means that the caller broke off, which is not the server's failure.
    let _ = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

type AnswerBody = Either<Full<Bytes>, BoxBody<Bytes, Infallible>>;

/// An error closes the connection without an answer.
async fn answer<H: Fn(Call) -> Answer>(
    request: Request<Incoming>,
    shared: &Shared<H>,
) -> std::io::Result<Response<AnswerBody>> {
    let at_us = u64::try_from(shared.started.elapsed().as_micros()).unwrap_or(u64::MAX);
    let wall_ms = jiff::Timestamp::now().as_millisecond();
    let (parts, body) = request.into_parts();
    let Ok(body) = Limited::new(body, BODY_BYTES_MAX).collect().await else {
        return Ok(respond(&Answer::status(413).header("connection", "close")));
    };
    let answer = (shared.handler)(Call {
        method: parts.method,
        path: parts.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
        headers: parts.headers,
        body: body.to_bytes(),
        at_us,
        wall_ms: u64::try_from(wall_ms).unwrap_or_default(),
    });
    if !answer.delay.is_zero() {
        sleep(answer.delay).await;
    }
    match answer.body {
        // The future is dropped when the caller hangs up.
        Body::Never => pending().await,
        Body::Cut => Err(std::io::ErrorKind::ConnectionAborted.into()),
        _ => Ok(respond(&answer)),
    }
}

fn respond(answer: &Answer) -> Response<AnswerBody> {
    let body = match &answer.body {
        Body::Whole(bytes) => Either::Left(Full::new(bytes.clone())),
        Body::Dripping(gap) => Either::Right(drip(*gap)),
        Body::Never | Body::Cut => Either::Left(Full::default()),
    };
    let mut response = Response::new(body);
    *response.status_mut() = answer.status;
    for (name, value) in &answer.headers {
        response.headers_mut().append(name, value.clone());
    }
    response
}

fn drip(gap: Duration) -> BoxBody<Bytes, Infallible> {
    let bytes = stream::unfold((), move |()| async move {
        sleep(gap).await;
        Some((Ok(Frame::data(Bytes::from_static(b"."))), ()))
    });
    BodyExt::boxed(StreamBody::new(bytes))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::wire::{post, read_until};
    use super::*;
    use std::sync::Mutex;
    use tokio::io::AsyncReadExt;

    async fn connect(server: &Server) -> TcpStream {
        TcpStream::connect(server.address).await.unwrap()
    }

    #[tokio::test]
    async fn the_handler_gets_calls_in_order_and_decides_the_answers() {
        let calls = Arc::new(Mutex::new(Vec::new()));
        let seen = calls.clone();
        let server = Server::start("127.0.0.1:0", move |call: Call| {
            let answer = Answer::status(503).header("retry-after", "5").body(call.body.clone());
            seen.lock().unwrap().push(call);
            answer
        })
        .await
        .unwrap();
        let mut stream = connect(&server).await;
        // Two calls use one connection.
        for body in ["first", "second"] {
            post(&mut stream, "/hook?a=1", "x-n: 7\r\n", body).await;
            let answer = read_until(&mut stream, body).await;
            assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("\r\nretry-after: 5\r\n"));
        }
        let calls = calls.lock().unwrap();
        let bodies: Vec<&[u8]> = calls.iter().map(|call| &call.body[..]).collect();
        assert_eq!(bodies, [b"first".as_slice(), b"second"]);
        assert_eq!(
            (calls[0].path.as_str(), calls[0].header("X-N")),
            ("/hook?a=1", Some("7"))
        );
        assert!(calls[0].at_us <= calls[1].at_us && calls[0].wall_ms > 1_600_000_000_000);
    }

    #[tokio::test]
    async fn a_dripping_answer_continues_a_missing_one_keeps_the_connection_and_a_cut_closes_it() {
        let server = Server::start("127.0.0.1:0", |call| match call.path.as_str() {
            "/drip" => Answer::dripping(Duration::from_millis(1)),
            "/cut" => Answer::hang_up(),
            _ => Answer::never(),
        })
        .await
        .unwrap();
        let (mut dripping, mut silent) = (connect(&server).await, connect(&server).await);
        post(&mut silent, "/hole", "x-n: 7\r\n", "x").await;
        post(&mut dripping, "/drip", "x-n: 7\r\n", "x").await;
        let mut heard = String::new();
        while heard.matches('.').count() < 20 {
            heard += &read_until(&mut dripping, "\r\n").await;
        }
        // The dripping connection had time for twenty bytes, so the silent one had time for one.
        let nothing = silent.try_read(&mut [0; 8]).unwrap_err();
        assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
        let mut cut = connect(&server).await;
        post(&mut cut, "/cut", "x-n: 7\r\n", "x").await;
        assert_eq!(cut.read(&mut [0; 8]).await.unwrap_or(0), 0, "closed at once");
        drop(server);
        assert_eq!(silent.read(&mut [0; 8]).await.unwrap_or(0), 0, "closed with the server");
    }

    // The clock is tokio's and stands still while there is work, so the bound does not depend on the machine.
    #[tokio::test(start_paused = true)]
    async fn an_answer_can_be_delayed() {
        let server = Server::start("127.0.0.1:0", |_| Answer::status(204).after(Duration::from_millis(30)))
            .await
            .unwrap();
        let mut stream = connect(&server).await;
        let begun = tokio::time::Instant::now();
        post(&mut stream, "/", "x-n: 7\r\n", "").await;
        read_until(&mut stream, "\r\n\r\n").await;
        assert!(begun.elapsed() >= Duration::from_millis(30));
    }
}
