//! A proxy in front of each node's peer port, which can hold back, slow down and reset the traffic between two nodes.
//! It needs no root.
//!
//! The traffic on a cut link is held back until the link is restored, as if TCP retransmitted it; new connections are
//! accepted and stay silent. All nodes connect from 127.0.0.1, so the proxy finds the sender in the tables of the
//! kernel: the socket at the other end, and the process that has it open.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use parking_lot::Mutex;
use rand::RngExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::cut::{Cut, CutManner, Endpoint, Quality};

const CHUNK_BYTES: usize = 16 * 1024;
/// Upper bound on the chunks of a connection in transit, like the buffers of a slow network.
const CHUNKS_MAX: usize = 256;
/// Longer than any run.
const FOREVER: Duration = Duration::from_secs(86_400 * 365);

/// The proxies of a cluster, which end when the value is dropped.
pub struct Proxies {
    addresses: Vec<SocketAddr>,
    processes: Processes,
    links: Links,
    tasks: JoinSet<()>,
}

/// The process id of each node.
type Processes = Arc<Mutex<Vec<Option<u32>>>>;
/// The links from each node (row) to each other (column).
type Links = Arc<Vec<Vec<watch::Sender<LinkState>>>>;

/// The state of a directed link.
#[derive(Debug, Clone, Copy, Default)]
struct LinkState {
    /// If set, connections that were opened before this time are cut.
    cut: Option<Instant>,
    resets: bool,
    quality: Quality,
}

/// A link as seen by one connection.
#[derive(Clone)]
struct Link {
    opened: Instant,
    link: watch::Receiver<LinkState>,
}

impl Proxies {
    /// Starts a proxy for each of these peer ports.
    pub fn start(peers: Vec<SocketAddr>) -> Result<Self> {
        let nodes = peers.len();
        let row = || (0..nodes).map(|_| watch::Sender::new(LinkState::default())).collect();
        let mut proxies = Proxies {
            addresses: Vec::new(),
            processes: Arc::new(Mutex::new(vec![None; nodes])),
            links: Arc::new((0..nodes).map(|_| row()).collect()),
            tasks: JoinSet::new(),
        };
        for (place, peer) in peers.into_iter().enumerate() {
            let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
            listener.set_nonblocking(true)?;
            proxies.addresses.push(listener.local_addr()?);
            let listener = TcpListener::from_std(listener)?;
            let (processes, links) = (Arc::clone(&proxies.processes), Arc::clone(&proxies.links));
            proxies.tasks.spawn(accept(listener, peer, place, processes, links));
        }
        Ok(proxies)
    }

    /// The address of the proxy in front of a node.
    pub fn address(&self, node: usize) -> SocketAddr {
        self.addresses[node - 1]
    }

    /// Registers the process of a node.
    pub fn register_process(&self, node: usize, process: u32) {
        self.processes.lock()[node - 1] = Some(process);
    }

    /// Holds back the traffic of cut links; resets their connections if the cut says so.
    pub fn cut(&self, cut: &Cut) {
        let before = match cut.manner {
            CutManner::OpenConnections => Instant::now(),
            CutManner::Silent | CutManner::Resets => Instant::now() + FOREVER,
        };
        self.change(|from, to, link| {
            let is_cut = cut.pairs.contains(&(Endpoint::Node(from), Endpoint::Node(to)));
            link.cut = is_cut.then_some(before);
            link.resets = is_cut && cut.manner == CutManner::Resets;
        });
    }

    /// Sets the quality of all links.
    pub fn set_quality(&self, quality: &Quality) {
        self.change(|_, _, link| link.quality = *quality);
    }

    fn change(&self, change: impl Fn(usize, usize, &mut LinkState)) {
        for (from, row) in (1..).zip(self.links.iter()) {
            for (to, link) in (1..).zip(row) {
                link.send_modify(|link| change(from, to, link));
            }
        }
    }
}

/// Accepts connections, which end together with this task.
async fn accept(listener: TcpListener, peer: SocketAddr, place: usize, processes: Processes, links: Links) {
    let mut connections = JoinSet::new();
    loop {
        // Probably out of file descriptors; the sender retries.
        let Ok((stream, from)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        while connections.try_join_next().is_some() {}
        let known = processes.lock().clone();
        let links = Arc::clone(&links);
        connections.spawn(async move {
            // A sender that has closed the connection already, or that is not a node.
            let Ok(Some(dialler)) = tokio::task::spawn_blocking(move || who(from, &known)).await else {
                return;
            };
            let line = |link: &watch::Sender<LinkState>| Link {
                opened: Instant::now(),
                link: link.subscribe(),
            };
            let (there, back) = (line(&links[dialler][place]), line(&links[place][dialler]));
            connect(stream, peer, there, back).await;
        });
    }
}

async fn connect(mut stream: TcpStream, peer: SocketAddr, mut there: Link, mut back: Link) {
    let reset = tokio::select! {
        reset = there.whole() => reset,
        () = hung_up(&stream) => return,
    };
    if reset {
        // Send a reset instead of an orderly close.
        let _ = stream.set_zero_linger();
        return;
    }
    let Ok(mut on) = TcpStream::connect(peer).await else {
        return;
    };
    let _ = (stream.set_nodelay(true), on.set_nodelay(true));
    let ((from_dialler, to_dialler), (from_peer, to_peer)) = (stream.split(), on.split());
    let carried = {
        let (there, back) = (there.clone(), back.clone());
        async { tokio::join!(carry(from_dialler, to_peer, there), carry(from_peer, to_dialler, back)) }
    };
    let reset = tokio::select! {
        _ = carried => false,
        () = there.reset() => true,
        () = back.reset() => true,
    };
    if reset {
        let _ = (stream.set_zero_linger(), on.set_zero_linger());
    }
}

impl Link {
    /// Waits until the link is restored (`false`) or resets its connections (`true`).
    async fn whole(&mut self) -> bool {
        let opened = self.opened;
        let is_cut = |link: &LinkState| link.cut.is_some_and(|before| opened < before);
        let link = self.link.wait_for(|link| !is_cut(link) || link.resets).await;
        // An error means that the network was dropped, and its connections with it.
        link.map_or(true, |link| link.resets)
    }

    async fn reset(&mut self) {
        let _ = self.link.wait_for(|link| link.resets).await;
    }
}

/// Waits until the other end has closed the connection.
async fn hung_up(stream: &TcpStream) {
    let mut byte = [0; 1];
    loop {
        match stream.peek(&mut byte).await {
            Ok(0) | Err(_) => return,
            // The other end waits for a response and has not closed the connection.
            Ok(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Forwards one direction of a connection over a link.
async fn carry(mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, mut line: Link) {
    let (chunks, mut arriving) = mpsc::channel::<(Instant, Vec<u8>)>(CHUNKS_MAX);
    let mut pace = Pace::new();
    let link = line.link.clone();
    let reading = async move {
        loop {
            let mut chunk = vec![0; CHUNK_BYTES];
            let Ok(bytes @ 1..) = from.read(&mut chunk).await else {
                return;
            };
            chunk.truncate(bytes);
            let due = pace.due(bytes, &link.borrow().quality);
            if chunks.send((due, chunk)).await.is_err() {
                return;
            }
        }
    };
    let writing = async move {
        while let Some((due, chunk)) = arriving.recv().await {
            sleep_until(due).await;
            if line.whole().await || to.write_all(&chunk).await.is_err() {
                return;
            }
        }
        // A close does not pass a cut link, either.
        if !line.whole().await {
            let _ = to.shutdown().await;
        }
    };
    tokio::join!(reading, writing);
}

/// Computes when a chunk arrives.
struct Pace {
    /// When the sender has finished sending earlier chunks.
    sent: Instant,
    /// When the last chunk arrives; chunks keep their order.
    last: Instant,
}

impl Pace {
    fn new() -> Self {
        let now = Instant::now();
        Pace { sent: now, last: now }
    }

    fn due(&mut self, bytes: usize, quality: &Quality) -> Instant {
        self.sent = self.sent.max(Instant::now());
        if quality.bits_per_s > 0 {
            self.sent += Duration::from_secs_f64(bytes as f64 * 8.0 / quality.bits_per_s as f64);
        }
        let jitter = rand::rng().random_range(0..=2 * quality.jitter_ms);
        let delay = (quality.delay_ms + jitter).saturating_sub(quality.jitter_ms);
        self.last = self.last.max(self.sent + Duration::from_millis(delay));
        self.last
    }
}

/// The index of the node whose process has a socket with this local address.
fn who(address: SocketAddr, processes: &[Option<u32>]) -> Option<usize> {
    let inode = inode_of(address, &std::fs::read_to_string("/proc/net/tcp").ok()?)?;
    let socket = format!("socket:[{inode}]");
    processes.iter().position(|process| {
        let Some(files) = process.and_then(|id| std::fs::read_dir(format!("/proc/{id}/fd")).ok()) else {
            return false;
        };
        let mut links = files.flatten().filter_map(|file| std::fs::read_link(file.path()).ok());
        links.any(|link| link.as_os_str() == socket.as_str())
    })
}

/// The inode of the socket with a local address, in the kernel's table of connections.
fn inode_of(address: SocketAddr, table: &str) -> Option<String> {
    let SocketAddr::V4(address) = address else { return None };
    let local = format!(
        "{:08X}:{:04X}",
        u32::from_ne_bytes(address.ip().octets()),
        address.port()
    );
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // Closed sockets have no inode.
        let inode = *fields.get(9)?;
        (*fields.get(1)? == local && inode != "0").then(|| inode.to_owned())
    })
}
