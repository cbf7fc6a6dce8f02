//! What the commands `kite` and `agentpost` share: tables, text of strangers, JSON, files that are replaced in one
//! step.

mod file_replacement;
pub mod output;
pub mod table;
pub mod terminal;

pub use file_replacement::replace_file;
