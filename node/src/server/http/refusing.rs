//! The routes of a node that does not serve, because it is starting or is quarantined: health and metrics, and a refusal
//! of everything else.

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::map_response;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;

use super::health::metrics_response;
use super::router::face_of;
use crate::base::metrics::Metrics;
use crate::server::error::{ApiError, in_form_of, json_response};

/// The routes. `health` is the answer of `/health`; `reason` says to everybody else why this node does not serve.
pub fn router(
    health: &serde_json::Value,
    metrics: Metrics,
    reason: impl Fn() -> String + Clone + Send + Sync + 'static,
) -> Router {
    let health = health.to_string();
    let alive = get(move || async move { json_response(StatusCode::OK, health.into_bytes()) });
    let figures = get(move || async move { metrics_response(metrics.encode()) });
    let refuse = move |request: Request| async move {
        let refusal = ApiError::unavailable(reason()).into_response();
        in_form_of(face_of(request.uri().path()), refusal)
    };
    Router::new()
        .route("/health", alive.clone())
        .route("/healthz", alive)
        .route("/metrics", figures)
        .fallback(refuse)
        .layer(map_response(|mut response: Response| async {
            let nosniff = HeaderValue::from_static("nosniff");
            response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
            response
        }))
}
