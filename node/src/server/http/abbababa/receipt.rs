//! `GET /messages/:id/receipt`: the deliveries and receivers of a message, for its sender.

use agentpost_proto::api::abbababa::{Receipt, ReceiptCounts, ReceiptDelivery, ReceiptReader, ReceiptResponse};
use agentpost_proto::command::Permission;
use agentpost_proto::id::{MessageId, TeamId};
use agentpost_proto::limits;
use agentpost_proto::record::Message;
use agentpost_proto::time::rfc3339;
use agentpost_raft_store::core::kv::Kv;
use agentpost_raft_store::core::query::{self, receipt::Readers};
use axum::extract::{Request, State};
use axum::response::Response;

use super::deliveries::Viewer;
use super::{Id, message_id, no_such_message};
use crate::server::error::{Result, json_of};
use crate::server::http::app_state::App;
use crate::server::http::deliveries::{Sight, id_text};
use crate::server::http::input::Consistency;

/// The receipt of one message.
pub async fn get(State(app): App, id: Id, request: Request) -> Result<Response> {
    let (parts, _) = request.into_parts();
    let consistency = Consistency::of_uri(&parts.uri)?;
    let reading = app.reader(&parts.headers, consistency).await?;
    reading.caller.require(Permission::Read)?;
    let viewer = Viewer::of(&reading.caller, &parts.headers)?;
    let (team, id) = (reading.caller.team, message_id(id)?);
    let wall_ms = app.services.wall_time.now_ms();
    let read = reading.read(move |kv| {
        let message = query::inbox::message(&kv, team, id)?
            .filter(|message| viewer.is_admin() || viewer.is(&message.from))
            .filter(|message| !query::inbox::has_expired(message.expires_at_ms, wall_ms))
            .ok_or_else(no_such_message)?;
        // All parts are read from one state, because a fan-out may continue meanwhile.
        receipt(&*kv.frozen(), team, id, &message, &viewer)
    });
    let receipt = read.await?;
    json_of(&ReceiptResponse {
        success: true,
        data: Some(receipt.clone()),
        receipt,
    })
}

fn receipt(kv: &dyn Kv, team: TeamId, id: MessageId, message: &Message, viewer: &Viewer) -> Result<Receipt> {
    let pending = query::topic::fanout_pending(kv, team, &message.topic, message.seq)?;
    let Readers { receivers, first } = query::receipt::readers(kv, team, message, limits::PAGE_EXAMINED_MAX)?;
    let counts = ReceiptCounts {
        receivers,
        read: first.iter().filter(|(_, read_at_ms)| *read_at_ms != 0).count() as u64,
    };
    let read = first.into_iter().take(limits::PAGE_MAX);
    Ok(Receipt {
        message_id: id.abbababa(),
        to_agent_id: Some(message.to.clone()).filter(|to| !to.is_empty()),
        topic: Some(message.topic.clone()).filter(|topic| !topic.is_empty()),
        accepted: true,
        accepted_at: rfc3339(message.created_at_ms),
        stored: true,
        fanout: if pending { "pending" } else { "complete" }.to_owned(),
        delivered: delivered(kv, team, message, viewer)?,
        read: read
            .map(|(agent_id, read_at_ms)| ReceiptReader {
                agent_id,
                read_at: (read_at_ms != 0).then(|| rfc3339(read_at_ms)),
            })
            .collect(),
        counts,
    })
}

fn delivered(kv: &dyn Kv, team: TeamId, message: &Message, viewer: &Viewer) -> Result<Vec<ReceiptDelivery>> {
    let mut shown = Vec::new();
    for delivery in query::delivery::of_message(kv, team, message.seq, limits::PAGE_MAX)? {
        let everything = viewer.sight(&delivery) == Some(Sight::Everything);
        shown.push(ReceiptDelivery {
            id: id_text(&delivery.id)?.unwrap_or_default(),
            to_agent_id: delivery.agent.clone(),
            state: delivery.state().name().to_owned(),
            attempts: delivery.attempt_no,
            url: everything.then_some(delivery.url),
        });
    }
    Ok(shown)
}
