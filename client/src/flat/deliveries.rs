//! Deliveries to webhooks: what is under way, what ended how, and another try for what is dead. An agent sees those of
//! the mail that it sent or received; an operator all of a team.

use crate::api::abbababa::{DeliveriesResponse, DeliveryDetail, DeliveryResponse, RedriveResponse};
use crate::http::{Request, segment, with_query};
use crate::retry::Repeat;
use crate::{Client, Error, Order};

/// Which deliveries to list.
#[derive(Debug, Clone, Default)]
pub struct DeliveryQuery {
    /// `scheduled`, `claimed`, `delivered`, `dead` or `cancelled`; all when absent.
    pub state: Option<String>,
    /// The direction; oldest first when absent.
    pub order: Option<Order>,
    /// Where the last page ended.
    pub cursor: Option<String>,
    /// Deliveries at most; the server's default is 50, its maximum 200.
    pub limit: Option<usize>,
}

impl DeliveryQuery {
    fn path(&self, path: &str, team: Option<&str>) -> String {
        let mut pairs = Vec::new();
        for (name, value) in [
            ("team", team),
            ("state", self.state.as_deref()),
            ("order", self.order.map(Order::name)),
            ("cursor", self.cursor.as_deref()),
        ] {
            pairs.extend(value.map(|value| (name, value.to_owned())));
        }
        pairs.extend(self.limit.map(|limit| ("limit", limit.to_string())));
        with_query(path, &pairs)
    }
}

fn of_team(path: &str, team: &str) -> String {
    with_query(path, &[("team", team.to_owned())])
}

impl Client {
    /// A page of the deliveries of the caller's mail.
    pub async fn deliveries(&self, query: &DeliveryQuery) -> Result<DeliveriesResponse, Error> {
        self.call(Request::get(query.path("/v1/deliveries", None))).await
    }

    /// One delivery with its attempts.
    pub async fn delivery(&self, id: &str) -> Result<DeliveryDetail, Error> {
        let reply: DeliveryResponse = self
            .call(Request::get(format!("/v1/deliveries/{}", segment(id))))
            .await?;
        Ok(reply.delivery)
    }

    /// Delivers a dead one again, under the id that comes back; a repeat gets the same id.
    pub async fn redrive(&self, id: &str) -> Result<String, Error> {
        self.redrive_at(format!("/v1/deliveries/{}/redrive", segment(id))).await
    }

    /// Gives up a delivery that has not ended; its sender is not told. Not repeated when its outcome is unknown: the
    /// repeat would find it ended, by whomever.
    pub async fn cancel_delivery(&self, id: &str) -> Result<(), Error> {
        let request = Request::delete(format!("/v1/deliveries/{}", segment(id))).repeat(Repeat::OnlyIfNotDone);
        self.request(&request).await.map(|_| ())
    }

    /// [`Client::deliveries`] of a whole team, for an operator.
    pub async fn team_deliveries(&self, team: &str, query: &DeliveryQuery) -> Result<DeliveriesResponse, Error> {
        self.call(Request::get(query.path("/admin/v1/deliveries", Some(team))))
            .await
    }

    /// [`Client::delivery`] of any agent of a team, for an operator.
    pub async fn team_delivery(&self, team: &str, id: &str) -> Result<DeliveryDetail, Error> {
        let path = of_team(&format!("/admin/v1/deliveries/{}", segment(id)), team);
        let reply: DeliveryResponse = self.call(Request::get(path)).await?;
        Ok(reply.delivery)
    }

    /// [`Client::redrive`] for any agent of a team, for an operator.
    pub async fn redrive_for(&self, team: &str, id: &str) -> Result<String, Error> {
        let path = format!("/admin/v1/deliveries/{}/redrive", segment(id));
        self.redrive_at(of_team(&path, team)).await
    }

    async fn redrive_at(&self, path: String) -> Result<String, Error> {
        let reply: RedriveResponse = self.call(Request::post(path).repeat(Repeat::Safely)).await?;
        Ok(reply.delivery_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_names_only_what_was_asked() {
        assert_eq!(DeliveryQuery::default().path("/v1/deliveries", None), "/v1/deliveries");
        let query = DeliveryQuery {
            state: Some("dead".to_owned()),
            order: Some(Order::Desc),
            cursor: Some("a-_".to_owned()),
            limit: Some(7),
        };
        assert_eq!(
            query.path("/admin/v1/deliveries", Some("team_1")),
            "/admin/v1/deliveries?team=team_1&state=dead&order=desc&cursor=a-_&limit=7"
        );
    }
}
