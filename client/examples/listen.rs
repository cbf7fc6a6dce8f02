//! Prints the mail of an agent as it arrives, until it is stopped.
//!
//! ```text
//! cargo run --example listen
//! ```

use agentpost::TryStreamExt;

#[tokio::main]
async fn main() -> Result<(), agentpost::Error> {
    let post = agentpost::from_env().await?;

    // The stream goes on at another node when one fails, and begins where the last acknowledgement was.
    let mut mail = post.agent("agent-alpha").listen().await?;
    while let Some(m) = mail.try_next().await? {
        println!("{}: {}", m.from, m.text());
        m.ack().await?;
    }
    Ok(())
}
