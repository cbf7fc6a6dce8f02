//! What several areas share; `README.md` says who uses which part.

pub mod books;
pub mod claims;
pub mod core;
pub mod dispatcher;
pub mod member_steps;
pub mod random;
pub mod show;
pub mod topic_steps;
