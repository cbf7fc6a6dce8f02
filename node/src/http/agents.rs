//! Kite's directory: `GET` and `POST /api/v1/agents`.

use std::sync::Arc;

use axum::Router;

use super::Doors;

/// The routes.
pub(super) fn routes() -> Router<Arc<Doors>> {
    Router::new()
}
