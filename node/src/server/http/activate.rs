//! `/activate`: the page on which a person approves a device's login. It uses `/admin/v1/login/` like any other client:
//! it has no rights of its own and no state here, and any node serves it.
//!
//! The name that a device gives itself is a stranger's text on a page where an administrator types a key. So the
//! content policy makes the browser run and load only these files, and refuse text as markup whatever the script does
//! with it.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use axum::routing::get;

use super::app_state::AppState;

const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; form-action 'none'; \
     base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
);

pub(super) fn routes() -> Router<Arc<AppState>> {
    const HTML: &str = include_str!("activate/page.html");
    const CSS: &str = include_str!("activate/page.css");
    const JS: &str = include_str!("activate/page.js");
    const SVG: &str = include_str!("activate/icon.svg");
    Router::new()
        .route("/activate", get(async || file("text/html; charset=utf-8", HTML)))
        .route("/activate.css", get(async || file("text/css; charset=utf-8", CSS)))
        .route("/activate.js", get(async || file("text/javascript; charset=utf-8", JS)))
        .route("/activate.svg", get(async || file("image/svg+xml", SVG)))
}

/// Adds the headers of the page; the router adds `nosniff` to every answer.
fn file(kind: &'static str, content: &'static str) -> Response {
    let mut response = Response::new(Body::from(content));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CONTENT_SECURITY_POLICY, POLICY);
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
