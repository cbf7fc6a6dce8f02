//! The client side of Agentpost: a library over its public API. The two command lines built on it are in `cli/`.
//!
//! - [`Client`]: typed calls of both faces and of the operator API, over the URLs of several nodes. A node that does
//!   not answer is passed over; a send whose outcome is unknown is repeated under the same idempotency key, so it
//!   happens once.
//!   [`Client::agents`] tells who is there and who listens,
//!   [`Client::publish`] and [`Client::subscribe`] are for topics, [`Client::register_webhook`] has mail delivered to a
//!   URL, [`Client::receipt`] tells what became of a message.
//! - [`inbox::Inbox`]: the mail of an agent as it arrives, over a WebSocket that reconnects to any node and resumes
//!   after what was acknowledged.
//! - [`rpc::Rpc`]: the management methods of the Kite face: history, the team's numbers, keys.
//! - [`login::Login`]: a key for a machine that somebody lets in with a code; `Client` has the side of who lets it in.
//! - [`verify`]: for receivers of webhooks: is a call genuine?
//! - [`receiver`]: a small server for webhooks, for tools and tests.
//!
//! ```no_run
//! # async fn example() -> Result<(), agentpost::Error> {
//! use agentpost::Client;
//! use agentpost::api::kite::SendRequest;
//!
//! let client = Client::builder("http://127.0.0.1:7700 http://127.0.0.1:7701").api_key("kite_…").build()?;
//! let mail = SendRequest {
//!     from: "agent-beta".to_owned(),
//!     to: "agent-alpha".to_owned(),
//!     body: "Here are the results you asked for.".to_owned(),
//!     thread_id: None,
//!     reply_to_id: None,
//! };
//! let sent = client.kite_send(None, &mail).await?;
//! println!("{}", sent.id);
//! # Ok(())
//! # }
//! ```

#![warn(missing_docs)]

mod admin;
mod agents;
pub mod client;
mod deliveries;
mod endpoints;
pub mod error;
pub mod event;
pub mod inbox;
mod kite;
pub mod login;
mod mail;
pub mod receiver;
pub mod retry;
pub mod rpc;
mod socket;
mod tls;
mod topics;
pub mod urls;
pub mod verify;

pub use agentpost_proto::secret::Secret;
pub use agentpost_proto::{api, limits};
pub use client::Client;
pub use deliveries::DeliveryQuery;
pub use error::Error;
pub use mail::{Consistency, ListQuery, Order};
pub use topics::SubscriptionUrl;
