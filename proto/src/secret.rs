//! Texts that must not be logged: keys, tokens, signing secrets.

use std::fmt;
use std::ops::Deref;

use serde::{Deserialize, Serialize};

/// A secret as it crosses the wire. `Debug` prints `***`, so that logging a whole structure does not reveal it.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Deref for Secret {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Secret(text)
    }
}

impl From<Secret> for String {
    fn from(secret: Secret) -> String {
        secret.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_goes_over_the_wire_and_into_no_log() {
        let secret = Secret("whsec_x".to_owned());
        assert_eq!(serde_json::to_string(&secret).ok(), Some("\"whsec_x\"".to_owned()));
        assert_eq!(format!("{:?}", Some(&secret)), "Some(***)");
    }
}
