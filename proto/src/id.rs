//! Identifiers. Parsing is the validation: a value of these types is always well formed.

use std::fmt;
use std::str::FromStr;

use crate::limits;

/// Upper bound on the bytes of a topic or a message type.
const NAME_BYTES_MAX: usize = 128;
/// Upper bound on the characters of a thread id, a reply id or a subject.
const OPAQUE_CHARS_MAX: usize = 128;
/// Upper bound on the bytes of an idempotency key.
const IDEMPOTENCY_KEY_BYTES_MAX: usize = 128;

/// The reason why a text is not an identifier. The caller sees it as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidId(pub String);

macro_rules! opaque_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 16]);

        impl $name {
            /// Reads the 16 bytes of a stored or received field.
            pub fn from_slice(bytes: &[u8]) -> Result<Self, InvalidId> {
                bytes
                    .try_into()
                    .map(Self)
                    .map_err(|_| InvalidId(format!("{} has {} bytes instead of 16", stringify!($name), bytes.len())))
            }

            /// The bytes for a protobuf field.
            pub fn to_bytes(self) -> bytes::Bytes {
                bytes::Bytes::copy_from_slice(&self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str($prefix)?;
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let invalid = || InvalidId(format!("expected {}<32 lower-case hex digits>", $prefix));
                let digits = text.strip_prefix($prefix).ok_or_else(invalid)?;
                lower_hex(digits).map(Self).ok_or_else(invalid)
            }
        }
    };
}

opaque_id!(
    /// A tenant.
    TeamId, "team_"
);
opaque_id!(
    /// An API key (not the secret).
    KeyId, "key_"
);

opaque_id!(
    /// An agent's subscription to a topic.
    SubscriptionId, "sub_"
);
opaque_id!(
    /// An agent's global webhook.
    WebhookId, "whk_"
);
opaque_id!(
    /// A delivery: one message, one receiving agent, one URL.
    DeliveryId, "dlv_"
);

impl TeamId {
    /// The reserved team `system`, whose keys administer the cluster.
    pub const SYSTEM: TeamId = TeamId([0; 16]);
}

/// A message: a UUIDv7. It is printed as `msg_<32 hex>` on the Abba Baba face and as a UUID on the Kite face;
/// either form parses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct MessageId(pub uuid::Uuid);

impl MessageId {
    /// Reads the 16 bytes of a stored or received field.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, InvalidId> {
        uuid::Uuid::from_slice(bytes)
            .map(Self)
            .map_err(|e| InvalidId(e.to_string()))
    }

    /// The bytes for a protobuf field.
    pub fn to_bytes(self) -> bytes::Bytes {
        bytes::Bytes::copy_from_slice(self.0.as_bytes())
    }

    /// `msg_<32 hex>`.
    pub fn abbababa(self) -> String {
        format!("msg_{}", self.0.simple())
    }

    /// The bare UUID.
    pub fn kite(self) -> String {
        self.0.to_string()
    }
}

impl FromStr for MessageId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let invalid = || InvalidId("expected msg_<32 hex digits> or a UUID".to_owned());
        match text.strip_prefix("msg_") {
            Some(digits) => lower_hex(digits)
                .map(|b| Self(uuid::Uuid::from_bytes(b)))
                .ok_or_else(invalid),
            None if text.len() == 36 => text.parse().map(Self).map_err(|_| invalid()),
            None => Err(invalid()),
        }
    }
}

fn lower_hex(digits: &str) -> Option<[u8; 16]> {
    let plain = digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let mut out = [0; 16];
    (plain && hex::decode_to_slice(digits, &mut out).is_ok()).then_some(out)
}

/// An agent within its team: `[A-Za-z0-9._:-]{1,128}`, case-sensitive, not `.` or `..`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct AgentId(String);

impl AgentId {
    /// The sender of notices; no key may be bound to it and no client may send as it.
    pub const SYSTEM: &'static str = "system";

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<AgentId> for String {
    fn from(id: AgentId) -> String {
        id.0
    }
}

impl FromStr for AgentId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._:-".contains(&b);
        if text.is_empty() || text.len() > limits::AGENT_ID_BYTES_MAX || !text.bytes().all(allowed) {
            return Err(InvalidId(
                "an agent id has 1 to 128 characters of A-Z a-z 0-9 . _ : -".to_owned(),
            ));
        }
        if text == "." || text == ".." {
            return Err(InvalidId("an agent id cannot be . or ..".to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

/// Checks a topic or message type: 1 to 128 characters of `[A-Za-z0-9._:/-]`.
pub fn validate_name(what: &str, text: &str) -> Result<(), InvalidId> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._:/-".contains(&b);
    if text.is_empty() || text.len() > NAME_BYTES_MAX || !text.bytes().all(allowed) {
        return Err(InvalidId(format!(
            "{what} must have 1 to 128 characters of A-Z a-z 0-9 . _ : / -"
        )));
    }
    Ok(())
}

/// Checks a thread or reply id: opaque, 1 to 128 printable characters.
pub fn validate_opaque(what: &str, text: &str) -> Result<(), InvalidId> {
    let length = text.chars().count();
    if length == 0 || length > OPAQUE_CHARS_MAX || text.chars().any(char::is_control) {
        return Err(InvalidId(format!("{what} must have 1 to 128 printable characters")));
    }
    Ok(())
}

/// Checks a login's user code as it is stored: `limits::USER_CODE_LETTERS` of `limits::USER_CODE_ALPHABET`.
pub fn validate_user_code(text: &str) -> Result<(), InvalidId> {
    let known = text.bytes().all(|b| limits::USER_CODE_ALPHABET.contains(&b));
    if text.len() != limits::USER_CODE_LETTERS || !known {
        return Err(InvalidId("a user code has 8 consonants".to_owned()));
    }
    Ok(())
}

/// Checks an idempotency key: 1 to 128 printable ASCII characters.
pub fn validate_idempotency_key(text: &str) -> Result<(), InvalidId> {
    let printable = text.bytes().all(|b| (0x20..0x7f).contains(&b));
    if text.is_empty() || text.len() > IDEMPOTENCY_KEY_BYTES_MAX || !printable {
        return Err(InvalidId(
            "Idempotency-Key must have 1 to 128 printable ASCII characters".to_owned(),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opaque_ids_print_and_parse() {
        let id = TeamId([0xab; 16]);
        assert_eq!(id.to_string(), format!("team_{}", "ab".repeat(16)));
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in [
            "",
            "team_",
            "key_00",
            &format!("team_{}", "AB".repeat(16)),
            &format!("team_{}", "ab".repeat(17)),
        ] {
            assert!(bad.parse::<TeamId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn message_ids_parse_in_both_forms() {
        let id = MessageId(uuid::Uuid::from_u128(0x0192_f0e1_0000_7000_8000_0000_0000_0001));
        assert_eq!(id.abbababa().parse(), Ok(id));
        assert_eq!(id.kite().parse(), Ok(id));
        assert!("msg_zz".parse::<MessageId>().is_err());
        assert!("not an id".parse::<MessageId>().is_err());
    }

    #[test]
    fn user_codes_are_eight_known_consonants() {
        assert_eq!(validate_user_code("BCDFGHJK"), Ok(()));
        for bad in [
            "",
            "BCDFGHJ",
            "BCDFGHJKL",
            "BCDF-GHJK",
            "bcdfghjk",
            "BCDFGHJA",
            "BCDFGHJ\0",
            "BCDFGHÄ",
        ] {
            assert!(validate_user_code(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn agent_ids_are_bounded() {
        for good in ["a", "agent-alpha", "A.b_c:d-9", &"x".repeat(128)] {
            assert!(good.parse::<AgentId>().is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a b", "ä", "a/b", &"x".repeat(129)] {
            assert!(bad.parse::<AgentId>().is_err(), "{bad}");
        }
    }
}
