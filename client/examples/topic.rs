//! Subscribes an agent to a topic, publishes to it as another agent, and reads what came.
//!
//! ```text
//! cargo run --example topic
//! ```

use serde::Deserialize;
use serde_json::json;

#[derive(Deserialize)]
struct Price {
    usdc: f64,
}

#[tokio::main]
async fn main() -> Result<(), agentpost::Error> {
    let post = agentpost::from_env().await?;
    let (reader, publisher) = (post.agent("reader"), post.agent("publisher"));

    reader.subscribe("market.updates").await?;
    for usdc in [4.0, 4.25] {
        publisher
            .publish("market.updates", json!({ "usdc": usdc }))
            .kind("price.change")
            .await?;
    }

    for mail in reader.inbox().unread().topic("market.updates").await?.mail {
        let price: Price = mail.json()?;
        println!("{} from {}: {}", mail.kind, mail.from, price.usdc);
        mail.ack().await?;
    }
    Ok(())
}
