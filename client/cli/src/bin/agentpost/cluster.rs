//! `agentpost cluster`: shows and changes the members of the cluster.

use std::time::Duration;

use agentpost::Role;
use agentpost::operator::{Cluster, Node, Operator};
use agentpost_cli::output;
use agentpost_cli::table::{Align, Paint, Table, Tone};
use anyhow::bail;

use crate::connection::Connection;
use crate::members;

/// Time limit of a transfer of leadership. It takes one election at most, because the server refuses a transfer that
/// cannot succeed.
const HAND_OVER: Duration = Duration::from_secs(10);

#[derive(clap::Subcommand)]
pub enum Command {
    /// Show the nodes, the leader, and the log index that each node has applied
    Status {
        /// Print the JSON answer of the operator API
        #[arg(long)]
        json: bool,
    },
    /// Transfer leadership to another node, for example before stopping the leader
    Transfer {
        /// The id of the new leader
        node: u64,
    },
    /// Add a node as a learner: it receives the log and has no vote
    ///
    /// First write the configuration of the new node: its id in [node] id, and in cluster.nodes the new node and all
    /// present ones. Its data directory must be empty. The node may start before or after this command. Afterwards make
    /// it a voter with `agentpost cluster promote`.
    Add {
        /// An id that no node has ever had [default: the next such id]
        id: Option<u64>,
        /// The address under which the other nodes reach it
        #[arg(long, value_name = "HOST:PORT")]
        peer: String,
        // Not `--url`, which is the option for the nodes to ask.
        /// The URL under which clients reach it
        #[arg(long = "client-url", value_name = "URL")]
        client_url: String,
    },
    /// Make a learner a voter as soon as it has caught up
    Promote {
        /// The id of the learner
        node: u64,
        /// Time for the learner to catch up
        #[arg(long, value_name = "SECONDS", default_value_t = 600)]
        wait: u64,
    },
    /// Remove a node for good; its id is never used again
    ///
    /// A leader transfers leadership first. The command is refused if the remaining voters that answer are no
    /// majority. The daemon of a removed node goes on running, but the other nodes ignore it: stop it.
    Remove {
        /// The id of the node
        node: u64,
    },
    /// Take a snapshot now, so that a node that joins or returns has less log to copy
    Snapshot,
}

/// Runs one of the commands.
pub async fn run(command: Command, connection: &Connection) -> anyhow::Result<()> {
    let operator = connection.operator()?;
    match command {
        Command::Status { json } => {
            let cluster = operator.cluster().await?;
            if json {
                output::json(&cluster)
            } else {
                output::text(&status(&cluster, Paint::for_stdout()))
            }
        }
        Command::Transfer { node } => transfer(&operator, node).await,
        Command::Add { id, peer, client_url } => members::add(&operator, id, peer, client_url).await,
        Command::Promote { node, wait } => members::promote(&operator, node, Duration::from_secs(wait)).await,
        Command::Remove { node } => members::remove(&operator, node).await,
        Command::Snapshot => {
            operator.snapshot().await?;
            output::text("Snapshot taken\n")
        }
    }
}

async fn transfer(operator: &Operator, node: u64) -> anyhow::Result<()> {
    let before = operator.cluster().await?.leader;
    if before == Some(node) {
        return output::text(&format!("Node {node} leads already\n"));
    }
    operator.transfer(node).await?;
    let deadline = tokio::time::Instant::now() + HAND_OVER;
    loop {
        // During the election a node answers that it has no leader.
        let leader = operator.cluster().await.ok().and_then(|cluster| cluster.leader);
        if leader == Some(node) {
            return output::text(&format!("Node {node} leads\n"));
        }
        if tokio::time::Instant::now() > deadline {
            let leader = leader.map_or("nobody".to_owned(), |id| format!("node {id}"));
            bail!(
                "node {node} was asked to lead, but after {} s {leader} leads",
                HAND_OVER.as_secs()
            );
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn status(cluster: &Cluster, paint: Paint) -> String {
    let leader = cluster.leader.map_or("none".to_owned(), |id| format!("node {id}"));
    let reached = cluster.nodes.iter().filter(|node| node.role.is_some()).count();
    let head = format!(
        "Cluster {}, term {}, leader: {leader}, {reached} of {} nodes reached\n\n",
        agentpost_cli::terminal::escaped(&cluster.cluster_id),
        cluster.term,
        cluster.nodes.len()
    );
    head + &nodes(cluster).render(paint)
}

fn nodes(cluster: &Cluster) -> Table {
    let mut table = Table::new(&[
        ("NODE", Align::Right),
        ("ROLE", Align::Left),
        ("APPLIED", Align::Right),
        ("LAG", Align::Right),
        ("STATE HASH", Align::Left),
        ("AT", Align::Right),
        ("URL", Align::Left),
        ("PEER", Align::Left),
    ]);
    for node in &cluster.nodes {
        table.row(tone(node, cluster.leader), cells(node));
    }
    table
}

fn tone(node: &Node, leader: Option<u64>) -> Tone {
    match &node.role {
        None => Tone::Bad,
        Some(_) if leader == Some(node.id) => Tone::Good,
        Some(_) => Tone::Plain,
    }
}

fn cells(node: &Node) -> Vec<String> {
    let number = |value: Option<u64>| value.map_or("-".to_owned(), |n| n.to_string());
    vec![
        node.id.to_string(),
        node.role.as_ref().map_or("unreachable", Role::as_str).to_owned(),
        number(node.applied_index),
        number(node.lag),
        node.state_hash.clone().unwrap_or_else(|| "-".to_owned()),
        number(node.state_hash_index),
        node.url.clone(),
        node.peer_url.clone(),
    ]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn the_status_lines_up_and_names_who_is_missing() {
        let node = |id: u64, role: Option<&str>| {
            json!({
                "id": id, "url": format!("http://127.0.0.1:{}", 7699 + id),
                "peer_url": format!("127.0.0.1:{}", 7799 + id), "role": role,
                "applied_index": role.map(|_| 12_345 / id), "lag": role.map(|_| id - 1),
                "state_hash": role.map(|_| "00f1e2d3c4b5a697"), "state_hash_index": role.map(|_| 12_345 / id),
            })
        };
        let nodes = [node(1, Some("leader")), node(2, Some("follower")), node(3, None)];
        let cluster = json!({"cluster_id": "c0ffee", "leader": 1, "term": 7, "nodes": nodes});
        let cluster: Cluster = serde_json::from_value(cluster).unwrap();
        let expected = "\
Cluster c0ffee, term 7, leader: node 1, 2 of 3 nodes reached

NODE  ROLE         APPLIED  LAG  STATE HASH           AT  URL                    PEER
   1  leader         12345    0  00f1e2d3c4b5a697  12345  http://127.0.0.1:7700  127.0.0.1:7800
   2  follower        6172    1  00f1e2d3c4b5a697   6172  http://127.0.0.1:7701  127.0.0.1:7801
   3  unreachable        -    -  -                     -  http://127.0.0.1:7702  127.0.0.1:7802
";
        assert_eq!(status(&cluster, Paint::Never), expected);
        assert!(status(&cluster, Paint::Colours).contains("\u{1b}[31m   3  unreachable"));
    }
}
