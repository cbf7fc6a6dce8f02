//! The peer port, called by a client that speaks its protocol: which callers the handshake accepts, and which requests an
//! accepted node may send.

use agentpost_node::base::clock::{Clock, IdSource};
use agentpost_node::base::owner;
use agentpost_node::base::secrets::Secrets;
use agentpost_node::net::dial::{Dialer, Purpose};
use agentpost_node::net::handshake::Identity;
use agentpost_node::net::lives::Lives;
use agentpost_proto::command::{BeginEpoch, Operation, Tick, operation, reply};
use agentpost_proto::id::TeamId;
use agentpost_proto::limits::PAGE_MAX;
use agentpost_proto::peer::peer_client::PeerClient;
use agentpost_proto::peer::{
    AppendRequest, Done, ForwardRequest, PresenceRequest, StatusRequest, TransferRequest, Vote, VoteRequest,
    forward_reply, forward_request,
};
use prost::Message as _;
use tonic::Code;
use tonic::transport::Channel;

use crate::common::TestCluster;

/// A dialer that claims to be node `id`, in the life of that node if it exists.
fn dialer(cluster: &TestCluster, secret: u8, id: u64) -> Dialer {
    let life = owner::life_in(&cluster.data_dir(id as usize - 1)).unwrap_or([9; 16]);
    let (secrets, lives) = (Secrets::derive(&[secret; 32]), Lives::in_memory(life));
    Dialer::new(
        Identity::new(&secrets, id, lives, IdSource::new(Clock::system())),
        tokio::runtime::Handle::current(),
    )
}

/// A client of that dialer which expects node `target` at the address of node 1.
fn client(cluster: &TestCluster, secret: u8, id: u64, target: u64) -> PeerClient<Channel> {
    let address = cluster.peer_addr(0).to_string();
    dialer(cluster, secret, id).client(target, &address, Purpose::Control)
}

const SHARD: StatusRequest = StatusRequest { shard: 0 };

fn vote(node: u64) -> Option<Vote> {
    Some(Vote {
        term: 99,
        node,
        committed: false,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn only_members_that_know_the_secret_and_look_for_this_node_come_in() {
    let cluster = TestCluster::start(3).await;
    assert_eq!(
        client(&cluster, 7, 3, 1).status(SHARD).await.unwrap().into_inner().node,
        1
    );
    for (secret, id, target) in [(8, 3, 1), (7, 9, 1), (7, 1, 1), (7, 3, 2)] {
        let refused = client(&cluster, secret, id, target).status(SHARD).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{secret} {id} {target}: {refused}");
    }
    let metrics = cluster.services(0).metrics_text();
    assert!(metrics.contains("agentpost_handshakes_refused_total 4"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_speaks_for_itself_only() {
    let cluster = TestCluster::start(3).await;
    let mut client = client(&cluster, 7, 3, 1);
    let term = cluster.services(0).cluster.status().await.term;
    let ballot = VoteRequest {
        vote: vote(2),
        ..VoteRequest::default()
    };
    assert_eq!(client.vote(ballot).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(
        client.pre_vote(ballot).await.unwrap_err().code(),
        Code::PermissionDenied
    );
    let transfer = TransferRequest {
        from_leader: vote(2),
        to: 1,
        ..TransferRequest::default()
    };
    assert_eq!(
        client.transfer_leader(transfer).await.unwrap_err().code(),
        Code::PermissionDenied
    );
    let append = AppendRequest {
        vote: vote(2),
        ..AppendRequest::default()
    };
    let mut answers = client
        .append(futures::stream::iter([append]))
        .await
        .unwrap()
        .into_inner();
    assert!(
        answers.message().await.unwrap().is_none(),
        "the stream ends without an answer"
    );
    let elsewhere = VoteRequest { shard: 1, ..ballot };
    assert_eq!(client.vote(elsewhere).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(
        cluster.services(0).cluster.status().await.term,
        term,
        "nobody's term moved"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn listeners_are_told_of_a_page_of_agents_at_most() {
    let cluster = TestCluster::start(2).await;
    let mut client = client(&cluster, 7, 2, 1);
    let services = cluster.services(0);
    let team = TeamId([5; 16]);
    let _listening = services.cluster.presence.listen(team, vec!["b".parse().unwrap()]);
    let request = |team_id: Vec<u8>, agents: usize| PresenceRequest {
        team_id: team_id.into(),
        agents: (0..agents)
            .map(|n| if n == 1 { "b".to_owned() } else { format!("x{n}") })
            .collect(),
    };
    for (team, listeners) in [(vec![5; 16], 1), (vec![6; 16], 0)] {
        let told = client.presence(request(team, PAGE_MAX)).await.unwrap().into_inner();
        assert_eq!(told.sessions.len(), PAGE_MAX);
        assert_eq!(
            (told.sessions[1], told.sessions.iter().sum::<u32>()),
            (listeners, listeners)
        );
    }
    for bad in [
        request(vec![5; 16], PAGE_MAX + 1),
        request(vec![5; 15], 1),
        request(vec![], 1),
    ] {
        let refused = client.presence(bad).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn operations_of_the_leader_are_not_accepted_from_members() {
    let cluster = TestCluster::start(3).await;
    let leader = cluster.leader().await;
    let other = (leader as u64 + 1) % 3 + 1;
    let address = cluster.peer_addr(leader).to_string();
    let mut client = dialer(&cluster, 7, other).client(leader as u64 + 1, &address, Purpose::Forward);
    let operation = |op| forward_request::Kind::Operation(Operation { principal: None, op }.encode_to_vec().into());
    let kinds = [
        operation(Some(operation::Op::Tick(Tick {}))),
        operation(Some(operation::Op::BeginEpoch(BeginEpoch { node: other, term: 1 }))),
        operation(None),
        forward_request::Kind::Operation(vec![0xff; 40].into()),
        forward_request::Kind::ReadIndex(Done {}),
    ];
    let requests = (1..).zip(kinds).map(|(id, kind)| ForwardRequest {
        shard: 0,
        id,
        kind: Some(kind),
    });
    let requests: Vec<_> = requests.collect();
    let mut answers = client
        .forward(futures::stream::iter(requests))
        .await
        .unwrap()
        .into_inner();
    let mut seen = Vec::new();
    while let Some(answer) = answers.message().await.unwrap() {
        match answer.outcome.unwrap() {
            forward_reply::Outcome::Reply(reply) => {
                assert!(matches!(reply.reply, Some(reply::Reply::Rejection(_))), "{reply:?}");
                assert_ne!(answer.id, 5);
            }
            forward_reply::Outcome::ReadIndex(index) => assert!(index > 0 && answer.id == 5),
            other => panic!("{other:?}"),
        }
        seen.push(answer.id);
    }
    seen.sort_unstable();
    assert_eq!(seen, [1, 2, 3, 4, 5]);
}
