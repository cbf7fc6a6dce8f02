//! `kite status`: prints the numbers of the team in the format of the vendor's command line.

use std::io::Write;

use agentpost::kite::Stats;
use agentpost_cli::terminal::escaped;

use crate::config::Config;
use crate::environment::Environment;
use crate::servers::{kite, shown, ws_urls};

/// Asks for the numbers of the team and prints them.
pub async fn run(environment: &Environment, config: &Config) -> anyhow::Result<()> {
    let stats = kite(environment, config)?.stats().await.map_err(|e| shown(&e))?;
    // This is the configured server; another node may have answered.
    let url = ws_urls(environment, config)?.swap_remove(0);
    std::io::stdout().lock().write_all(text(&stats, &url).as_bytes())?;
    Ok(())
}

fn text(stats: &Stats, url: &str) -> String {
    let word = |value: &Option<String>| value.as_deref().map_or("-".into(), escaped).into_owned();
    let count = |value: Option<u64>| value.unwrap_or(0);
    let permissions = stats.current_key_permissions.as_deref().unwrap_or_default().join(",");
    let permissions = Some(permissions).filter(|permissions| !permissions.is_empty());
    let sources = stats.active_sources_limit.map(|limit| limit.to_string());
    format!(
        "Kite status\n- team_id: {}\n- ws_url: {}\n- plan: {}\n- webhooks_today: {}\n- active_endpoints: {}\n\
         - active_sources_limit: {}\n- active_api_keys: {}\n- current_key_permissions: {}\n",
        word(&stats.team_id),
        escaped(url),
        word(&stats.plan_name),
        count(stats.webhooks_today),
        count(stats.active_endpoints),
        word(&sources),
        count(stats.active_api_keys),
        word(&permissions),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_fields_are_dashes_or_zeros() {
        let expected = "Kite status\n- team_id: -\n- ws_url: ws://a/ws\n- plan: -\n- webhooks_today: 0\n\
                        - active_endpoints: 0\n- active_sources_limit: -\n- active_api_keys: 0\n\
                        - current_key_permissions: -\n";
        assert_eq!(text(&Stats::default(), "ws://a/ws"), expected);
        let stats = Stats {
            current_key_permissions: Some(Vec::new()),
            plan_name: Some("free\n".to_owned()),
            ..Stats::default()
        };
        let text = text(&stats, "ws://a/ws");
        assert!(
            text.contains("- plan: free\\n\n") && text.ends_with("permissions: -\n"),
            "{text}"
        );
    }
}
