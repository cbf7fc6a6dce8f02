//! A small HTTP server for webhooks, for tools and tests: `agentpost webhook listen`, the benchmark and the fault
//! tests listen with it. It tells a handler of each call as it arrives and answers as the handler says, which may be
//! badly: late, a byte now and then, or never.
//!
//! ```no_run
//! # async fn example() -> std::io::Result<()> {
//! use agentpost::receiver::{Answer, Server};
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
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Either, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream, ToSocketAddrs};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;

pub use hyper::{HeaderMap, Method};

/// Several times the largest webhook body; more is answered 413 and not told to the handler.
const BODY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// After a failed accept: descriptors may be used up, and a loop without a pause would use up the processor too.
const AFTER_ACCEPT_ERROR: Duration = Duration::from_millis(50);

/// A request as it arrived.
#[derive(Debug, Clone)]
pub struct Call {
    /// Normally `POST`.
    pub method: Method,
    /// Path and query.
    pub path: String,
    /// As they came.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
    /// When its head was read: microseconds of the monotonic clock since the server started.
    pub at_us: u64,
    /// The same moment in milliseconds since 1970.
    pub wall_ms: u64,
}

impl Call {
    /// The value of a header that is there and readable.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// How a call is answered.
#[derive(Debug, Clone)]
pub struct Answer {
    status: StatusCode,
    headers: Vec<(HeaderName, HeaderValue)>,
    delay: Duration,
    body: Body,
}

#[derive(Debug, Clone)]
enum Body {
    Whole(Bytes),
    /// One byte each time, without end.
    Dripping(Duration),
    /// No head either.
    Never,
    /// The connection ends instead.
    Cut,
}

impl Answer {
    /// An empty answer, at once.
    ///
    /// # Panics
    /// If it is no HTTP status.
    pub fn status(status: u16) -> Self {
        Answer {
            status: StatusCode::from_u16(status).expect("an HTTP status"),
            headers: Vec::new(),
            delay: Duration::ZERO,
            body: Body::Whole(Bytes::new()),
        }
    }

    /// Success at once, and then a byte every `gap` for as long as the caller listens.
    pub fn dripping(gap: Duration) -> Self {
        Answer {
            body: Body::Dripping(gap),
            ..Answer::status(200)
        }
    }

    /// A black hole: the call is read and never answered.
    pub fn never() -> Self {
        Answer {
            body: Body::Never,
            ..Answer::status(200)
        }
    }

    /// The connection is closed instead of an answer.
    pub fn hang_up() -> Self {
        Answer {
            body: Body::Cut,
            ..Answer::status(200)
        }
    }

    /// With this header as well.
    ///
    /// # Panics
    /// If name or value cannot stand in a header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        let name = HeaderName::from_bytes(name.as_bytes()).expect("a header name");
        self.headers
            .push((name, HeaderValue::from_str(value).expect("a header value")));
        self
    }

    /// With this body.
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = Body::Whole(body.into());
        self
    }

    /// Not before this time has passed.
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Its status.
    pub fn code(&self) -> u16 {
        self.status.as_u16()
    }
}

/// Listens until it is dropped; open connections end with it.
pub struct Server {
    address: SocketAddr,
    started: Instant,
    accepting: JoinHandle<()>,
}

impl Server {
    /// Binds and answers every call with what `handler` returns for it. The handler is called in the order of arrival
    /// on each connection and must not block.
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

    /// What [`Call::at_us`] counts from.
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
    // Dropped with this task, and the connections with it.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => drop(connections.spawn(serve(stream, shared.clone()))),
            Err(_) => sleep(AFTER_ACCEPT_ERROR).await,
        }
    }
}

async fn serve<H: Fn(Call) -> Answer + Send + Sync + 'static>(stream: TcpStream, shared: Arc<Shared<H>>) {
    // An answer is one small segment: it must not wait for an acknowledgement.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let shared = shared.clone();
        async move { take(request, &shared).await }
    });
    // A caller that breaks off is its own affair.
    let _ = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

type AnswerBody = Either<Full<Bytes>, BoxBody<Bytes, Infallible>>;

/// The error ends the connection.
async fn take<H: Fn(Call) -> Answer>(
    request: Request<Incoming>,
    shared: &Shared<H>,
) -> std::io::Result<Response<AnswerBody>> {
    let at_us = u64::try_from(shared.started.elapsed().as_micros()).unwrap_or(u64::MAX);
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
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
        wall_ms: u64::try_from(wall.as_millis()).unwrap_or_default(),
    });
    if !answer.delay.is_zero() {
        sleep(answer.delay).await;
    }
    match answer.body {
        // Until the caller hangs up, which drops this.
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
    use super::*;
    use std::sync::Mutex;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn connect(server: &Server) -> TcpStream {
        TcpStream::connect(server.address).await.unwrap()
    }

    async fn post(stream: &mut TcpStream, path: &str, body: &str) {
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: a\r\nx-n: 7\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
    }

    /// Reads until `end` has come, which a later answer must not have sent yet.
    async fn read_until(stream: &mut TcpStream, end: &str) -> String {
        let mut text = String::new();
        while !text.ends_with(end) {
            let mut chunk = [0; 1024];
            let n = stream.read(&mut chunk).await.unwrap();
            assert!(n > 0, "closed after {text:?}");
            text.push_str(std::str::from_utf8(&chunk[..n]).unwrap());
        }
        text
    }

    #[tokio::test]
    async fn calls_are_told_in_order_and_answered_as_the_handler_says() {
        let calls = Arc::new(Mutex::new(Vec::new()));
        let told = calls.clone();
        let server = Server::start("127.0.0.1:0", move |call: Call| {
            let answer = Answer::status(503).header("retry-after", "5").body(call.body.clone());
            told.lock().unwrap().push(call);
            answer
        })
        .await
        .unwrap();
        let mut stream = connect(&server).await;
        // Two calls on one connection.
        for body in ["first", "second"] {
            post(&mut stream, "/hook?a=1", body).await;
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
    async fn a_dripping_answer_goes_on_a_black_hole_says_nothing_and_a_cut_ends_it() {
        let server = Server::start("127.0.0.1:0", |call| match call.path.as_str() {
            "/drip" => Answer::dripping(Duration::from_millis(1)),
            "/cut" => Answer::hang_up(),
            _ => Answer::never(),
        })
        .await
        .unwrap();
        let (mut dripping, mut silent) = (connect(&server).await, connect(&server).await);
        post(&mut silent, "/hole", "x").await;
        post(&mut dripping, "/drip", "x").await;
        let mut heard = String::new();
        while heard.matches('.').count() < 20 {
            heard += &read_until(&mut dripping, "\r\n").await;
        }
        // The dripping one had time for twenty bytes, the silent one for none.
        let nothing = silent.try_read(&mut [0; 8]).unwrap_err();
        assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
        let mut cut = connect(&server).await;
        post(&mut cut, "/cut", "x").await;
        assert_eq!(cut.read(&mut [0; 8]).await.unwrap_or(0), 0, "closed at once");
        drop(server);
        assert_eq!(silent.read(&mut [0; 8]).await.unwrap_or(0), 0, "closed with the server");
    }

    #[tokio::test]
    async fn an_answer_can_wait() {
        let server = Server::start("127.0.0.1:0", |_| Answer::status(204).after(Duration::from_millis(30)))
            .await
            .unwrap();
        let mut stream = connect(&server).await;
        let begun = Instant::now();
        post(&mut stream, "/", "").await;
        read_until(&mut stream, "\r\n\r\n").await;
        assert!(begun.elapsed() >= Duration::from_millis(30));
    }
}
