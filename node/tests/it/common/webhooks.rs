//! A fixture for webhooks: a cluster and a team whose agents have webhooks. It proposes operations instead of calling HTTP.

use agentpost_proto::api::abbababa::DeliveryFailed;
use agentpost_proto::command::{
    BodyKind, DeleteWebhook, Face, Operation, RegisterWebhook, Send, SendReply, Subscribe, WebhookEvent, operation,
    reply,
};
use agentpost_proto::record::{Delivery, DeliveryState};
use agentpost_raft_store::core::kv::Order;
use agentpost_raft_store::core::query;
use agentpost_raft_store::core::query::delivery::{self, DeliveryQuery};

use crate::common::{NodeHandles, TestCluster, TestTeam, eventually, read_state};

/// The sender of all messages.
pub const SENDER: &str = "sender";

pub struct WebhookOffice {
    pub cluster: TestCluster,
    pub team: TestTeam,
}

impl WebhookOffice {
    /// Settings that allow webhooks to loopback over plain HTTP.
    pub const SETTINGS: &'static str = "[webhooks]\nallow_http = true\nallow_networks = [\"127.0.0.0/8\"]\n";

    pub async fn start(nodes: usize) -> Self {
        Self::of(TestCluster::start_with(nodes, Self::SETTINGS).await).await
    }

    pub async fn of(cluster: TestCluster) -> Self {
        let team = cluster.team("a").await;
        WebhookOffice { cluster, team }
    }

    fn any(&self) -> NodeHandles {
        self.cluster.services(self.cluster.running()[0])
    }

    pub async fn propose(&self, services: &NodeHandles, op: operation::Op) -> reply::Reply {
        let operation = Operation {
            principal: Some(self.team.principal()),
            op: Some(op),
        };
        eventually("an answer", async || {
            services.proposer.propose(operation.clone()).await.ok()
        })
        .await
        .reply
        .unwrap()
    }

    pub async fn register(&self, agent: &str, url: &str) {
        let services = self.any();
        let op = RegisterWebhook {
            agent: agent.to_owned(),
            webhook_id: services.ids.random::<16>().to_vec().into(),
            url: url.to_owned(),
            events: vec![WebhookEvent::MessageReceived as i32, WebhookEvent::MessageTopic as i32],
        };
        let reply = self.propose(&services, operation::Op::RegisterWebhook(op)).await;
        assert!(matches!(reply, reply::Reply::Webhook(_)), "{reply:?}");
    }

    pub async fn delete_webhook(&self, agent: &str) {
        let op = operation::Op::DeleteWebhook(DeleteWebhook {
            agent: agent.to_owned(),
        });
        let reply = self.propose(&self.any(), op).await;
        assert!(matches!(reply, reply::Reply::Done(_)), "{reply:?}");
    }

    pub async fn subscribe(&self, agent: &str, topic: &str, url: Option<String>) {
        let services = self.any();
        let op = Subscribe {
            agent: agent.to_owned(),
            topic: topic.to_owned(),
            subscription_id: services.ids.random::<16>().to_vec().into(),
            url,
        };
        let reply = self.propose(&services, operation::Op::Subscribe(op)).await;
        assert!(matches!(reply, reply::Reply::Subscription(_)), "{reply:?}");
    }

    pub async fn send(&self, to: &str, text: &str) -> SendReply {
        self.send_through(self.cluster.running()[0], to, text).await
    }

    pub async fn send_through(&self, node: usize, to: &str, text: &str) -> SendReply {
        self.send_op(node, (to, ""), text).await
    }

    pub async fn publish(&self, topic: &str, text: &str) -> SendReply {
        self.send_op(self.cluster.running()[0], ("", topic), text).await
    }

    async fn send_op(&self, node: usize, (to, topic): (&str, &str), text: &str) -> SendReply {
        let services = self.cluster.services(node);
        let op = Send {
            message_id: services.ids.message_id().to_bytes(),
            face: Face::Abbababa as i32,
            from: SENDER.to_owned(),
            to: to.to_owned(),
            topic: topic.to_owned(),
            r#type: "test".to_owned(),
            body_kind: BodyKind::Text as i32,
            body: text.to_owned().into(),
            ..Send::default()
        };
        match self.propose(&services, operation::Op::Send(op)).await {
            reply::Reply::Send(sent) => sent,
            other => panic!("not sent: {other:?}"),
        }
    }

    /// All deliveries of the team, from a linearizable read.
    pub async fn deliveries(&self) -> Vec<Delivery> {
        let services = self.any();
        let state = read_state(&services).await;
        let query = DeliveryQuery {
            after: None,
            order: Order::Ascending,
            limit: 2_000,
            state: None,
            agent: None,
        };
        delivery::page(&*state, self.team.id, &query).unwrap().deliveries
    }

    /// Waits until there are `n` deliveries and all have ended; returns them.
    pub async fn settled(&self, n: usize) -> Vec<Delivery> {
        let is_open = |d: &Delivery| matches!(d.state(), DeliveryState::Scheduled | DeliveryState::Claimed);
        eventually(&format!("{n} deliveries that are over"), async || {
            let all = self.deliveries().await;
            (all.len() == n && !all.iter().any(is_open)).then_some(all)
        })
        .await
    }

    /// The number of dead-letter notices in the sender's inbox.
    pub async fn notices(&self) -> usize {
        let state = read_state(&self.any()).await;
        let items = query::inbox::after(&*state, self.team.id, SENDER, 0, 1_000).unwrap();
        let is_notice = |item: &&query::inbox::InboxItem| item.message.r#type == DeliveryFailed::TYPE;
        items.iter().filter(is_notice).count()
    }

    /// Waits until no delivery is scheduled, claimed or being closed.
    pub async fn indexes_are_empty(&self) {
        let services = self.any();
        eventually("empty indexes", async || {
            let state = read_state(&services).await;
            let open = delivery::endpoint_heads(&*state).unwrap().len()
                + delivery::claims(&*state).unwrap().len()
                + delivery::closings(&*state).unwrap().len()
                + delivery::fanout_jobs(&*state).unwrap().len();
            (open == 0).then_some(())
        })
        .await;
    }
}

/// The only element.
#[track_caller]
pub fn only<T>(mut all: Vec<T>) -> T {
    assert_eq!(all.len(), 1, "not one");
    all.remove(0)
}
