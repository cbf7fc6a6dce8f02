//! The old name of [`crate::http`].

pub use crate::http::{Builder, Http as Client, Request};
