//! Device login: a machine without a key shows a code, a person with an administrator's key lets it in.
//!
//! - [`device`]: `/api/auth/device-code` and `/api/auth/device-token`, without a key, as Kite's command line asks;
//! - [`decide`]: `/admin/v1/login/`, for whoever lets devices in; `/activate` and `agentpost login` use it.
//!
//! What may be tried without a key, or guessed with one, is limited on each node for itself. That costs a guesser
//! nothing but time, of which a code gives ten minutes: 20^8 user codes, 10 tries a minute and key on each node.

mod decide;
mod device;

use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use axum::routing::post;

use super::app_state::AppState;

/// The routes.
pub(super) fn routes() -> Router<Arc<AppState>> {
    Router::new()
        .route("/api/auth/device-code", post(device::device_code))
        .route("/api/auth/device-token", post(device::device_token))
        .route("/admin/v1/login/lookup", post(decide::lookup))
        .route("/admin/v1/login/approve", post(decide::approve))
        .route("/admin/v1/login/deny", post(decide::deny))
}

/// Answers of a login are for one reader, once.
fn for_once(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
