//! The route `GET /ws`, and the tasks that all sessions of a node share.

use std::sync::Arc;
use std::time::Duration;

use agentpost_proto::limits;
use axum::Router;
use axum::extract::State;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::FutureExt as _;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::ack::Acks;
use super::admission::Admission;
use super::session;
use super::ws_state::{SessionOptions, WsHandles, WsState};
use crate::server::error::{ApiError, Result};
use crate::server::services::Services;
use crate::shard::reader::Reader;

/// Upper bound on the bytes of a WebSocket frame from a client.
const FRAME_BYTES_MAX: usize = 64 * 1024;

/// Creates the route and starts its worker for acks. Call it inside a runtime, once per node.
pub fn route<S: Clone + Send + Sync + 'static>(services: Services, handles: WsHandles) -> Router<S> {
    route_with(services, handles, SessionOptions::default())
}

/// Like [`route`], with other timeouts.
pub fn route_with<S: Clone + Send + Sync + 'static>(
    services: Services,
    handles: WsHandles,
    options: SessionOptions,
) -> Router<S> {
    let acks = Acks::default();
    let (lifetime, proposer) = (handles.lifetime, services.replica.proposer.clone());
    let propose = move |acks| {
        let proposer = proposer.clone();
        async move { proposer.propose_internal(acks).await }
    };
    let worker = acks.clone().run(propose, options.ack_every, lifetime.shutdown.clone());
    let (tasks, shutdown, watch) = (&lifetime.tasks, &lifetime.shutdown, &lifetime.watch);
    tasks.spawn(watch.until(shutdown, "acks", worker));
    let (sender, isolated) = watch::channel(false);
    let admission = Admission::new(services.metrics.clone(), handles.presence);
    let reader = services.replica.reader.clone();
    let watching = watch_isolation(reader, admission.clone(), options.isolated_max, sender);
    let watching = shutdown.clone().run_until_cancelled_owned(watching).map(|_| ());
    tasks.spawn(watch.until(shutdown, "watch over isolation", watching));
    let ws = WsState {
        services,
        lifetime,
        source_prefix: handles.source_prefix,
        options: Arc::new(options),
        acks,
        admission,
        isolated,
    };
    Router::new().route("/ws", get(upgrade)).with_state(ws)
}

/// Accepts the upgrade. Authentication happens inside the session, so an upgrade is refused only when the node is full.
/// The middleware of the port gives errors their form.
async fn upgrade(
    State(ws): State<WsState>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response> {
    let upgrade = upgrade.map_err(|rejection| {
        let text = rejection.body_text();
        ApiError::new(rejection.into_response().status(), "upgrade_required", text)
    })?;
    let permit = ws.admission.enter();
    let permit = permit.ok_or_else(|| ApiError::unavailable("too many WebSocket sessions on this node"))?;
    let tasks = ws.lifetime.tasks.clone();
    Ok(upgrade
        .max_message_size(limits::WS_MESSAGE_BYTES_MAX)
        .max_frame_size(FRAME_BYTES_MAX)
        // Clients send only small frames such as acks, so thousands of idle sockets need not hold 128 KiB each.
        .read_buffer_size(4 * 1024)
        .write_buffer_size(limits::WS_WRITE_CHUNK_BYTES)
        .max_write_buffer_size(limits::WS_WRITE_BUFFER_BYTES_MAX)
        .on_upgrade(move |socket| tasks.track_future(session::run(ws, socket, permit))))
}

/// Notifies the sessions when this node has been without a leader for too long. It asks the leader from time to time,
/// as a linearizable read does.
async fn watch_isolation(reader: Reader, admission: Admission, longest: Duration, isolated: watch::Sender<bool>) {
    let pause = longest / 6;
    let confirmed = || async {
        while reader.linearizable().await.is_err() {
            sleep(pause).await;
        }
    };
    loop {
        let cut_off = !admission.is_empty() && timeout(longest, confirmed()).await.is_err();
        isolated.send_if_modified(|was| std::mem::replace(was, cut_off) != cut_off);
        sleep(pause).await;
    }
}
