//! The routes of the client port, and the middleware around every request.

use std::sync::Arc;
use std::time::Duration;

use agentpost_proto::limits;
use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};

use super::app_state::{App, AppState, HttpHandles};
use super::{abbababa, activate, admin, agents, body, health, kite, login, ratelimit, signing};
use crate::server::error::{ApiError, in_form_of};
use crate::server::face::Face;
use crate::server::services::Services;
use crate::shard::this_node::DRAIN_DEADLINE;

/// Time limit for a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Time limit for a transfer of leadership, which waits for running webhook calls.
const TRANSFER_TIMEOUT: Duration = DRAIN_DEADLINE.saturating_add(Duration::from_secs(10));
/// Time limit for a long poll.
const POLL_TIMEOUT: Duration = Duration::from_secs(limits::WAIT_SECONDS_MAX + 30);

/// All routes of the client port. `beside` are routes of another protocol on the same port.
pub fn router(services: Services, http: HttpHandles, beside: Router<Arc<AppState>>) -> Router {
    let app = AppState::new(services, http);
    Router::new()
        .merge(abbababa::routes())
        .merge(kite::routes())
        .merge(agents::routes())
        .merge(login::routes())
        .merge(activate::routes())
        .merge(admin::routes())
        .merge(signing::routes())
        .merge(health::routes())
        .merge(beside)
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(Arc::clone(&app), around))
        .with_state(app)
}

/// The API that a path belongs to.
pub(super) fn face_of(path: &str) -> Face {
    match path {
        "/api/v1/agents" | "/v1/agents" | "/api/v1/agents/messages" | "/v1/agents/messages" | "/ws" => Face::Kite,
        "/health" | "/healthz" | "/readyz" | "/metrics" => Face::Node,
        _ if path.starts_with("/api/auth/") => Face::Kite,
        _ if path.starts_with("/admin/") || path.starts_with("/activate") => Face::Admin,
        _ => Face::Abbababa,
    }
}

async fn unknown_path() -> ApiError {
    ApiError::not_found("no such path")
}

async fn wrong_method(method: Method) -> ApiError {
    let message = format!("{method} is not allowed here");
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}

/// Middleware around every request: its deadline, its metric, the form of its errors, and the headers of every answer.
async fn around(State(app): App, request: Request, next: Next) -> Response {
    let clock = app.services.wall_time.clock();
    let started = clock.now();
    let face = face_of(request.uri().path());
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("unknown", MatchedPath::as_str);
    let route = format!("{} {route}", method_name(request.method()));
    let polls = request.uri().query().is_some_and(|query| query.contains("wait="));
    let deadline = match request.uri().path() {
        path if path == admin::TRANSFER || path.starts_with(admin::MEMBERS) => TRANSFER_TIMEOUT,
        _ if polls => POLL_TIMEOUT,
        _ => REQUEST_TIMEOUT,
    };
    let quota = ratelimit::Quota::of(request.method(), request.uri().path());
    let quota = quota.map(|quota| (quota, request.headers().clone()));
    let answered = next.run(body::guarded(request, &app.http.lifetime.tasks));
    let answered = tokio::time::timeout(deadline, answered).await;
    let answered = answered.unwrap_or_else(|_| ApiError::outcome_unknown().into_response());
    let mut response = in_form_of(face, answered);
    if let Some((quota, asked)) = quota {
        response = ratelimit::set_headers(&app, quota, &asked, response);
    }
    response
        .headers_mut()
        .insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    app.services
        .metrics
        .http(face.name(), &route, response.status().as_u16(), started.elapsed());
    response
}

/// Maps a method to a label. Unknown methods share one, so that strangers cannot create labels.
fn method_name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PATCH => "PATCH",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "OTHER",
    }
}
