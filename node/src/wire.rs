//! JSON as clients and webhooks see it: strict input ([`json`]) and messages ([`message`]).

pub mod json;
pub mod message;
