//! Health and metrics.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::app_state::{App, AppState};
use crate::server::error::{ApiError, Result, json_response};

/// The routes, without a prefix.
pub(super) fn routes() -> Router<Arc<AppState>> {
    Router::new()
        .route("/health", get(alive))
        .route("/healthz", get(alive))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
}

/// Answers while the process runs.
async fn alive() -> Response {
    json_response(StatusCode::OK, br#"{"status":"ok"}"#.to_vec())
}

/// Answers whether this node can serve linearizable reads and forward writes.
async fn ready(State(app): App) -> Result<Response> {
    if !app.http.lifetime.shutdown.is_cancelled() && app.http.cluster.ready().await {
        Ok(json_response(StatusCode::OK, br#"{"status":"ready"}"#.to_vec()))
    } else {
        Err(ApiError::unavailable("this node cannot reach a quorum right now"))
    }
}

async fn metrics(State(app): App) -> Response {
    metrics_response(app.http.cluster.metrics_text(&app.services.metrics))
}

/// The answer of `/metrics` with this text.
pub(super) fn metrics_response(text: String) -> Response {
    let mut response = text.into_response();
    let format = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, format);
    response
}
