//! Reads an inbox page by page and waits for more, until it is stopped.
//!
//! ```text
//! cargo run --example long_poll
//! ```

use std::time::Duration;

#[tokio::main]
async fn main() -> Result<(), agentpost::Error> {
    let post = agentpost::from_env().await?;
    let alpha = post.agent("agent-alpha");
    loop {
        // Returns as soon as there is unread mail, or empty after 30 seconds.
        let page = alpha.inbox().unread().wait(Duration::from_secs(30)).await?;
        for mail in page.mail {
            println!("{} {}: {}", mail.created_at, mail.from, mail.text());
            // Marks it read, so the next page does not show it again.
            mail.ack().await?;
        }
    }
}
