//! Sends a text and a JSON object to an agent, then asks what became of the second.
//!
//! ```text
//! cargo run --example send
//! ```

use serde_json::json;

#[tokio::main]
async fn main() -> Result<(), agentpost::Error> {
    // AGENTPOST_URLS and KITE_API_KEY say where and who.
    let post = agentpost::from_env().await?;
    let beta = post.agent("agent-beta");

    beta.send("agent-alpha", "Here are the results you asked for.").await?;

    // The idempotency key makes it safe to run this program again: the message is stored once.
    let sent = beta
        .send("agent-alpha", json!({ "rows": 12, "table": "prices" }))
        .kind("report.ready")
        .thread("prices")
        .idempotency_key("report-2026-11-30")
        .await?;

    let receipt = beta.receipt(&sent.id).await?;
    println!(
        "{} is in {} inbox, read by {}",
        sent.id, receipt.counts.receivers, receipt.counts.read
    );
    Ok(())
}
