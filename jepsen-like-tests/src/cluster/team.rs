//! Teams, as an operator creates them.

use agentpost::Client;
use agentpost::api::admin::{CreateKey, CreateTeam, LimitsPatch};
use anyhow::Result;

/// A team with a key that may act as any of its agents.
#[derive(Debug, Clone)]
pub struct Team {
    pub id: String,
    /// An API key with the permission `write`.
    pub key: String,
}

/// Creates a team and a key for it; without limits if `limits` is `None`.
pub async fn create_team(operator: &Client, name: &str, limits: Option<LimitsPatch>) -> Result<Team> {
    let unlimited = LimitsPatch {
        daily_sends: Some(0),
        daily_reads: Some(0),
        monthly_events: Some(0),
        ..LimitsPatch::default()
    };
    let team = CreateTeam {
        name: name.to_owned(),
        limits: Some(limits.unwrap_or(unlimited)),
    };
    let team = operator.create_team(&team).await?;
    let key = CreateKey {
        name: "test".to_owned(),
        permissions: vec!["write".to_owned()],
        agent_id: None,
        scopes: None,
        expires_at: None,
    };
    let key = operator.create_key(&team.id, &key).await?;
    Ok(Team {
        id: team.id,
        key: key.api_key.into(),
    })
}
