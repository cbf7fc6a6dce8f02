//! JSON bodies of the three faces. Field names are the vendors'; see the module of each face.

pub mod abbababa;
pub mod admin;
pub mod kite;
