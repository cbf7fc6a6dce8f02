//! `/activate`: the page where a person lets a device in.

use std::sync::Arc;

use axum::Router;

use super::Doors;

/// The routes.
pub(super) fn routes() -> Router<Arc<Doors>> {
    Router::new()
}
