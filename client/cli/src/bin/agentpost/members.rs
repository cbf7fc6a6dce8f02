//! `agentpost cluster add|promote|remove`: changes of the membership.

use std::time::Duration;

use agentpost::Error;
use agentpost::operator::Operator;
use agentpost_cli::output;
use tokio::time::{Instant, sleep};

/// The pause between two attempts to promote a learner.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// Adds a learner.
pub async fn add(operator: &Operator, id: Option<u64>, peer_addr: String, url: String) -> anyhow::Result<()> {
    let mut member = operator.add_member(peer_addr, url);
    if let Some(id) = id {
        member = member.id(id);
    }
    let added = member.await?;
    output::text(&format!(
        "Node {0} added as a learner\nWhen its daemon runs: agentpost cluster promote {0}\n",
        added.id
    ))
}

/// Makes a learner a voter when it has caught up. It prints to stderr what it waits for.
pub async fn promote(operator: &Operator, id: u64, wait: Duration) -> anyhow::Result<()> {
    let deadline = Instant::now() + wait;
    let mut told = String::new();
    loop {
        let refused = match operator.promote_member(id).await {
            Ok(_) => return output::text(&format!("Node {id} is a voter\n")),
            Err(error) => error,
        };
        if !passes(&refused) || Instant::now() >= deadline {
            return Err(refused.into());
        }
        let why = reason(&refused);
        if why != told {
            eprintln!("Waiting: {why}");
            told = why;
        }
        sleep(ASK_AGAIN).await;
    }
}

/// Removes a node.
pub async fn remove(operator: &Operator, id: u64) -> anyhow::Result<()> {
    operator.remove_member(id).await?;
    output::text(&format!("Node {id} removed\n"))
}

/// Whether the same request may succeed later: the learner lags, another change is in progress, or the leader changes.
pub fn passes(error: &Error) -> bool {
    match error {
        Error::Refused(answer) => answer.status.as_u16() == 409,
        Error::Unavailable { .. } | Error::OutcomeUnknown { .. } => true,
        _ => false,
    }
}

fn reason(error: &Error) -> String {
    let message = error.answer().and_then(|answer| answer.message());
    agentpost_cli::terminal::escaped(&message.unwrap_or_else(|| error.to_string())).to_string()
}
