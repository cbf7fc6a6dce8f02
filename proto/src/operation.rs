//! The type of the reply to each operation.
//!
//! `apply` answers each operation with one kind of reply, or with a [`Rejection`]. [`Op`] states the pairing once:
//! whoever proposes a `Send` gets a `SendReply`, and no caller has a branch for a reply that cannot come.

use crate::command::operation::Op as AnyOp;
use crate::command::reply::Reply as AnyReply;
use crate::command::{
    AckCursors, AttemptsReply, BeginEpoch, BootstrapAdmin, CancelDelivery, Claim, ClaimLogin, CloseEndpoint,
    CloseReply, CreateKey, CreateTeam, DecideLogin, DeleteWebhook, Done, FanoutChunk, FanoutReply, KeyReply,
    LeaseReads, LeaseReply, LoginReply, MarkRead, Operation, Outcome, Principal, Redrive, RedriveReply, RegisterAgent,
    RegisterWebhook, Rejection, Reply, ReturnLeases, RevokeKey, RotateSigningKeys, Send, SendBatch, SendBatchReply,
    SendReply, SigningKeysReply, StartLogin, Subscribe, SubscriptionReply, Sweep, SweepReply, Takeover, TeamReply,
    Tick, Unsubscribe, UpdateTeam, WebhookReply,
};

/// An operation whose kind, and therefore the kind of its reply, is known at compile time.
pub trait Op: Into<AnyOp> {
    /// The reply of `apply` if it does not reject the operation.
    type Reply: FromReply;
}

/// One kind of reply.
pub trait FromReply: Sized {
    /// Converts a reply to this kind, or returns it unchanged if it is of another kind.
    fn from_reply(reply: AnyReply) -> Result<Self, AnyReply>;
}

/// The reason why a [`Reply`] has no answer of the expected kind.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum NoAnswer {
    /// `apply` refused the operation and stored nothing.
    #[error("{}", .0.message)]
    Rejected(Rejection),
    /// The reply is empty or of another kind. Nodes of one version never send this.
    #[error("unexpected reply type: {0:?}")]
    Unexpected(Option<Box<AnyReply>>),
}

impl Operation {
    /// An operation of a caller. `apply` checks the principal's key again.
    pub fn of(principal: Principal, op: impl Into<AnyOp>) -> Self {
        Operation {
            principal: Some(principal),
            op: Some(op.into()),
        }
    }

    /// An operation of the cluster itself, without a principal.
    pub fn internal(op: impl Into<AnyOp>) -> Self {
        Operation {
            principal: None,
            op: Some(op.into()),
        }
    }
}

impl Reply {
    /// The answer to an operation of kind `O`.
    ///
    /// # Errors
    ///
    /// [`NoAnswer`], if the operation was rejected or the reply is of another kind.
    pub fn answer_to<O: Op>(self) -> Result<O::Reply, NoAnswer> {
        match self.reply {
            Some(AnyReply::Rejection(rejection)) => Err(NoAnswer::Rejected(rejection)),
            Some(reply) => O::Reply::from_reply(reply).map_err(|other| NoAnswer::Unexpected(Some(Box::new(other)))),
            None => Err(NoAnswer::Unexpected(None)),
        }
    }
}

macro_rules! replies {
    ($($variant:ident($reply:ident),)*) => {$(
        impl FromReply for $reply {
            fn from_reply(reply: AnyReply) -> Result<Self, AnyReply> {
                match reply {
                    AnyReply::$variant(reply) => Ok(reply),
                    other => Err(other),
                }
            }
        }
    )*};
}

replies! {
    Done(Done),
    Send(SendReply),
    SendBatch(SendBatchReply),
    Team(TeamReply),
    Key(KeyReply),
    Sweep(SweepReply),
    Subscription(SubscriptionReply),
    Webhook(WebhookReply),
    SigningKeys(SigningKeysReply),
    Redrive(RedriveReply),
    Attempts(AttemptsReply),
    Fanout(FanoutReply),
    Close(CloseReply),
    Lease(LeaseReply),
    Login(LoginReply),
}

macro_rules! operations {
    ($($op:ident => $reply:ident,)*) => {$(
        impl From<$op> for AnyOp {
            fn from(op: $op) -> AnyOp {
                AnyOp::$op(op)
            }
        }

        impl Op for $op {
            type Reply = $reply;
        }
    )*};
}

operations! {
    BeginEpoch => Done,
    Tick => Done,
    BootstrapAdmin => KeyReply,
    CreateTeam => TeamReply,
    UpdateTeam => TeamReply,
    CreateKey => KeyReply,
    RevokeKey => Done,
    RegisterAgent => Done,
    StartLogin => Done,
    DecideLogin => Done,
    ClaimLogin => LoginReply,
    Send => SendReply,
    SendBatch => SendBatchReply,
    MarkRead => Done,
    AckCursors => Done,
    Sweep => SweepReply,
    Subscribe => SubscriptionReply,
    Unsubscribe => Done,
    RegisterWebhook => WebhookReply,
    DeleteWebhook => Done,
    RotateSigningKeys => SigningKeysReply,
    CancelDelivery => Done,
    Redrive => RedriveReply,
    Claim => AttemptsReply,
    Outcome => AttemptsReply,
    Takeover => AttemptsReply,
    FanoutChunk => FanoutReply,
    CloseEndpoint => CloseReply,
    LeaseReads => LeaseReply,
    ReturnLeases => Done,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::ErrorCode;

    #[test]
    fn a_reply_is_the_answer_the_rejection_or_unexpected() {
        let reply = |reply| Reply { reply };
        let sent = SendReply {
            seq: 7,
            ..SendReply::default()
        };
        let answer = reply(Some(AnyReply::Send(sent.clone())));
        assert_eq!(answer.clone().answer_to::<Send>(), Ok(sent.clone()));
        assert_eq!(
            answer.answer_to::<Tick>(),
            Err(NoAnswer::Unexpected(Some(Box::new(AnyReply::Send(sent)))))
        );
        let refusal = Rejection::new(ErrorCode::NotFound, "no such message");
        assert_eq!(
            reply(Some(AnyReply::Rejection(refusal.clone()))).answer_to::<Send>(),
            Err(NoAnswer::Rejected(refusal))
        );
        assert_eq!(reply(None).answer_to::<Send>(), Err(NoAnswer::Unexpected(None)));
    }
}
