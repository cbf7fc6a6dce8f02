//! The peer port: [`listener`] accepts connections, [`admission`] decides which nodes may connect, and [`service`] answers
//! their requests.

pub mod admission;
pub mod listener;
pub mod service;
