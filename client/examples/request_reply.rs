//! Sends a question to the agent of the example `worker` and waits for its answer.
//!
//! ```text
//! cargo run --example request_reply
//! ```

use std::time::Duration;

use agentpost::TryStreamExt;
use serde_json::json;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let post = agentpost::from_env().await?;
    let asker = post.agent("asker");
    let mut mail = asker.listen().await?;

    let question = asker.send("worker", json!({ "numbers": [20, 22] })).await?;
    let answer = async {
        while let Some(m) = mail.try_next().await? {
            m.ack().await?;
            if m.reply_to.as_deref() == Some(question.id.as_str()) {
                return Ok(Some(m));
            }
        }
        Ok::<_, agentpost::Error>(None)
    };
    let answer = tokio::time::timeout(Duration::from_secs(60), answer).await??;
    println!("{}", answer.ok_or("the listener ended")?.text());
    Ok(())
}
