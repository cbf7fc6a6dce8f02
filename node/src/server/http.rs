//! The client port.
//!
//! - [`abbababa`], [`kite`], [`admin`], [`signing`], [`health`]: the faces, each with its own shapes;
//!   [`agents`]: who is there; [`login`], [`activate`]: how devices get a key, and the page for whoever lets them in;
//!   `deliveries`: what two faces show alike;
//! - [`router`]: all routes, and what happens around every request; [`app_state`]: what every handler works with;
//! - [`ratelimit`]: what the Abba Baba face says about quotas;
//! - [`input`], [`body`], [`cursor`]: strict input and opaque output; [`serve`]: connections and their bounds.
//!
//! **Invariant**: every answer is JSON (but `/metrics`, and the files of `/activate`), and no bad input makes a 5xx.

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
mod login_limits;
pub mod ratelimit;
pub mod router;
pub mod serve;
pub mod signing;
