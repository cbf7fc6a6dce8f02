//! Device login: a machine without a key shows a code, and an administrator approves it.
//!
//! - [`device`]: `/api/auth/device-code` and `/api/auth/device-token`, without a key, as Kite's command line asks;
//! - [`decide`]: `/admin/v1/login/`, for administrators; `/activate` and `agentpost login` use it.
//!
//! Each node limits requests without a key and guesses of codes on its own. A guesser can only spend time, and a code
//! lives for ten minutes: there are 20^8 user codes, and each key has 10 tries a minute on each node.

mod decide;
mod device;

use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderValue, header};
use axum::middleware;
use axum::response::Response;
use axum::routing::post;

use super::app_state::AppState;

pub(super) fn routes() -> Router<Arc<AppState>> {
    Router::new()
        .route("/api/auth/device-code", post(device::device_code))
        .route("/api/auth/device-token", post(device::device_token))
        .route("/admin/v1/login/lookup", post(decide::lookup))
        .route("/admin/v1/login/approve", post(decide::approve))
        .route("/admin/v1/login/deny", post(decide::deny))
        .route_layer(middleware::map_response(not_cached))
}

/// Forbids caching of the answers of a login.
async fn not_cached(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
