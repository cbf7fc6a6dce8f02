//! Teams, as an operator creates them.

use agentpost::api::admin::LimitsPatch;
use agentpost::operator::Operator;
use anyhow::Result;

/// A team with a key that may act as any of its agents.
#[derive(Debug, Clone)]
pub struct Team {
    pub id: String,
    /// An API key with the permission `write`.
    pub key: String,
}

/// Creates a team and a key for it; without limits if `limits` is `None`.
pub async fn create_team(operator: &Operator, name: &str, limits: Option<LimitsPatch>) -> Result<Team> {
    let unlimited = LimitsPatch {
        daily_sends: Some(0),
        daily_reads: Some(0),
        monthly_events: Some(0),
        ..LimitsPatch::default()
    };
    let team = operator.create_team(name).limits(limits.unwrap_or(unlimited)).await?;
    let key = operator.create_key(&team.id, "test").await?;
    Ok(Team {
        id: team.id,
        key: key.api_key.into(),
    })
}
