//! Takes jobs from its inbox and answers each in its thread, until Ctrl-C.
//!
//! ```text
//! cargo run --example worker
//! ```

use std::pin::pin;

use agentpost::TryStreamExt;
use serde::Deserialize;
use serde_json::json;

#[derive(Deserialize)]
struct Job {
    numbers: Vec<i64>,
}

#[tokio::main]
async fn main() -> Result<(), agentpost::Error> {
    let post = agentpost::from_env().await?;
    let mut jobs = post.agent("worker").listen().await?;
    // One future for all turns: it keeps a Ctrl-C that comes while a job is in work.
    let mut stop = pin!(tokio::signal::ctrl_c());
    loop {
        let job = tokio::select! {
            job = jobs.try_next() => job?,
            _ = &mut stop => break,
        };
        let Some(job) = job else { break };
        let answer = match job.json::<Job>() {
            Ok(Job { numbers }) => json!({ "sum": numbers.iter().sum::<i64>() }),
            Err(error) => json!({ "error": error.to_string() }),
        };
        // A worker that dies between the answer and the acknowledgement gets the job again. The same answer is then stored
        // once.
        job.reply(answer).idempotency_key(format!("done {}", job.id)).await?;
        job.ack().await?;
    }
    jobs.close().await;
    Ok(())
}
