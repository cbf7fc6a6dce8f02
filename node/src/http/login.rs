//! Device login: `/api/auth/device-code`, `/api/auth/device-token`, and `/admin/v1/login/` for those who let devices in.

use std::sync::Arc;

use axum::Router;

use super::Doors;

/// The routes.
pub(super) fn routes() -> Router<Arc<Doors>> {
    Router::new()
}
