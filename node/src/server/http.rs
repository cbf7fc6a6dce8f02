//! The client port.
//!
//! - [`abbababa`], [`kite`], [`admin`], [`signing`], [`health`]: the APIs, each with its own JSON shapes; [`agents`]:
//!   the directory of agents; [`login`], [`activate`]: device login and the page that approves one; `deliveries`: JSON
//!   that two APIs share;
//! - [`router`]: all routes and the middleware around every request; [`app_state`]: the state that every handler
//!   shares;
//! - [`refusing`]: the routes of a node that starts or is quarantined;
//! - [`ratelimit`]: the quota headers of the Abba Baba API;
//! - [`input`], [`body`], [`cursor`]: strict input and opaque cursors; [`serve`]: connections and their bounds.
//!
//! **Invariant**: every answer is JSON (except `/metrics` and the files of `/activate`), and bad input never causes a
//! 5xx.

pub mod abbababa;
pub mod activate;
pub mod admin;
pub mod agents;
pub mod app_state;
pub mod body;
pub mod cursor;
mod deliveries;
pub mod health;
pub mod input;
pub mod kite;
pub mod login;
pub mod login_limits;
pub mod ratelimit;
pub mod refusing;
pub mod router;
pub mod serve;
pub mod signing;
