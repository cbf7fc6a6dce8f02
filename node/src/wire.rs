//! JSON as clients and webhooks see it: the faces ([`face`]), strict input ([`json`]) and messages
//! ([`message`]).

pub mod face;
pub mod json;
pub mod message;
