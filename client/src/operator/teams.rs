//! Teams and their limits.

use crate::Error;
use crate::api::admin::{self, LimitsPatch, Team, Teams};
use crate::call::awaitable;
use crate::http::{Request, segment};
use crate::operator::Operator;

const PATH: &str = "/admin/v1/teams";

/// A team to be created. `.await` does it. Limits that are not set have the server's defaults.
///
/// # Errors
/// [`Error::Refused`] with 409 if the name is taken; [`Error::OutcomeUnknown`] is not repeated: [`Operator::teams`] tells.
#[derive(Clone)]
#[must_use = "the team is created when it is awaited"]
pub struct CreateTeam {
    operator: Operator,
    name: String,
    limits: LimitsPatch,
}

/// A change of a team. `.await` does it and returns the team as it is then. Whatever is not named stays.
///
/// # Errors
/// [`Error::Refused`] with 404 if there is no such team.
#[derive(Clone)]
#[must_use = "the team is changed when it is awaited"]
pub struct UpdateTeam {
    operator: Operator,
    id: String,
    limits: LimitsPatch,
    strict_recipients: Option<bool>,
}

impl Operator {
    /// A new team under a name that no other team of the cluster has.
    pub fn create_team(&self, name: impl Into<String>) -> CreateTeam {
        CreateTeam {
            operator: self.clone(),
            name: name.into(),
            limits: LimitsPatch::default(),
        }
    }

    /// All teams, by id.
    ///
    /// # Errors
    /// See [`crate::http::Http::call`].
    pub async fn teams(&self) -> Result<Vec<Team>, Error> {
        let reply: Teams = self.post.http().call(Request::get(PATH)).await?;
        Ok(reply.teams)
    }

    /// Changes the limits or settings of a team, by its id.
    pub fn update_team(&self, id: impl Into<String>) -> UpdateTeam {
        UpdateTeam {
            operator: self.clone(),
            id: id.into(),
            limits: LimitsPatch::default(),
            strict_recipients: None,
        }
    }
}

/// The setters of limits, for both builders.
macro_rules! limits {
    () => {
        /// Messages that each agent may send in a day (UTC); 0 = unlimited.
        pub fn daily_sends(mut self, sends: u64) -> Self {
            self.limits.daily_sends = Some(sends);
            self
        }

        /// Pages that each agent may read of its inbox in a day (UTC); 0 = unlimited.
        pub fn daily_reads(mut self, reads: u64) -> Self {
            self.limits.daily_reads = Some(reads);
            self
        }

        /// Webhooks and URLs of subscriptions that each agent may register in a day (UTC); 0 = unlimited.
        pub fn daily_webhook_registrations(mut self, registrations: u64) -> Self {
            self.limits.daily_webhook_registrations = Some(registrations);
            self
        }

        /// Messages that the team may send in a month (UTC); 0 = unlimited.
        pub fn monthly_events(mut self, events: u64) -> Self {
            self.limits.monthly_events = Some(events);
            self
        }

        /// The price of each message over the monthly limit, in atomic units; `None` refuses such messages.
        pub fn overage_price_atomic(mut self, price: Option<u64>) -> Self {
            self.limits.overage_price_atomic = Some(price);
            self
        }

        /// All limits at once, in the place of those set before.
        pub fn limits(mut self, limits: LimitsPatch) -> Self {
            self.limits = limits;
            self
        }
    };
}

impl CreateTeam {
    limits!();

    async fn run(self) -> Result<Team, Error> {
        let body = admin::CreateTeam {
            name: self.name,
            limits: some(self.limits),
        };
        self.operator.post.http().call(Request::post(PATH).json(&body)?).await
    }
}

awaitable!(CreateTeam => Team);

impl UpdateTeam {
    limits!();

    /// Whether mail to an agent that nobody registered is refused with 404.
    pub fn strict_recipients(mut self, strict: bool) -> Self {
        self.strict_recipients = Some(strict);
        self
    }

    async fn run(self) -> Result<Team, Error> {
        let body = admin::UpdateTeam {
            limits: some(self.limits),
            strict_recipients: self.strict_recipients,
        };
        let request = Request::patch(format!("{PATH}/{}", segment(&self.id))).json(&body)?;
        self.operator.post.http().call(request).await
    }
}

awaitable!(UpdateTeam => Team);

fn some(limits: LimitsPatch) -> Option<LimitsPatch> {
    (limits != LimitsPatch::default()).then_some(limits)
}
