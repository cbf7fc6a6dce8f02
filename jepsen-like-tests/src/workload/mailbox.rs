//! What a client does with mailboxes, one thing at a time: the parts that the workloads A, B and I are made of.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use agentpost::api::abbababa::{ListResponse, MarkReadRequest, SendRequest};
use agentpost::client::Request;
use agentpost::retry::RetryPolicy;
use agentpost::{Client, Error};
use anyhow::Result;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::value::to_raw_value;

use super::Stop;
use super::send::message;
use crate::checker::mail::View;
use crate::history::{Fields, Item, Lane, Op, Outcome};
use crate::world::{Team, World};

/// How the inboxes of these workloads begin: checkers keep what happens to them in a small form.
pub const PREFIX: &str = "mail-";
/// A send whose body is another one than that of the first send under its key.
pub const CHANGED: &str = "changed";
/// Attempts of one send before its client gives up and calls it unknown.
const ATTEMPTS_MAX: usize = 60;
/// What a node is given to answer: less than it takes to say that an outcome is unknown, or a few nodes that stand still
/// would keep all clients busy.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// Sends that a client may repeat later.
const REPEATABLE: usize = 64;

/// What the name of a read says: which messages, and whether the node may answer by itself.
pub fn page_kind(name: Option<&str>) -> Option<(View, bool)> {
    Some(match name {
        None => (View::Onward, false),
        Some("local") => (View::Onward, true),
        Some("newest") => (View::Newest, false),
        Some("newest local") => (View::Newest, true),
        Some("unread") => (View::Unread, false),
        Some(_) => return None,
    })
}

fn name_of(view: View, local: bool) -> Option<String> {
    let name = match (view, local) {
        (View::Onward, false) => return None,
        (View::Onward, true) => "local",
        (View::Newest, false) => "newest",
        (View::Newest, true) => "newest local",
        (View::Unread, _) => "unread",
    };
    Some(name.to_owned())
}

/// A client at work.
pub struct Actor {
    /// Where it writes down what it does.
    lane: Lane,
    /// One client for each node; they share a name.
    nodes: Vec<Client>,
    /// Where its choices come from.
    pub random: StdRng,
    stop: Stop,
    sent: usize,
    repeatable: VecDeque<Sending>,
}

/// Messages that may be there.
#[derive(Clone)]
struct Sending {
    inbox: String,
    keys: Vec<String>,
    acknowledged: bool,
}

/// Where a reader stands in an inbox.
#[derive(Debug, Clone, Default)]
pub struct Place {
    /// Behind the last message that it was shown.
    pub cursor: Option<String>,
    /// Whether there may be more.
    pub more: bool,
}

impl Actor {
    /// A client with a name of its own, of all nodes.
    pub fn new(world: &World, team: &Team, stop: Stop) -> Result<Self> {
        let lane = world.recorder.lane();
        let name = format!("client-{}", lane.number());
        let nodes = world.urls.iter().map(|url| {
            let client = Client::builder(url).api_key(&team.key).agent(&name);
            client.retry(RetryPolicy::once()).answer_timeout(ANSWER_TIMEOUT).build()
        });
        let nodes: Result<Vec<Client>, Error> = nodes.collect();
        Ok(Actor {
            random: StdRng::seed_from_u64(world.seed ^ (u64::from(lane.number()) << 32)),
            lane,
            nodes: nodes?,
            stop,
            sent: 0,
            repeatable: VecDeque::new(),
        })
    }

    /// Whether to begin nothing new.
    pub fn over(&self) -> bool {
        self.stop.is_set()
    }

    /// Any node, from 1.
    pub fn any_node(&mut self) -> usize {
        self.random.random_range(1..=self.nodes.len())
    }

    /// Sends so many new messages in one request.
    pub async fn send(&mut self, inbox: &str, batch: usize) -> Result<()> {
        let names = (self.sent..self.sent + batch).map(|n| format!("{}-{n}", self.lane.number()));
        let keys: Vec<String> = names.collect();
        self.sent += batch;
        let requests: Result<Vec<SendRequest>> = keys.iter().map(|key| message(inbox, key)).collect();
        self.lane.invoke(None, Op::Send, inbox, keyed(&keys));
        let outcome = match self.decide(&requests?).await {
            Decided::Stored(ids) => Outcome::Ok(stored(&ids, &keys)),
            Decided::Refused(why) | Decided::NotDone(why) => Outcome::Fail(why),
            Decided::Unknown(why) => Outcome::Info(why),
        };
        if !matches!(outcome, Outcome::Fail(_)) {
            self.repeatable.push_back(Sending {
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

    /// Sends again what it sent before, as a client does that never saw the answer.
    pub async fn repeat(&mut self) -> Result<()> {
        let Some(Sending { inbox, keys, .. }) = self.earlier() else {
            return Ok(());
        };
        let requests: Result<Vec<SendRequest>> = keys.iter().map(|key| message(&inbox, key)).collect();
        self.lane.invoke(None, Op::Send, inbox, keyed(&keys));
        let decided = self.decide(&requests?).await;
        self.lane.end(again(decided, &keys));
        Ok(())
    }

    /// Sends something else under a key that it used before. Nobody may answer that with a message.
    pub async fn misuse(&mut self) -> Result<()> {
        // Of what is unknown, this may be the first that the cluster hears.
        let Some(Sending { inbox, keys, .. }) = self.earlier().filter(|sending| sending.acknowledged) else {
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
        let decided = self.decide(&[request]).await;
        self.lane.end(again(decided, keys));
        Ok(())
    }

    fn earlier(&mut self) -> Option<Sending> {
        let count = self.repeatable.len();
        let which = (count > 0).then(|| self.random.random_range(0..count))?;
        self.repeatable.get(which).cloned()
    }

    /// One request, repeated through other nodes until somebody decides all of it.
    async fn decide(&mut self, requests: &[SendRequest]) -> Decided {
        let mut last = String::new();
        let mut unknown = false;
        for _ in 0..ATTEMPTS_MAX {
            let node = self.any_node();
            match attempt(&self.nodes[node - 1], requests).await {
                Ok(ids) => return Decided::Stored(ids),
                // 429 under overload is the one refusal that a repeat can cure.
                Err(Error::Refused(answer)) if answer.status.as_u16() != 429 => {
                    let why = answer.to_string();
                    return if unknown {
                        Decided::Unknown(why)
                    } else {
                        Decided::Refused(why)
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
            Decided::Unknown(last)
        } else {
            Decided::NotDone(last)
        }
    }

    /// Reads on from a place, which moves if there is an answer.
    pub async fn read_on(&mut self, node: usize, inbox: &str, place: &mut Place, limit: usize, local: bool) {
        let page = self
            .page(node, inbox, View::Onward, place.cursor.clone(), limit, local)
            .await;
        if let Some(page) = page {
            place.more = page.messages.len() == limit;
            place.cursor = Some(page.cursor);
        }
    }

    /// Reads the newest messages.
    pub async fn read_newest(&mut self, node: usize, inbox: &str, limit: usize, local: bool) {
        self.page(node, inbox, View::Newest, None, limit, local).await;
    }

    /// Reads what nobody marked; returns the ids.
    pub async fn read_unread(&mut self, node: usize, inbox: &str, limit: usize) -> Vec<String> {
        let page = self.page(node, inbox, View::Unread, None, limit, false).await;
        page.map_or_else(Vec::new, |page| page.messages.into_iter().map(|m| m.id).collect())
    }

    async fn page(
        &mut self,
        node: usize,
        inbox: &str,
        view: View,
        from: Option<String>,
        limit: usize,
        local: bool,
    ) -> Option<ListResponse> {
        let asked = Fields {
            name: name_of(view, local),
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
                    cursor: (view == View::Onward).then(|| page.cursor.clone()),
                    ..named(page.messages.iter().map(|message| (message.id.as_str(), "")))
                };
                (Some(page), Outcome::Ok(shown))
            }
            Err(error) => (None, failed(&error)),
        };
        self.lane.end(outcome);
        page
    }

    /// Marks a message as read.
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

/// What became of a request.
enum Decided {
    /// All of it is there, under these ids.
    Stored(Vec<String>),
    /// The cluster does not take it.
    Refused(String),
    /// Nobody took it in all the time.
    NotDone(String),
    /// Somebody may have.
    Unknown(String),
}

/// How a repeat ended. That nobody took it says nothing about the message.
fn again(decided: Decided, keys: &[String]) -> Outcome {
    match decided {
        Decided::Stored(ids) => Outcome::Ok(stored(&ids, keys)),
        Decided::Refused(why) => Outcome::Fail(why),
        Decided::NotDone(why) | Decided::Unknown(why) => Outcome::Info(why),
    }
}

fn keyed(keys: &[String]) -> Fields {
    named(keys.iter().map(|key| ("", key.as_str())))
}

fn stored(ids: &[String], keys: &[String]) -> Fields {
    named(ids.iter().map(String::as_str).zip(keys.iter().map(String::as_str)))
}

/// One attempt at all messages; an error if any of them is not stored.
async fn attempt(client: &Client, requests: &[SendRequest]) -> Result<Vec<String>, Error> {
    if let [request] = requests {
        return Ok(vec![client.send(request.clone()).await?.message_id]);
    }
    let reply = client.send_batch(requests.to_vec()).await?;
    let ids: Option<Vec<String>> = reply.results.into_iter().map(|result| result.message_id).collect();
    ids.ok_or_else(|| Error::Invalid("some of the batch was not stored".to_owned()))
}

/// A page of an agent's inbox, as one node has it.
pub async fn list(client: &Client, inbox: &str, path: String) -> Result<ListResponse, Error> {
    let answer = client.request(&Request::get(path).agent(inbox)).await?;
    serde_json::from_str(&answer.body).map_err(|error| Error::Malformed(error.to_string()))
}

fn path_of(asked: &Fields, view: View, local: bool) -> String {
    let mut path = format!("/v1/messages?limit={}", asked.n.unwrap_or(1));
    match view {
        View::Onward => {}
        View::Newest => path.push_str("&order=desc"),
        View::Unread => path.push_str("&unreadOnly=true"),
    }
    if local {
        path.push_str("&consistency=local");
    }
    if let Some(cursor) = &asked.from {
        // Cursors need no escaping: base64url.
        path.push_str("&cursor=");
        path.push_str(cursor);
    }
    path
}

/// How an operation ended that was tried once.
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
    fn a_read_says_what_it_was() {
        for kind in [
            (View::Onward, false),
            (View::Onward, true),
            (View::Newest, false),
            (View::Newest, true),
            (View::Unread, false),
        ] {
            assert_eq!(page_kind(name_of(kind.0, kind.1).as_deref()), Some(kind));
        }
        assert_eq!(page_kind(Some("else")), None);
    }

    #[test]
    fn a_repeat_that_nobody_took_is_not_refused() {
        let keys = ["k".to_owned()];
        let no = || "no".to_owned();
        assert_eq!(again(Decided::Refused(no()), &keys), Outcome::Fail(no()));
        assert_eq!(again(Decided::NotDone(no()), &keys), Outcome::Info(no()));
    }
}
