//! What the commands `kite` and `agentpost` print alike: tables, text of strangers, JSON.

pub mod output;
pub mod table;
pub mod terminal;
