//! HTTP by hand for the tests of the receiver: it shows each byte of an answer when it comes.
#![allow(clippy::unwrap_used)]

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub async fn post(stream: &mut TcpStream, path: &str, headers: &str, body: &str) {
    let length = body.len();
    let request = format!("POST {path} HTTP/1.1\r\nhost: a\r\n{headers}content-length: {length}\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).await.unwrap();
}

/// Reads until the text ends with `end`. The server must not have sent more than that.
pub async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut text = String::new();
    while !text.ends_with(end) {
        let mut chunk = [0; 1024];
        let n = stream.read(&mut chunk).await.unwrap();
        assert!(n > 0, "closed after {text:?}");
        text.push_str(std::str::from_utf8(&chunk[..n]).unwrap());
    }
    text
}
