//! The mailbox operations of one client: the building blocks of the workloads A, B and I.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use agentpost::api::abbababa::{ListResponse, MarkReadRequest, SendRequest};
use agentpost::http::Request;
use agentpost::retry::RetryPolicy;
use agentpost::{Agent, Agentpost, Error};
use anyhow::Result;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::value::to_raw_value;

use super::load::StopFlag;
use super::message::message;
use crate::cluster::Team;
use crate::record::history::{Fields, Item, Lane, Op, Outcome};
use crate::record::mailbox::{CHANGED, PageView};
use crate::workload::context::ClientContext;

/// Attempts of one send before its client gives up and records the outcome as unknown.
const ATTEMPTS_MAX: usize = 60;
/// Time limit for a response. It is shorter than the time after which a server reports an unknown outcome; otherwise
/// a few stopped nodes would keep all clients busy.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// Sends that a client remembers to repeat.
const REPEATABLE: usize = 64;

/// A client of the mailboxes of a team.
pub struct MailboxClient {
    lane: Lane,
    /// One client per node; all act as the same agent.
    nodes: Vec<Agent>,
    pub random: StdRng,
    stop: StopFlag,
    sent: usize,
    repeatable: VecDeque<EarlierSend>,
}

/// Messages that were acknowledged or have an unknown outcome.
#[derive(Clone)]
struct EarlierSend {
    inbox: String,
    keys: Vec<String>,
    acknowledged: bool,
}

/// The position of a reader in an inbox.
#[derive(Debug, Clone, Default)]
pub struct ReadPosition {
    /// The cursor after the last message that it was shown.
    pub cursor: Option<String>,
    /// Whether more messages may follow.
    pub more: bool,
}

impl MailboxClient {
    /// Creates a client with a name of its own.
    pub fn new(ctx: &ClientContext, team: &Team, stop: StopFlag) -> Result<Self> {
        let lane = ctx.recorder.lane();
        let name = format!("client-{}", lane.number());
        let nodes = ctx.urls.iter().map(|url| {
            let post = Agentpost::builder(url).key(&team.key).retry(RetryPolicy::once());
            Ok(post.answer_timeout(ANSWER_TIMEOUT).build()?.agent(&name))
        });
        let nodes: Result<Vec<Agent>, Error> = nodes.collect();
        Ok(MailboxClient {
            random: StdRng::seed_from_u64(ctx.seed ^ (u64::from(lane.number()) << 32)),
            lane,
            nodes: nodes?,
            stop,
            sent: 0,
            repeatable: VecDeque::new(),
        })
    }

    /// Whether no new operation should begin.
    pub fn over(&self) -> bool {
        self.stop.is_set()
    }

    /// A random node, from 1.
    pub fn any_node(&mut self) -> usize {
        self.random.random_range(1..=self.nodes.len())
    }

    /// Sends `batch` new messages in one request.
    pub async fn send(&mut self, inbox: &str, batch: usize) -> Result<()> {
        let names = (self.sent..self.sent + batch).map(|n| format!("{}-{n}", self.lane.number()));
        let keys: Vec<String> = names.collect();
        self.sent += batch;
        let requests: Result<Vec<SendRequest>> = keys.iter().map(|key| message(inbox, key)).collect();
        self.lane.invoke(None, Op::Send, inbox, keyed(&keys));
        let outcome = match self.decide(&requests?).await {
            SendOutcome::Stored(ids) => Outcome::Ok(stored(&ids, &keys)),
            SendOutcome::Refused(why) | SendOutcome::NotDone(why) => Outcome::Fail(why),
            SendOutcome::Unknown(why) => Outcome::Info(why),
        };
        if !matches!(outcome, Outcome::Fail(_)) {
            self.repeatable.push_back(EarlierSend {
                inbox: inbox.to_owned(),
                keys,
                acknowledged: matches!(outcome, Outcome::Ok(_)),
            });
            if self.repeatable.len() > REPEATABLE {
                self.repeatable.pop_front();
            }
        }
        self.lane.end(outcome);
        Ok(())
    }

    /// Sends earlier messages again, as a client does that missed the response.
    pub async fn repeat(&mut self) -> Result<()> {
        let Some(EarlierSend { inbox, keys, .. }) = self.earlier() else {
            return Ok(());
        };
        let requests: Result<Vec<SendRequest>> = keys.iter().map(|key| message(&inbox, key)).collect();
        self.lane.invoke(None, Op::Send, inbox, keyed(&keys));
        let outcome = self.decide(&requests?).await;
        self.lane.end(again(outcome, &keys));
        Ok(())
    }

    /// Sends another body under a key that was used before. No server may acknowledge it.
    pub async fn misuse(&mut self) -> Result<()> {
        // If the first send has an unknown outcome, this one may be the first that the cluster receives.
        let Some(EarlierSend { inbox, keys, .. }) = self.earlier().filter(|sending| sending.acknowledged) else {
            return Ok(());
        };
        let keys = &keys[..1];
        let mut request = message(&inbox, &keys[0])?;
        request.body = Some(to_raw_value(&BTreeMap::from([
            ("key", keys[0].as_str()),
            ("name", CHANGED),
        ]))?);
        let asked = Fields {
            name: Some(CHANGED.to_owned()),
            ..keyed(keys)
        };
        self.lane.invoke(None, Op::Send, inbox, asked);
        let outcome = self.decide(&[request]).await;
        self.lane.end(again(outcome, keys));
        Ok(())
    }

    fn earlier(&mut self) -> Option<EarlierSend> {
        let count = self.repeatable.len();
        let which = (count > 0).then(|| self.random.random_range(0..count))?;
        self.repeatable.get(which).cloned()
    }

    /// Retries one request through random nodes until all of it is outcome.
    async fn decide(&mut self, requests: &[SendRequest]) -> SendOutcome {
        let mut last = String::new();
        let mut unknown = false;
        for _ in 0..ATTEMPTS_MAX {
            let node = self.any_node();
            match attempt(&self.nodes[node - 1], requests).await {
                Ok(ids) => return SendOutcome::Stored(ids),
                // 429 under overload is the one refusal that a retry can cure.
                Err(Error::Refused(answer)) if answer.status.as_u16() != 429 => {
                    let why = answer.to_string();
                    return if unknown {
                        SendOutcome::Unknown(why)
                    } else {
                        SendOutcome::Refused(why)
                    };
                }
                Err(error) => {
                    unknown |= !matches!(error, Error::Refused(_) | Error::Unavailable { .. });
                    last = error.to_string();
                }
            }
            if self.stop.is_set() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(self.random.random_range(20..200))).await;
        }
        if unknown {
            SendOutcome::Unknown(last)
        } else {
            SendOutcome::NotDone(last)
        }
    }

    /// Reads the next page after a position, which moves if there is a response.
    pub async fn read_on(&mut self, node: usize, inbox: &str, place: &mut ReadPosition, limit: usize, local: bool) {
        let page = self
            .page(node, inbox, PageView::Onward, place.cursor.clone(), limit, local)
            .await;
        if let Some(page) = page {
            place.more = page.messages.len() == limit;
            place.cursor = Some(page.cursor);
        }
    }

    pub async fn read_newest(&mut self, node: usize, inbox: &str, limit: usize, local: bool) {
        self.page(node, inbox, PageView::Newest, None, limit, local).await;
    }

    /// Reads messages that are not marked as read; returns their ids.
    pub async fn read_unread(&mut self, node: usize, inbox: &str, limit: usize) -> Vec<String> {
        let page = self.page(node, inbox, PageView::Unread, None, limit, false).await;
        page.map_or_else(Vec::new, |page| page.messages.into_iter().map(|m| m.id).collect())
    }

    async fn page(
        &mut self,
        node: usize,
        inbox: &str,
        view: PageView,
        from: Option<String>,
        limit: usize,
        local: bool,
    ) -> Option<ListResponse> {
        let asked = Fields {
            name: view.name(local),
            from,
            n: Some(limit as u64),
            ..Fields::default()
        };
        let path = path_of(&asked, view, local);
        self.lane.invoke(Some(node), Op::Read, inbox, asked);
        let answer = list(&self.nodes[node - 1], inbox, path).await;
        let (page, outcome) = match answer {
            Ok(page) => {
                let shown = Fields {
                    cursor: (view == PageView::Onward).then(|| page.cursor.clone()),
                    ..named(page.messages.iter().map(|message| (message.id.as_str(), "")))
                };
                (Some(page), Outcome::Ok(shown))
            }
            Err(error) => (None, failed(&error)),
        };
        self.lane.end(outcome);
        page
    }

    pub async fn mark(&mut self, node: usize, inbox: &str, id: &str) -> Result<()> {
        let path = format!("/v1/messages/{id}");
        let request = Request::patch(path).json(&MarkReadRequest { read: true })?.agent(inbox);
        self.lane.invoke(Some(node), Op::Ack, inbox, Fields::id(id));
        let outcome = match self.nodes[node - 1].request(&request).await {
            Ok(_) => Outcome::Ok(Fields::default()),
            Err(error) => failed(&error),
        };
        self.lane.end(outcome);
        Ok(())
    }
}

/// The outcome of a send.
enum SendOutcome {
    /// All messages are stored, under these ids.
    Stored(Vec<String>),
    /// The cluster refused them.
    Refused(String),
    /// No server accepted them before the client gave up.
    NotDone(String),
    /// The outcome is unknown.
    Unknown(String),
}

/// The outcome of a repeat. If no server accepted it, the first attempt may still have been stored.
fn again(outcome: SendOutcome, keys: &[String]) -> Outcome {
    match outcome {
        SendOutcome::Stored(ids) => Outcome::Ok(stored(&ids, keys)),
        SendOutcome::Refused(why) => Outcome::Fail(why),
        SendOutcome::NotDone(why) | SendOutcome::Unknown(why) => Outcome::Info(why),
    }
}

fn keyed(keys: &[String]) -> Fields {
    named(keys.iter().map(|key| ("", key.as_str())))
}

fn stored(ids: &[String], keys: &[String]) -> Fields {
    named(ids.iter().map(String::as_str).zip(keys.iter().map(String::as_str)))
}

/// One attempt to send all messages; an error if any of them is not stored.
async fn attempt(client: &Agent, requests: &[SendRequest]) -> Result<Vec<String>, Error> {
    if let [request] = requests {
        return Ok(vec![client.draft(request.clone()).await?.id]);
    }
    let drafts = requests.iter().map(|request| client.draft(request.clone()));
    let results = client.send_all(drafts).await?;
    let ids: Result<Vec<String>, _> = results.into_iter().map(|result| result.map(|sent| sent.id)).collect();
    ids.map_err(|_| Error::Invalid("some of the batch was not stored".to_owned()))
}

/// Reads a page of an agent's inbox from one node.
pub async fn list(client: &Agent, inbox: &str, path: String) -> Result<ListResponse, Error> {
    client.call(Request::get(path).agent(inbox)).await
}

fn path_of(asked: &Fields, view: PageView, local: bool) -> String {
    let mut path = format!("/v1/messages?limit={}", asked.n.unwrap_or(1));
    match view {
        PageView::Onward => {}
        PageView::Newest => path.push_str("&order=desc"),
        PageView::Unread => path.push_str("&unreadOnly=true"),
    }
    if local {
        path.push_str("&consistency=local");
    }
    if let Some(cursor) = &asked.from {
        // Cursors are base64url and need no escaping.
        path.push_str("&cursor=");
        path.push_str(cursor);
    }
    path
}

/// The outcome of an operation that is not retried.
fn failed(error: &Error) -> Outcome {
    match error {
        Error::Refused(_) | Error::Unavailable { .. } => Outcome::Fail(error.to_string()),
        _ => Outcome::Info(error.to_string()),
    }
}

fn named<'a>(messages: impl Iterator<Item = (&'a str, &'a str)>) -> Fields {
    let items = messages.map(|(id, key)| Item {
        id: id.to_owned(),
        key: key.to_owned(),
        seq: None,
    });
    Fields::items(items.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeat_that_nobody_took_is_not_refused() {
        let keys = ["k".to_owned()];
        let no = || "no".to_owned();
        assert_eq!(again(SendOutcome::Refused(no()), &keys), Outcome::Fail(no()));
        assert_eq!(again(SendOutcome::NotDone(no()), &keys), Outcome::Info(no()));
    }
}
