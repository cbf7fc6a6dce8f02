//! Webhooks never reach the cluster's own ports, whatever the settings allow.

use std::net::SocketAddr;

use agentpost_node::base::config::Config;
use agentpost_node::webhooks::egress::Timeouts;
use agentpost_raft_store::disk::types::Member;
use rustls::RootCertStore;

use super::stage::{LOOPBACK, OK_CLOSE, Receiver, Stage};

fn config(node: &str, nodes: &str) -> Config {
    let text = format!("insecure_listen = true\n[node]\n{node}\n[cluster]\nnodes = [{nodes}]\n[webhooks]\n{LOOPBACK}");
    Config::from_parts("test", &text, []).unwrap()
}

fn stage(config: &Config, bound: &[SocketAddr]) -> Stage {
    Stage::with(config, bound, RootCertStore::empty(), Timeouts::default())
}

#[tokio::test]
async fn the_ports_that_this_node_was_given_are_closed() {
    let (own, other) = (Receiver::answering(OK_CLOSE).await, Receiver::answering(OK_CLOSE).await);
    let stage = stage(&config("client_addr = \"127.0.0.1:0\"", ""), &[own.addr]);
    stage.names.set("localhost", &[&["127.0.0.1"]]);
    stage
        .names
        .set("own.example.com", &[&["127.0.0.1"], &["::ffff:127.0.0.1"]]);
    let port = own.addr.port();
    for host in ["localhost", "own.example.com", "own.example.com"] {
        let url = format!("http://{host}:{port}/admin/v1/teams");
        assert_eq!(
            stage.egress.check_url(&url),
            Ok(()),
            "a name shows its address when it is dialled"
        );
        assert_eq!(stage.call(&url).await.error, "refused", "{host}");
    }
    for host in [
        "127.0.0.1",
        "2130706433",
        "0x7f.1",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
    ] {
        let url = format!("http://{host}:{port}/");
        assert!(stage.egress.check_url(&url).is_err(), "{url}");
        assert_eq!(stage.call(&url).await.error, "refused", "{url}");
    }
    assert_eq!(own.connections(), 0);
    // Other ports of the same hosts are allowed.
    for host in ["localhost", "own.example.com", "127.0.0.1"] {
        let url = format!("http://{host}:{}/", other.addr.port());
        assert_eq!(stage.call(&url).await.status, 200, "{url}");
    }
}

#[tokio::test]
async fn a_listener_at_all_addresses_is_closed_at_each_of_this_machine() {
    let own = Receiver::at("0.0.0.0:0", OK_CLOSE).await;
    let stage = stage(&config("", ""), &[own.addr]);
    stage.names.set("own.example.com", &[&["127.9.8.7"]]);
    for host in ["127.0.0.1", "127.1.2.3", "own.example.com"] {
        let url = format!("http://{host}:{}/", own.addr.port());
        assert_eq!(stage.call(&url).await.error, "refused", "{host}");
    }
    assert_eq!(own.connections(), 0);
}

#[tokio::test]
async fn the_ports_of_other_nodes_are_closed_by_address_and_by_name() {
    let by_address = Receiver::at("127.0.0.3:0", OK_CLOSE).await;
    let by_name = Receiver::at("127.0.0.4:0", OK_CLOSE).await;
    let nodes = format!(
        "{{id = 1, peer_addr = \"127.0.0.1:1\", url = \"http://127.0.0.1:2\"}},
         {{id = 2, peer_addr = \"{}\", url = \"http://n2.example.com:{}\"}},
         {{id = 3, peer_addr = \"n3.example.com:{}\", url = \"https://unknown.example.com\"}}",
        by_address.addr,
        by_address.addr.port(),
        by_name.addr.port(),
    );
    let stage = stage(&config("id = 1", &nodes.replace('\n', " ")), &[]);
    stage.names.set("n2.example.com", &[&["127.0.0.3"]]);
    // The name of a node may get another address; its last known address stays closed for a while.
    stage.names.set("n3.example.com", &[&["::ffff:127.0.0.4", "127.0.0.5"]]);
    stage.names.set("agent.example.com", &[&["127.0.0.3"]]);
    stage.names.set("rebound.example.com", &[&["127.0.0.4"]]);
    for url in [
        format!("http://{}/", by_address.addr),
        format!("http://agent.example.com:{}/", by_address.addr.port()),
        format!("http://n2.example.com:{}/", by_address.addr.port()),
        format!("http://{}/", by_name.addr),
        format!("http://n3.example.com:{}/", by_name.addr.port()),
        format!("http://rebound.example.com:{}/", by_name.addr.port()),
    ] {
        assert_eq!(stage.call(&url).await.error, "refused", "{url}");
    }
    assert_eq!((by_address.connections(), by_name.connections()), (0, 0));
    // An agent may use the port number of a node on another host, and another port on the node's host.
    let agent = Receiver::at(&format!("127.0.0.6:{}", by_name.addr.port()), OK_CLOSE).await;
    stage.names.set("agent.example.com", &[&["127.0.0.6"]]);
    for url in [agent.url(), format!("http://agent.example.com:{}/", agent.addr.port())] {
        assert_eq!(stage.call(&url).await.status, 200, "{url}");
    }
    let neighbour = Receiver::at("127.0.0.3:0", OK_CLOSE).await;
    assert_eq!(stage.call(&neighbour.url()).await.status, 200);
}

#[tokio::test]
async fn the_ports_of_nodes_that_joined_later_are_closed_until_they_leave() {
    let by_address = Receiver::at("127.0.0.7:0", OK_CLOSE).await;
    let by_name = Receiver::at("127.0.0.8:0", OK_CLOSE).await;
    let stage = stage(&config("id = 1", ""), &[]);
    stage.names.set("n4.example.com", &[&["127.0.0.8"]]);
    stage.names.set("agent.example.com", &[&["127.0.0.7"]]);
    let member = Member {
        peer_addr: by_address.addr.to_string(),
        url: format!("http://n4.example.com:{}", by_name.addr.port()),
    };
    let urls = [
        by_address.url(),
        format!("http://agent.example.com:{}/", by_address.addr.port()),
        by_name.url(),
    ];
    stage.egress.set_members([&member].into_iter());
    for url in &urls {
        assert_eq!(stage.call(url).await.error, "refused", "{url}");
    }
    assert_eq!((by_address.connections(), by_name.connections()), (0, 0));
    stage.egress.set_members([].into_iter());
    for url in &urls {
        assert_eq!(stage.call(url).await.status, 200, "{url}");
    }
}
