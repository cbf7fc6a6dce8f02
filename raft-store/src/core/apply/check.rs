//! Checks of the fields of a command.

use agentpost_proto::command::ErrorCode;
use agentpost_proto::id::InvalidId;
use agentpost_proto::limits;

use super::{Stop, reject};

/// Checks a display name.
pub(super) fn validate_display_name(name: &str) -> Result<(), Stop> {
    let length = name.chars().count();
    if length == 0 || length > limits::DISPLAY_NAME_CHARS_MAX || name.chars().any(char::is_control) {
        return reject(ErrorCode::Invalid, "a name has 1 to 128 printable characters");
    }
    Ok(())
}

/// Rejects the command when one of its ids does not parse.
pub(super) fn parsed<T>(result: Result<T, InvalidId>) -> Result<T, Stop> {
    result.or_else(|e| reject(ErrorCode::Invalid, e.to_string()))
}
