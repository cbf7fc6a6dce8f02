//! Samples of topics, webhooks, deliveries and leases.

use agentpost_proto::command::operation::Op;
use agentpost_proto::command::reply::Reply as R;
use agentpost_proto::command::{self, AttemptRef, AttemptResult, Operation, Reply};
use agentpost_proto::record;
use prost::Message;

use super::{Samples, a_send, bytes};

fn attempt() -> AttemptRef {
    AttemptRef {
        team_id: bytes("team............"),
        number: 1,
        attempt_no: 2,
    }
}

fn result() -> AttemptResult {
    AttemptResult {
        not_sent: true,
        status: 500,
        error: "status".to_owned(),
        response: bytes("oops"),
        non_retryable: true,
        retry_after_ms: 1,
        started_at_ms: 2,
        took_ms: 3,
    }
}

/// What keys ask for.
pub fn requests() -> Samples {
    let publish = command::Send {
        to: String::new(),
        topic: "news".to_owned(),
        ..a_send()
    };
    let (agent, topic) = (|| "bob".to_owned(), || "news".to_owned());
    let ops = [
        ("op.publish", Op::Send(publish)),
        (
            "op.subscribe",
            Op::Subscribe(command::Subscribe {
                agent: agent(),
                topic: topic(),
                subscription_id: bytes("s"),
                url: Some("u".to_owned()),
            }),
        ),
        (
            "op.subscribe.no_url",
            Op::Subscribe(command::Subscribe {
                url: Some(String::new()),
                ..command::Subscribe::default()
            }),
        ),
        (
            "op.unsubscribe",
            Op::Unsubscribe(command::Unsubscribe {
                agent: agent(),
                topic: topic(),
            }),
        ),
        (
            "op.register_webhook",
            Op::RegisterWebhook(command::RegisterWebhook {
                agent: agent(),
                webhook_id: bytes("w"),
                url: "u".to_owned(),
                events: vec![1, 2],
            }),
        ),
        (
            "op.delete_webhook",
            Op::DeleteWebhook(command::DeleteWebhook { agent: agent() }),
        ),
        (
            "op.rotate_signing_keys",
            Op::RotateSigningKeys(command::RotateSigningKeys {
                team_id: bytes("t"),
                from_generation: 1,
            }),
        ),
        (
            "op.cancel_delivery",
            Op::CancelDelivery(command::CancelDelivery {
                delivery_id: bytes("d"),
                agent: agent(),
                team_id: bytes("t"),
            }),
        ),
        (
            "op.redrive",
            Op::Redrive(command::Redrive {
                delivery_id: bytes("d"),
                agent: agent(),
                team_id: bytes("t"),
            }),
        ),
    ];
    encoded(ops)
}

/// What the cluster does by itself.
pub fn work() -> Samples {
    let outcome = command::AttemptOutcome {
        attempt: Some(attempt()),
        epoch: 3,
        result: Some(result()),
    };
    let ops = [
        (
            "op.claim",
            Op::Claim(command::Claim {
                epoch: 3,
                grants: vec![command::Grant {
                    attempt: Some(attempt()),
                    node: 4,
                }],
            }),
        ),
        (
            "op.outcome",
            Op::Outcome(command::Outcome {
                outcomes: vec![outcome],
            }),
        ),
        (
            "op.takeover",
            Op::Takeover(command::Takeover {
                epoch: 3,
                attempts: vec![attempt()],
            }),
        ),
        (
            "op.fanout_chunk",
            Op::FanoutChunk(command::FanoutChunk {
                epoch: 1,
                team_id: bytes("t"),
                topic: "news".to_owned(),
                seq: 2,
                from_serial: 3,
            }),
        ),
        (
            "op.close_endpoint",
            Op::CloseEndpoint(command::CloseEndpoint {
                epoch: 1,
                team_id: bytes("t"),
                generation: 2,
            }),
        ),
        (
            "op.lease_reads",
            Op::LeaseReads(command::LeaseReads {
                agent: "bob".to_owned(),
                lease_id: bytes("l"),
                node: 1,
                nodes: 3,
            }),
        ),
        (
            "op.return_leases",
            Op::ReturnLeases(command::ReturnLeases {
                leases: vec![command::LeaseReturn {
                    team_id: bytes("t"),
                    day: 1,
                    lease_id: bytes("l"),
                    unused: 2,
                }],
            }),
        ),
    ];
    encoded(ops)
}

fn encoded<const N: usize>(ops: [(&'static str, Op); N]) -> Samples {
    ops.into_iter()
        .map(|(name, op)| {
            let operation = Operation {
                principal: None,
                op: Some(op),
            };
            (name, operation.encode_to_vec())
        })
        .collect()
}

/// What apply answers; a follower passes it on.
pub fn replies() -> Samples {
    let subscription = command::SubscriptionReply {
        subscription_id: bytes("s"),
        url: "u".to_owned(),
        generation: 1,
        created_at_ms: 2,
        updated_at_ms: 3,
        registrations_used: 4,
        registrations_limit: 5,
    };
    let webhook = command::WebhookReply {
        webhook_id: bytes("w"),
        generation: 1,
        created_at_ms: 2,
        registrations_used: 3,
        registrations_limit: 4,
    };
    let lease = command::LeaseReply {
        units: 1,
        day: 2,
        used: 3,
        limit: 4,
    };
    let (finished, stale) = (true, true);
    let replies = [
        ("reply.subscription", R::Subscription(subscription)),
        ("reply.webhook", R::Webhook(webhook)),
        (
            "reply.signing_keys",
            R::SigningKeys(command::SigningKeysReply { generation: 1 }),
        ),
        (
            "reply.redrive",
            R::Redrive(command::RedriveReply {
                delivery_id: bytes("d"),
            }),
        ),
        (
            "reply.attempts",
            R::Attempts(command::AttemptsReply {
                done: vec![true, false],
            }),
        ),
        ("reply.fanout", R::Fanout(command::FanoutReply { finished, stale })),
        ("reply.close", R::Close(command::CloseReply { closed: 1, finished })),
        ("reply.lease", R::Lease(lease)),
    ];
    let encode = |(name, reply)| (name, Reply { reply: Some(reply) }.encode_to_vec());
    replies.into_iter().map(encode).collect()
}

/// Rows of topics and webhooks.
pub fn topics() -> Samples {
    let head = record::TeamHead {
        last_delivery: 5,
        swept_seq: 6,
        topics: 7,
        subscriptions: 8,
        endpoints: 9,
        ..record::TeamHead::default()
    };
    let subscription = record::Subscription {
        id: bytes("s"),
        agent: "bob".to_owned(),
        since_index: 1,
        until_index: 2,
        url: "u".to_owned(),
        created_at_ms: 3,
        updated_at_ms: 4,
    };
    let webhook = record::Webhook {
        id: bytes("w"),
        url: "u".to_owned(),
        events: vec![1, 2],
        created_at_ms: 3,
    };
    let topic = record::Topic {
        rows: 2,
        jobs: 3,
        first_job_seq: 0,
    };
    let job = record::FanoutJob {
        publish_index: 1,
        next_serial: 2,
        last_serial: 3,
    };
    let endpoint = record::Endpoint {
        generation: 1,
        disabled: true,
        users: 2,
        gone_generation: 3,
    };
    let message = record::Message {
        topic: "news".to_owned(),
        ..record::Message::default()
    };
    let receivers = record::Receivers {
        agents: vec!["bob".to_owned()],
    };
    vec![
        ("record.team_head.deliveries", head.encode_to_vec()),
        ("record.message.topic", message.encode_to_vec()),
        ("record.topic", topic.encode_to_vec()),
        ("record.subscription", subscription.encode_to_vec()),
        ("record.receivers", receivers.encode_to_vec()),
        ("record.fanout_job", job.encode_to_vec()),
        ("record.webhook", webhook.encode_to_vec()),
        ("record.endpoint", endpoint.encode_to_vec()),
    ]
}

/// Rows of deliveries, and of leases.
pub fn deliveries() -> Samples {
    let attempt = record::Attempt {
        attempt_no: 1,
        step: 2,
        end: record::AttemptEnd::Failed as i32,
        status: 500,
        error: "status".to_owned(),
        response: bytes("oops"),
        started_at_ms: 3,
        took_ms: 4,
        epoch: 5,
        closed_at_ms: 6,
        node: 7,
    };
    let delivery = record::Delivery {
        id: bytes("d"),
        number: 1,
        message_id: bytes("m"),
        message_seq: 2,
        from: "alice".to_owned(),
        agent: "bob".to_owned(),
        topic: "news".to_owned(),
        url: "u".to_owned(),
        generation: 3,
        subscription_id: bytes("s"),
        state: record::DeliveryState::Dead as i32,
        end: record::DeliveryEnd::Exhausted as i32,
        step: 3,
        attempt_no: 4,
        due_ms: 5,
        claim: Some(record::Claimed {
            epoch: 6,
            ct_ms: 7,
            slot: 0,
            node: 8,
        }),
        closed_failed: 8,
        closed_unknown: 9,
        closed_not_sent: 10,
        closed_delivered: 11,
        attempts: vec![attempt],
        created_at_ms: 12,
        created_ct_ms: 13,
        ended_at_ms: 14,
        ended_ct_ms: 15,
        redrive_no: 16,
        redriven_as: bytes("r"),
        redrive_of: bytes("o"),
        message_released: true,
        expires_at_ms: 0,
    };
    let dead = record::DeadLetter {
        delivery_id: bytes("d"),
        end: record::DeliveryEnd::Gone as i32,
        dead_at_ms: 1,
        notice_id: bytes("n"),
        notice_seq: 2,
    };
    let closing = record::Closing {
        end: record::DeliveryEnd::Disabled as i32,
    };
    let lease = record::Lease {
        agent: "bob".to_owned(),
        node: 1,
        units: 2,
    };
    vec![
        ("record.delivery", delivery.encode_to_vec()),
        ("record.dead_letter", dead.encode_to_vec()),
        ("record.closing", closing.encode_to_vec()),
        (
            "record.endpoint_head",
            record::EndpointHead { due_ms: 1, number: 2 }.encode_to_vec(),
        ),
        ("record.lease", lease.encode_to_vec()),
    ]
}
