//! Receives the mail of an agent at a URL, and checks the signature of every call.
//!
//! ```text
//! HOOK_URL=https://example.org/hook LISTEN=0.0.0.0:8080 cargo run --example webhook_axum
//! ```

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use agentpost::verify::Verifier;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::{Router, routing::post};

#[derive(Clone)]
struct Hook {
    verifier: Arc<Verifier>,
    seen: Arc<Mutex<HashSet<String>>>,
}

async fn receive(State(hook): State<Hook>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let header = |name: &str| headers.get(name)?.to_str().ok();
    let Ok(call) = hook.verifier.verify(header, &body) else {
        return StatusCode::UNAUTHORIZED;
    };
    // A call may be repeated, always under the same id.
    if hook.seen.lock().is_ok_and(|mut seen| seen.insert(call.id)) {
        println!("{}", String::from_utf8_lossy(&body));
    }
    StatusCode::NO_CONTENT
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let listener = tokio::net::TcpListener::bind(std::env::var("LISTEN")?).await?;
    let alpha = agentpost::from_env().await?.agent("agent-alpha");
    let webhook = alpha.webhook().set(std::env::var("HOOK_URL")?).await?;
    let hook = Hook {
        verifier: Arc::new(Verifier::new().secret(&webhook.secret)?),
        seen: Arc::default(),
    };
    let app = Router::new().route("/hook", post(receive)).with_state(hook);
    Ok(axum::serve(listener, app).await?)
}
