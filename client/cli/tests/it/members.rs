//! Membership changes by the command line: three node processes, a fourth node, a lost disk.

use std::fs;
use std::path::Path;

use agentpost::operator::Operator;
use jepsen_like_tests::cluster::{Cluster, Settings};

async fn start(dir: &Path) -> Cluster {
    let settings = Settings {
        nodes: 3,
        dir: Some(dir.to_owned()),
        ..Settings::default()
    };
    Cluster::start_with(settings).await.unwrap()
}

async fn members(admin: &Operator) -> Vec<u64> {
    let cluster = admin.cluster().await.unwrap();
    cluster.nodes.iter().map(|node| node.id).collect()
}

fn refusal(cluster: &Cluster, arguments: &[&str]) -> String {
    format!("{:#}", cluster.agentpost(arguments).unwrap_err())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_its_disk_joins_again_and_a_failure_half_way_is_mended_by_the_same_command() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = start(dir.path()).await;
    let admin = cluster.admin().unwrap();
    let file = dir.path().join("node3.toml");
    let text = fs::read_to_string(&file).unwrap() + "# id = 3, our third machine\n";
    fs::write(&file, &text).unwrap();
    let rejoin = ["node", "rejoin", "--config", file.to_str().unwrap()];

    let why = refusal(&cluster, &rejoin);
    assert!(why.contains("the daemon of node 3 still runs"), "{why}");
    assert_eq!(members(&admin).await, [1, 2, 3]);

    cluster.kill(3).unwrap();
    let said = cluster.agentpost(&rejoin).unwrap();
    assert!(
        said.contains("Node 3 removed\nNode 4 added as a learner\nMoved "),
        "{said}"
    );
    assert!(said.contains("agentpost cluster promote 4"), "{said}");
    assert_eq!(members(&admin).await, [1, 2, 4]);
    let names = |dir: &Path| -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    };
    let aside = |name: &String| name.starts_with("node3.quarantined-");
    assert_eq!(names(dir.path()).iter().filter(|name| aside(name)).count(), 1);
    assert!(!names(dir.path()).contains(&"node3".to_owned()));
    let changed = text
        .replacen("id = 3\n", "id = 4\n", 1)
        .replacen("{ id = 3,", "{ id = 4,", 1);
    assert_eq!(fs::read_to_string(&file).unwrap(), changed);

    // The file is as before the last step. The same command finds the node that it has added.
    fs::write(&file, &text).unwrap();
    cluster.rejoin(3).await.unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), changed);
    assert_eq!(members(&admin).await, [1, 2, 4]);
    cluster.same_state().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn members_are_added_promoted_and_removed_by_hand() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = start(dir.path()).await;
    let admin = cluster.admin().unwrap();
    let add = |id: &'static str| {
        let addresses = ["--peer", "127.0.0.1:1", "--client-url", "http://127.0.0.1:2"];
        [&["cluster", "add"][..], &[id], &addresses].concat()
    };
    let said = cluster.agentpost(&add("7")).unwrap();
    assert!(said.starts_with("Node 7 added as a learner\n"), "{said}");
    assert_eq!(members(&admin).await, [1, 2, 3, 7]);
    // No node listens at that address.
    let why = refusal(&cluster, &["cluster", "promote", "7", "--wait", "1"]);
    assert!(why.contains("Waiting: node 7 ") && why.contains("409"), "{why}");
    assert!(
        cluster
            .agentpost(&["cluster", "remove", "7"])
            .unwrap()
            .contains("Node 7 removed")
    );
    let why = refusal(&cluster, &add("7"));
    assert!(why.contains("id 7 was used already"), "{why}");
    let leader = cluster.leader().await.unwrap();
    cluster.agentpost(&["cluster", "remove", &leader.to_string()]).unwrap();
    // The removed node learns of no later change, so the others are asked.
    cluster.kill(leader).unwrap();
    assert_eq!(members(&cluster.operator().unwrap()).await.len(), 2);
}
