//! Collects the final state of webhook deliveries from the cluster.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Write as _};

use agentpost::api::abbababa::{DeliveryDetail, DeliveryFailed, DeliveryResponse};
use agentpost::http::Request;
use agentpost::operator::Operator;
use agentpost::{Agentpost, Consistency, Delivery, DeliveryState, Error};
use agentpost_testkit::receiver::Call;
use anyhow::{Context as _, Result};
use futures::stream::{StreamExt as _, TryStreamExt as _};

use crate::cluster::Team;
use crate::record::deliveries::{DELIVERIES, DeliveryRecord, Notice, ReceivedCall};
use crate::workload::context::ClientContext;

/// Requests that are made concurrently.
const QUESTIONS: usize = 16;

/// Reads the headers of a call.
pub fn received_call(call: &Call, at_us: u64) -> Result<ReceivedCall> {
    let header = |name: &str| call.header(name).with_context(|| format!("a call without {name}"));
    let id = header("idempotency-key")?;
    Ok(ReceivedCall {
        delivery: id.to_owned(),
        one_id: header("webhook-id")? == id && header("upstash-message-id")? == id,
        attempt: header("x-attempt")?.parse()?,
        step: header("x-retry-step")?.parse()?,
        epoch: header("x-dispatch-epoch")?.parse()?,
        redelivery: call.header("x-redelivery") == Some("possible"),
        path: call.path.clone(),
        at_us,
    })
}

/// Records the final deliveries, dead letters and notices of a team, and `more`.
pub async fn record_final_state(ctx: &ClientContext, team: &Team, more: Vec<DeliveryRecord>) -> Result<()> {
    let operator = ctx.operator()?;
    let path = ctx.recorder.dir().join(DELIVERIES);
    let file = File::options().create(true).append(true).open(&path);
    let mut file = BufWriter::new(file.with_context(|| format!("cannot open {}", path.display()))?);
    let mut write = |record: &DeliveryRecord| -> Result<()> {
        serde_json::to_writer(&mut file, record)?;
        Ok(file.write_all(b"\n")?)
    };
    let all = rows(&operator, team, None).await?.into_iter();
    let details = all.map(|row| detail(&operator, team, row.id));
    let mut details = futures::stream::iter(details).buffered(QUESTIONS);
    let mut senders = BTreeSet::new();
    while let Some(delivery) = details.try_next().await? {
        senders.insert(delivery.from_agent_id.clone());
        write(&DeliveryRecord::Delivery(Box::new(delivery)))?;
    }
    for row in rows(&operator, team, Some(DeliveryState::Dead)).await? {
        write(&DeliveryRecord::DeadLetter(row.id))?;
    }
    for sender in &senders {
        for notice in notices(ctx, team, sender).await? {
            write(&DeliveryRecord::Notice(notice))?;
        }
    }
    more.iter().try_for_each(&mut write)?;
    Ok(file.flush()?)
}

/// One delivery with its attempts, as it is on the wire.
async fn detail(operator: &Operator, team: &Team, id: String) -> Result<DeliveryDetail, Error> {
    let request = Request::get(format!("/admin/v1/deliveries/{id}")).query("team", &team.id);
    let reply: DeliveryResponse = operator.post().http().call(request).await?;
    Ok(reply.delivery)
}

/// Lists a team's deliveries, optionally in one state, in the order of their creation. Each page is consistent.
pub async fn rows(operator: &Operator, team: &Team, state: Option<DeliveryState>) -> Result<Vec<Delivery<u32>>> {
    let mut query = operator.deliveries(&team.id).limit(200);
    if let Some(state) = state {
        query = query.state(state);
    }
    let mut rows = Vec::new();
    let mut cursor: Option<String> = None;
    loop {
        let page = match &cursor {
            Some(cursor) => query.clone().cursor(cursor).await?,
            None => query.clone().await?,
        };
        rows.extend(page.deliveries);
        // A page that skipped many rows may be empty without being the last one.
        if cursor.replace(page.cursor.clone()) == Some(page.cursor) {
            return Ok(rows);
        }
    }
}

/// Whether no delivery of a team is open.
pub async fn all_over(operator: &Operator, team: &Team) -> Result<bool> {
    // `scheduled` is asked twice, so that a delivery is not missed that changes its state between the questions.
    for state in [
        DeliveryState::Scheduled,
        DeliveryState::Claimed,
        DeliveryState::Scheduled,
    ] {
        if !rows(operator, team, Some(state)).await?.is_empty() {
            return Ok(false);
        }
    }
    Ok(true)
}

async fn notices(ctx: &ClientContext, team: &Team, sender: &str) -> Result<Vec<Notice>> {
    let client = Agentpost::builder(ctx.urls.join(" "))
        .key(&team.key)
        .build()?
        .agent(sender);
    let mut query = client.inbox().limit(200).consistency(Consistency::Linearizable);
    let mut notices = Vec::new();
    loop {
        let page = query.clone().await?;
        for mail in page.mail.iter().filter(|mail| mail.kind == DeliveryFailed::TYPE) {
            let body: DeliveryFailed = mail.json()?;
            notices.push(Notice {
                to: sender.to_owned(),
                delivery: body.delivery_id,
                attempts: body.attempts,
            });
        }
        if page.mail.is_empty() {
            return Ok(notices);
        }
        query = query.cursor(page.cursor);
    }
}
