//! Fixed sets of words of the API as enums. An answer may hold a word that a newer server has added: it is kept in the
//! variant `Unknown`.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$word_doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(from = "String", into = "String")]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$word_doc])* $variant,)+
            /// A word that this version of the library does not know.
            Unknown(String),
        }

        impl $name {
            /// The word on the wire.
            pub fn as_str(&self) -> &str {
                match self {
                    $($name::$variant => $word,)+
                    $name::Unknown(word) => word,
                }
            }
        }

        impl From<&str> for $name {
            fn from(word: &str) -> Self {
                match word {
                    $($word => $name::$variant,)+
                    other => $name::Unknown(other.to_owned()),
                }
            }
        }

        impl From<String> for $name {
            fn from(word: String) -> Self {
                Self::from(word.as_str())
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.as_str().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}

words!(
    /// How urgent a sender calls its message. The server stores it and shows it; delivery does not depend on it.
    Priority {
        /// `low`.
        Low = "low",
        /// `normal`.
        Normal = "normal",
        /// `high`.
        High = "high",
        /// `urgent`.
        Urgent = "urgent",
    }
);

words!(
    /// A permission of a key. Each one includes the lower ones.
    Permission {
        /// `read`: list, get, mark and listen.
        Read = "read",
        /// `write`: send, subscribe and register, too.
        Write = "write",
        /// `admin`: manage the team's keys and let devices in, too.
        Admin = "admin",
    }
);

words!(
    /// Where the delivery of a message to a webhook stands.
    DeliveryState {
        /// `scheduled`: waits for its next attempt.
        Scheduled = "scheduled",
        /// `claimed`: a call is under way.
        Claimed = "claimed",
        /// `delivered`: the receiver answered with a 2xx status.
        Delivered = "delivered",
        /// `dead`: all attempts failed; it can be redriven.
        Dead = "dead",
        /// `cancelled`: given up before it ended.
        Cancelled = "cancelled",
    }
);

words!(
    /// Why a delivery is dead or cancelled.
    DeliveryEnd {
        /// `exhausted`: the last attempt failed.
        Exhausted = "exhausted",
        /// `non_retryable`: the receiver asked for no further attempt.
        NonRetryable = "non_retryable",
        /// `gone`: the receiver answered 410.
        Gone = "gone",
        /// `disabled`: the URL was disabled by an earlier 410.
        Disabled = "disabled",
        /// `outcome_unknown`: nobody knows whether the last call arrived.
        OutcomeUnknown = "outcome_unknown",
        /// `deleted`: the webhook or the subscription was removed.
        Deleted = "deleted",
        /// `cancelled`: somebody cancelled it.
        Cancelled = "cancelled",
    }
);

words!(
    /// How one attempt of a delivery ended.
    AttemptEnd {
        /// `delivered`: a 2xx status.
        Delivered = "delivered",
        /// `failed`: another status, or no connection.
        Failed = "failed",
        /// `unknown`: the node stopped during the call.
        Unsure = "unknown",
        /// `not_sent`: the call was not begun.
        NotSent = "not_sent",
    }
);

words!(
    /// How far a published message has come.
    Fanout {
        /// `complete`: every subscriber's inbox has it.
        Complete = "complete",
        /// `pending`: it is stored, and some inboxes follow.
        Pending = "pending",
    }
);

words!(
    /// An event for which a webhook is called.
    WebhookEvent {
        /// `message.received`: a direct message.
        MessageReceived = "message.received",
        /// `message.topic`: a message of a topic.
        MessageTopic = "message.topic",
    }
);

words!(
    /// The role of a node in the cluster.
    Role {
        /// `leader`.
        Leader = "leader",
        /// `follower`: a voter that does not lead.
        Follower = "follower",
        /// `candidate`: a voter that asks for votes.
        Candidate = "candidate",
        /// `learner`: gets the log and has no vote.
        Learner = "learner",
        /// `stopping`: its process is about to end.
        Stopping = "stopping",
    }
);

/// The direction of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Oldest first.
    Asc,
    /// Newest first.
    Desc,
}

impl Order {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Order::Asc => "asc",
            Order::Desc => "desc",
        }
    }
}

/// How fresh a read is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consistency {
    /// The read sees every send that was acknowledged before it, on any node.
    Linearizable,
    /// The read shows what the asked node has, and needs no quorum.
    Local,
}

impl Consistency {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Consistency::Linearizable => "linearizable",
            Consistency::Local => "local",
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn words_are_read_and_written_and_new_ones_are_kept() {
        for (word, state) in [
            ("\"dead\"", DeliveryState::Dead),
            ("\"resting\"", DeliveryState::Unknown("resting".to_owned())),
        ] {
            let read: DeliveryState = serde_json::from_str(word).unwrap();
            assert_eq!(read, state);
            assert_eq!(serde_json::to_string(&read).unwrap(), word);
        }
        assert_eq!(format!("{:<6}|{}", Permission::Read, Role::Leader), "read  |leader");
        assert_eq!(AttemptEnd::from("unknown"), AttemptEnd::Unsure);
    }
}
