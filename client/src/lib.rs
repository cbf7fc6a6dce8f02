//! Agentpost is a replicated post office for agents. This library sends, publishes and receives.
//!
//! ```no_run
//! use agentpost::TryStreamExt;
//!
//! #[tokio::main]
//! async fn main() -> Result<(), agentpost::Error> {
//!     let post = agentpost::from_env().await?;
//!     post.agent("agent-beta").send("agent-alpha", "Here are the results you asked for.").await?;
//!
//!     let mut mail = post.agent("agent-alpha").listen().await?;
//!     while let Some(m) = mail.try_next().await? {
//!         println!("{}: {}", m.from, m.text());
//!         m.reply("Thanks.").await?;
//!         m.ack().await?;
//!     }
//!     Ok(())
//! }
//! ```
//!
//! | to | begin with |
//! |---|---|
//! | connect | [`connect`], [`from_env`], [`Agentpost::builder`] |
//! | send, publish, reply | [`Agent::send`], [`Agent::publish`], [`Mail::reply`], [`Agent::send_all`] |
//! | receive | [`Agent::listen`] (a stream), [`Agent::inbox`] (pages, long poll), [`Agent::webhook`] and [`verify`] |
//! | subscribe to topics | [`Agent::subscribe`] |
//! | see the deliveries and readers of a message | [`Agent::receipt`], [`Agent::deliveries`] |
//! | run a cluster | [`Agentpost::operator`] |
//! | use the parts that only the Kite API has | [`Agentpost::kite`] |
//! | log a machine in without copying a key | [`login`] |
//! | send any other request | [`Agentpost::http`] |
//!
//! # Failures
//! If a node does not answer, the next one is asked, and a request is repeated when a repetition cannot carry it out twice. The
//! remaining failures are [`Error`]s that say what the caller may do next: [`Error::Refused`] is final; after
//! [`Error::Unavailable`] nothing was done; after [`Error::OutcomeUnknown`] it may have been done. [`retry`] has the rules.

#![warn(missing_docs)]

mod agent;
mod call;
mod connection;
mod deliveries;
mod directory;
mod draft;
mod endpoints;
mod environment;
pub mod error;
pub mod http;
pub mod kite;
mod listen;
pub mod login;
mod mail;
pub mod operator;
mod read;
pub mod retry;
mod socket;
mod tls;
mod topics;
pub mod urls;
pub mod verify;
mod webhook;
mod words;

pub use agentpost_proto::secret::Secret;
pub use agentpost_proto::{api, limits};
pub use futures::{Stream, StreamExt, TryStreamExt};

pub use agent::Agent;
pub use call::Call;
pub use connection::{Agentpost, Builder, connect, from_env};
pub use deliveries::{
    Attempt, DeliveriesQuery, Delivery, DeliveryPage, Receipt, ReceiptCounts, ReceiptDelivery, ReceiptReader,
};
pub use directory::{AgentsQuery, Register};
pub use draft::{BatchError, Draft, Sent};
pub use error::Error;
pub use listen::{Connection, Listen, Listener, Status};
pub use mail::{Details, Mail};
pub use read::{InboxQuery, Page};
pub use topics::Subscribe;
pub use webhook::{AgentWebhook, SetWebhook, Webhook};
pub use words::{
    AttemptEnd, Consistency, DeliveryEnd, DeliveryState, Fanout, Order, Permission, Priority, Role, WebhookEvent,
};
