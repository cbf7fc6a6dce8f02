//! https and wss with a private certificate authority.

use std::sync::Arc;

use agentpost_testkit::scripted_server::{ScriptedServer, Step};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::common::{User, parts};

/// The certificate of an authority, and TLS settings for a server at `localhost` with a certificate of that authority.
fn authority() -> (String, rustls::ServerConfig) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["localhost".to_owned()])
        .unwrap()
        .signed_by(&key, &issuer)
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key)
        .unwrap();
    (issuer.pem(), config)
}

/// Terminates TLS in front of a server and returns the port.
async fn tls_in_front_of(stub: &ScriptedServer, config: rustls::ServerConfig) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (acceptor, behind) = (TlsAcceptor::from(Arc::new(config)), stub.base.replace("http://", ""));
    tokio::spawn(async move {
        while let Ok((outer, _)) = listener.accept().await {
            let (acceptor, behind) = (acceptor.clone(), behind.clone());
            tokio::spawn(async move {
                let Ok(mut outer) = acceptor.accept(outer).await else {
                    return;
                };
                let mut inner = TcpStream::connect(behind).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut outer, &mut inner).await;
            });
        }
    });
    port
}

#[tokio::test]
async fn http_and_websocket_trust_a_private_authority_only_if_it_is_named() {
    let (authority, config) = authority();
    let stub = ScriptedServer::start().await;
    let port = tls_in_front_of(&stub, config).await;
    let url = format!("wss://localhost:{port}/ws");
    let stranger = User::of("").with("KITE_WS_URL", &url);
    let pem = stranger.home.path().join("ca.pem");
    std::fs::write(&pem, authority).unwrap();
    let friend = User::of("")
        .with("KITE_WS_URL", &url)
        .with("SSL_CERT_FILE", pem.to_str().unwrap());

    stub.answer(200, "{\"id\":\"i\"}");
    let output = friend.kite(&["agent", "send", "--to", "a", "--from", "b", "x"]).await;
    let expected = "Sent agent message\n  from: b\n  to:   a\n  id:   i\n";
    assert_eq!(parts(&output), (Some(0), expected.to_owned(), String::new()));

    stub.session(vec![Step::Say(
        json!({"type": "error", "code": 4001, "message": "reached"}).to_string(),
    )]);
    let (code, _, stderr) = parts(&friend.kite(&["agent", "listen", "--as-id", "a"]).await);
    assert!(
        code == Some(1) && stderr.ends_with("Error: Server error (4001): reached\n"),
        "{stderr}"
    );

    let seen = stub.seen().len();
    let (code, _, stderr) = parts(&stranger.kite(&["agent", "send", "--to", "a", "--from", "b", "x"]).await);
    assert_eq!((code, stub.seen().len()), (Some(1), seen), "{stderr}");
    assert!(stderr.contains("certificate"), "{stderr}");
}
