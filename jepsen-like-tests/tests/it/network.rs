//! The networks of fault tests: a cut drops traffic in one direction only, and nothing is left behind. Tests that
//! need namespaces print why they are skipped on a machine without them.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use jepsen_like_tests::cluster::network::{self, Cut, Network, NetworkKind, Quality};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// The port of [`hear`].
const PORT: u16 = 9000;
/// Time limit for what must arrive; no test waits for what must not.
const PATIENCE: Duration = Duration::from_secs(30);

/// A network of namespaces; `None` if the machine has none.
fn namespaces(nodes: usize) -> Option<Network> {
    if let Some(why) = network::why_no_namespaces() {
        println!("skipped: {why}");
        return None;
    }
    Some(Network::create(NetworkKind::Namespaces, nodes).unwrap())
}

/// A process in a node's namespace that prints what arrives there.
struct Ear {
    process: Child,
    words: Receiver<String>,
}

impl Ear {
    fn at(network: &Network, node: usize) -> Self {
        let itself = std::env::current_exe().unwrap();
        let mut process = network
            .command(node, &itself)
            .args(["--exact", "network::hear", "--ignored", "--nocapture"])
            .env("HEAR_AT", hearing(network, node).to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let (heard, words) = sync_channel(64);
        std::thread::spawn(move || {
            // The test harness may print something first.
            for line in lines.map_while(Result::ok) {
                let Some((_, word)) = line.split_once("heard ") else {
                    continue;
                };
                if heard.send(word.to_owned()).is_err() {
                    return;
                }
            }
        });
        let ear = Ear { process, words };
        assert_eq!(ear.next(), "nothing");
        ear
    }

    fn next(&self) -> String {
        self.words.recv_timeout(PATIENCE).unwrap()
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

fn hearing(network: &Network, node: usize) -> SocketAddr {
    SocketAddr::new(network.client_addr(node).ip(), PORT)
}

/// Sends a word from one node to another by UDP, without confirmation.
fn say(network: &Network, from: usize, to: usize, word: &str) {
    let to = hearing(network, to);
    let script = format!("echo -n {word} > /dev/udp/{}/{}", to.ip(), to.port());
    let mut bash = network.command(from, Path::new("bash"));
    assert!(bash.args(["-c", &script]).status().unwrap().success());
}

#[test]
#[ignore = "not a test: other tests run it inside a namespace"]
fn hear() {
    let Ok(address) = std::env::var("HEAR_AT") else { return };
    let words = UdpSocket::bind(&address).unwrap();
    let streams = std::net::TcpListener::bind(&address).unwrap();
    std::thread::spawn(move || {
        for stream in streams.incoming() {
            std::thread::spawn(move || {
                for line in BufReader::new(stream.unwrap()).lines().map_while(Result::ok) {
                    println!("heard {line}");
                }
            });
        }
    });
    println!("heard nothing");
    let mut word = [0; 64];
    loop {
        let length = words.recv(&mut word).unwrap();
        println!("heard {}", String::from_utf8_lossy(&word[..length]));
    }
}

#[tokio::test]
async fn a_cut_takes_one_way_and_healing_gives_it_back() {
    let Some(mut network) = namespaces(3) else { return };
    let (first, second) = (Ear::at(&network, 1), Ear::at(&network, 2));
    say(&network, 1, 2, "before");
    assert_eq!(second.next(), "before");
    network.cut(&Cut::one_way(&[1], &[2])).unwrap();
    say(&network, 1, 2, "lost");
    say(&network, 3, 2, "bystander");
    say(&network, 2, 1, "other-way");
    assert_eq!(first.next(), "other-way");
    network.heal().await.unwrap();
    say(&network, 1, 2, "healed");
    assert_eq!([second.next(), second.next()], ["bystander", "healed"]);
    network
        .set_quality(&Quality {
            loss_percent: 100,
            ..Quality::default()
        })
        .unwrap();
    say(&network, 1, 2, "lost");
    network.heal().await.unwrap();
    say(&network, 1, 2, "again");
    assert_eq!(second.next(), "again");
}

#[tokio::test]
async fn open_connections_go_silent_and_new_ones_work() {
    let Some(mut network) = namespaces(1) else { return };
    let ear = Ear::at(&network, 1);
    let mut old = std::net::TcpStream::connect(hearing(&network, 1)).unwrap();
    old.write_all(b"before\n").unwrap();
    assert_eq!(ear.next(), "before");
    network.cut(&Cut::clients_of(1).of_open_connections()).unwrap();
    old.write_all(b"late\n").unwrap();
    let mut new = std::net::TcpStream::connect(hearing(&network, 1)).unwrap();
    new.write_all(b"new\n").unwrap();
    assert_eq!(ear.next(), "new");
    network.heal().await.unwrap();
    assert_eq!(ear.next(), "late");
    network.cut(&Cut::clients_of(1).with_resets()).unwrap();
    old.write_all(b"lost\n").unwrap();
    old.set_read_timeout(Some(PATIENCE)).unwrap();
    let ended = old.read(&mut [0; 1]).unwrap_err();
    assert_eq!(ended.kind(), std::io::ErrorKind::ConnectionReset);
}

/// The namespace of a node, from the command that enters it.
fn namespace_of(network: &Network, node: usize) -> String {
    let command = network.command(node, Path::new("true"));
    let entered = command.get_args().next().unwrap().to_str().unwrap().to_owned();
    entered.rsplit_once('/').unwrap().1.to_owned()
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn nothing_is_left_behind_after_a_panic_and_two_networks_do_not_meet() {
    let Some(network) = namespaces(2) else { return };
    let other = namespaces(2).unwrap();
    assert_ne!(network.host(), other.host());
    assert_ne!(network.peer_addr(1), other.peer_addr(1));
    let (first, second) = (namespace_of(&network, 1), namespace_of(&network, 2));
    let bridge = first.rsplit_once('.').unwrap().0.to_owned();
    let seen = || format!("{}{}", output("ip", &["netns", "list"]), output("ip", &["-o", "link"]));
    let all = seen();
    for name in [&first, &second, &bridge] {
        assert!(all.contains(name.as_str()), "{name} is missing in {all}");
    }
    let panicked = std::thread::spawn(move || {
        let _network = network;
        panic!("a run fails here on purpose");
    });
    assert!(panicked.join().is_err());
    let left = seen();
    assert!(!left.contains(&bridge), "{bridge} is left in {left}");
    assert!(
        left.contains(&namespace_of(&other, 1)),
        "the other network is gone: {left}"
    );
}

#[test]
fn unsupported_faults_are_errors() {
    let mut loopback = Network::create(NetworkKind::Loopback, 2).unwrap();
    assert!(loopback.cut(&Cut::between(&[1], &[2])).is_err());
    let loss = Quality {
        loss_percent: 1,
        ..Quality::default()
    };
    assert!(loopback.set_quality(&loss).is_err());
}

/// A network with proxies, with this process as node 1 and a listener as node 2.
async fn proxied() -> (Network, TcpListener) {
    let mut network = Network::create(NetworkKind::Proxied, 3).unwrap();
    network.register_process(1, std::process::id());
    let listener = TcpListener::bind(network.peer_addr(2)).await.unwrap();
    (network, listener)
}

async fn connect(network: &Network) -> TcpStream {
    TcpStream::connect(network.peer_addr_for_others(2)).await.unwrap()
}

async fn read(stream: &mut TcpStream) -> String {
    let mut bytes = [0; 64];
    let read = tokio::time::timeout(PATIENCE, stream.read(&mut bytes)).await;
    String::from_utf8_lossy(&bytes[..read.unwrap().unwrap()]).into_owned()
}

#[tokio::test]
async fn a_proxy_holds_one_way_back_until_it_is_healed() {
    let (mut network, listener) = proxied().await;
    let mut dialled = connect(&network).await;
    let mut accepted = listener.accept().await.unwrap().0;
    // Cuts between other nodes do not affect this connection.
    network.cut(&Cut::between(&[3], &[1, 2])).unwrap();
    dialled.write_all(b"before").await.unwrap();
    assert_eq!(read(&mut accepted).await, "before");
    network.cut(&Cut::one_way(&[1], &[2])).unwrap();
    dialled.write_all(b"held").await.unwrap();
    accepted.write_all(b"other way").await.unwrap();
    assert_eq!(read(&mut dialled).await, "other way");
    let nothing = accepted.try_read(&mut [0; 64]).unwrap_err();
    assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
    network.heal().await.unwrap();
    assert_eq!(read(&mut accepted).await, "held");
    drop(dialled);
    assert_eq!(read(&mut accepted).await, "");
}

#[tokio::test]
async fn a_proxy_accepts_and_is_silent_resets_or_forgets_what_is_open() {
    let (mut network, listener) = proxied().await;
    network.cut(&Cut::between(&[1], &[2])).unwrap();
    let mut dialled = connect(&network).await;
    dialled.write_all(b"half open").await.unwrap();
    network.heal().await.unwrap();
    let mut accepted = listener.accept().await.unwrap().0;
    assert_eq!(read(&mut accepted).await, "half open");
    network.cut(&Cut::between(&[1], &[2]).of_open_connections()).unwrap();
    dialled.write_all(b"late").await.unwrap();
    let mut new = connect(&network).await;
    new.write_all(b"new").await.unwrap();
    let mut accepted_new = listener.accept().await.unwrap().0;
    assert_eq!(read(&mut accepted_new).await, "new");
    assert!(accepted.try_read(&mut [0; 64]).is_err());
    network.cut(&Cut::between(&[1], &[2]).with_resets()).unwrap();
    for stream in [&mut dialled, &mut accepted, &mut new, &mut accepted_new] {
        let ended = tokio::time::timeout(PATIENCE, stream.read(&mut [0; 64])).await.unwrap();
        assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    }
}

#[tokio::test]
async fn nobody_passes_a_proxy_who_is_no_node() {
    let (mut network, _listener) = proxied().await;
    network.register_process(1, 1);
    let mut stranger = connect(&network).await;
    assert_eq!(read(&mut stranger).await, "");
}

#[test]
fn clients_do_not_pass_proxies() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _entered = runtime.enter();
    let mut network = Network::create(NetworkKind::Proxied, 2).unwrap();
    assert!(network.cut(&Cut::clients_of(1)).is_err());
}
