//! Teams of the benchmark: each has no limits and a key that is revoked at the end.

use agentpost::Permission;
use agentpost::api::admin::{CreatedKey, LimitsPatch, Team};
use agentpost::operator::Operator;
use anyhow::Context;
use futures::stream::{StreamExt, iter};

use crate::report::Report;

/// Calls in flight at a time.
const CALLS: usize = 32;
/// Teams between two reports of progress.
const PROGRESS: usize = 1_000;

/// Creates a team without limits and a key of it.
pub async fn create(operator: &Operator) -> anyhow::Result<(Team, CreatedKey)> {
    let name = format!("bench-{}", uuid::Uuid::now_v7().simple());
    let unlimited = LimitsPatch {
        daily_sends: Some(0),
        daily_reads: Some(0),
        daily_webhook_registrations: Some(0),
        monthly_events: Some(0),
        overage_price_atomic: None,
    };
    let team = operator.create_team(name).limits(unlimited);
    let team = team.await.context("cannot create a team")?;
    let key = operator.create_key(&team.id, "bench").permission(Permission::Write);
    let key = key.await.context("cannot create a key")?;
    Ok((team, key))
}

/// Creates many of them.
pub async fn create_many(operator: &Operator, count: u64, report: &mut dyn Report) -> anyhow::Result<Vec<CreatedKey>> {
    let mut made = Vec::new();
    let mut calls = iter(0..count).map(|_| create(operator)).buffer_unordered(CALLS);
    while let Some(team) = calls.next().await {
        made.push(team?.1);
        if made.len().is_multiple_of(PROGRESS) {
            report.progress(&format!("  {} of {count} teams", made.len()));
        }
    }
    Ok(made)
}

/// Revokes these keys.
pub async fn revoke(operator: &Operator, keys: &[CreatedKey]) -> anyhow::Result<()> {
    let mut calls = iter(keys)
        .map(|key| operator.revoke_key(&key.id))
        .buffer_unordered(CALLS);
    let mut all = Ok(());
    while let Some(revoked) = calls.next().await {
        all = all.and(revoked);
    }
    all.context("cannot revoke a key of the benchmark")
}
