//! TLS: the receiver's certificate is verified for the name in the URL, also when its addresses were checked.

use std::net::SocketAddr;
use std::sync::Arc;

use agentpost_node::webhooks::egress::Timeouts;
use rustls::RootCertStore;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use super::stage::{OK, Stage, config};

/// A TLS server with a certificate for `receiver.example.com` that records the server name and the head of each request.
async fn secure() -> (SocketAddr, RootCertStore, mpsc::Receiver<(String, String)>) {
    let made = rcgen::generate_simple_self_signed(["receiver.example.com".to_owned()]).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(server));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (heard, hears) = mpsc::channel(8);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else {
                continue;
            };
            let name = stream.get_ref().1.server_name().unwrap_or_default().to_owned();
            let mut request = vec![0; 16 * 1024];
            let length = stream.read(&mut request).await.unwrap();
            let head = String::from_utf8_lossy(&request[..length]).into_owned();
            let _ = heard.send((name, head)).await;
            let answer = OK.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n");
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    });
    (addr, roots, hears)
}

const SETTINGS: &str = "allow_networks = [\"127.0.0.0/8\"]";

#[tokio::test]
async fn a_receiver_must_prove_its_name() {
    let (addr, roots, mut hears) = secure().await;
    let trusting = Stage::with(&config(SETTINGS), &[], roots, Timeouts::default());
    let doubting = Stage::new(SETTINGS);
    let url = format!("https://receiver.example.com:{}/hook", addr.port());
    let impostor = format!("https://other.example.com:{}/hook", addr.port());
    for stage in [&trusting, &doubting] {
        stage.names.set("receiver.example.com", &[&["127.0.0.1"]]);
        stage.names.set("other.example.com", &[&["127.0.0.1"]]);
    }
    let result = trusting.call(&url).await;
    assert_eq!((result.status, &*result.error), (200, ""));
    let (name, head) = hears.recv().await.unwrap();
    assert_eq!(name, "receiver.example.com");
    assert!(
        head.contains(&format!("host: receiver.example.com:{}\r\n", addr.port())),
        "{head}"
    );
    assert_eq!(trusting.call(&impostor).await.error, "tls");
    assert_eq!(trusting.call(&format!("https://{addr}/")).await.error, "tls");
    assert_eq!(doubting.call(&url).await.error, "tls");
}

#[tokio::test]
async fn plain_text_where_tls_was_expected_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(OK.as_bytes()).await.unwrap();
        let mut read = [0; 4096];
        while stream.read(&mut read).await.is_ok_and(|n| n > 0) {}
    });
    let result = Stage::new(SETTINGS).call(&format!("https://{addr}/")).await;
    assert_eq!((result.status, &*result.error), (0, "tls"));
}
