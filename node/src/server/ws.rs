//! `GET /ws`: pushes messages to the clients of the Kite API. [`session`] describes the life of a session, [`route`]
//! accepts the upgrade, and [`ws_state`] holds what all sessions of a node share.

pub mod ack;
pub mod admission;
pub mod feed;
pub mod frame;
pub mod handshake;
pub mod link;
pub mod liveness;
pub mod progress;
pub mod quota;
pub mod resume;
pub mod route;
pub mod rpc;
pub mod scope;
pub mod session;
pub mod ws_state;
