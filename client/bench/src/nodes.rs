//! The nodes that get the load.

use agentpost::Agentpost;
use agentpost::http::Http;
use agentpost::operator::Operator;
use agentpost::retry::RetryPolicy;
use anyhow::{Context, bail};

use crate::args::Target;

/// One node.
pub struct Node {
    pub id: u64,
    pub base: String,
    /// `host:port`.
    pub address: String,
}

/// The nodes in the order of their ids, and the leader at the time of the question.
pub struct Nodes {
    pub all: Vec<Node>,
    leader: usize,
}

impl Nodes {
    /// Asks the cluster for its nodes. The URL that the caller gave for a node wins over the one in the answer.
    pub async fn discover(operator: &Operator, given: &[String]) -> anyhow::Result<Self> {
        let cluster = operator.cluster().await.context("cannot ask for the nodes")?;
        let Some(leader) = cluster.leader else {
            bail!("the cluster has no leader")
        };
        let mut all = Vec::new();
        for node in cluster.nodes.iter().filter(|node| node.role.is_some()) {
            let same = |base: &&String| address_of(base).ok() == address_of(&node.url).ok();
            let base = given.iter().find(same).unwrap_or(&node.url).clone();
            all.push(Node {
                id: node.id,
                address: address_of(&base)?,
                base,
            });
        }
        let Some(leader) = all.iter().position(|node| node.id == leader) else {
            bail!("the leader is not reachable")
        };
        Ok(Nodes { all, leader })
    }

    pub fn leader(&self) -> &Node {
        &self.all[self.leader]
    }

    /// The first node that does not lead.
    pub fn follower(&self) -> anyhow::Result<&Node> {
        let follower = self.all.iter().find(|node| node.id != self.leader().id);
        follower.context("the cluster has no follower")
    }

    /// The addresses that get the load; the lanes take them in turn.
    pub fn addresses(&self, target: Target) -> anyhow::Result<Vec<String>> {
        Ok(match target {
            Target::Any => self.all.iter().map(|node| node.address.clone()).collect(),
            Target::Leader => vec![self.leader().address.clone()],
            Target::Follower => vec![self.follower()?.address.clone()],
        })
    }

    /// A client for each node, which asks no other node.
    pub fn clients(&self) -> anyhow::Result<Vec<(u64, Http)>> {
        let client = |node: &Node| {
            let post = Agentpost::builder(&node.base).retry(RetryPolicy::once());
            Ok((node.id, post.build()?.http().clone()))
        };
        self.all.iter().map(client).collect()
    }
}

fn address_of(base: &str) -> anyhow::Result<String> {
    let Some(rest) = base.strip_prefix("http://") else {
        bail!("the benchmark needs http:// URLs, not {base}")
    };
    let address = rest.trim_end_matches('/');
    if address.contains('/') {
        bail!("the benchmark needs URLs without a path, not {base}");
    }
    let has_port = address
        .rsplit_once(':')
        .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    Ok(if has_port {
        address.to_owned()
    } else {
        format!("{address}:80")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_from_plain_http_urls() {
        assert_eq!(
            address_of("http://127.0.0.1:7700/").ok().as_deref(),
            Some("127.0.0.1:7700")
        );
        assert_eq!(address_of("http://post").ok().as_deref(), Some("post:80"));
        assert_eq!(address_of("http://[::1]:7700").ok().as_deref(), Some("[::1]:7700"));
        assert!(address_of("https://post").is_err());
        assert!(address_of("http://post/path").is_err());
    }
}
