//! How two nodes prove to each other that they hold the cluster secret, before the first byte of HTTP/2.
//!
//! ```text
//! dialling node                                    listening node
//!   HELLO      magic | cluster | from | to | nonce a  ──►   right cluster? am I `to`? is `from` a member?
//!   ◄──  CHALLENGE   nonce b | MAC("listener", transcript)
//!   right MAC?  PROOF  MAC("dialler", transcript)     ──►   right MAC?
//!   ◄──  WELCOME     one byte
//! ```
//!
//! The transcript is the whole HELLO and nonce b, so a MAC holds for one cluster, one pair of nodes in one
//! direction and one connection: nothing of it can be replayed or reflected. The listening node proves
//! itself first. Frames have fixed lengths, so nothing is allocated on a stranger's word. Both sides give up
//! after [`TIMEOUT`]. Bytes after the handshake are neither encrypted nor authenticated: until there is
//! mTLS the peer port belongs on loopback or a trusted network.

use std::time::Duration;

use hmac::Mac as _;
use subtle::ConstantTimeEq as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::clock::IdSource;
use crate::secrets::{Secrets, keyed};

/// A handshake that takes longer is given up.
pub const TIMEOUT: Duration = Duration::from_secs(5);

const MAGIC: &[u8; 16] = b"agentpost peer 1";
const NONCE: usize = 32;
const MAC: usize = 32;
const HELLO: usize = MAGIC.len() + 16 + 8 + 8 + NONCE;
const WELCOME: u8 = 1;

/// Why a connection is not used.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// It broke, or was never made.
    #[error("connection: {0}")]
    Io(std::io::Error),
    /// It hung up in the middle.
    #[error("the other side hung up: it has another cluster secret, is another node, or does not know this one")]
    HungUp,
    /// Nothing came for too long.
    #[error("no answer within {TIMEOUT:?}")]
    Timeout,
    /// Not a peer of this version.
    #[error("the other side does not speak this protocol")]
    Protocol,
    /// Its cluster id comes from another secret.
    #[error("the other side belongs to another cluster (another cluster secret)")]
    Cluster,
    /// It looks for another node at this address.
    #[error("the other side looks for node {wanted}, this is node {here}")]
    Target {
        /// Whom it dialled.
        wanted: u64,
        /// Who answers.
        here: u64,
    },
    /// Its node id is not in the cluster.
    #[error("node {0} is not a member of this cluster")]
    Stranger(u64),
    /// It does not know the secret.
    #[error("the other side does not hold the cluster secret")]
    Proof,
}

impl From<std::io::Error> for HandshakeError {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::UnexpectedEof => HandshakeError::HungUp,
            _ => HandshakeError::Io(error),
        }
    }
}

/// Who this node is to others.
#[derive(Clone)]
pub struct Identity {
    cluster_id: [u8; 16],
    node: u64,
    key: [u8; 32],
    ids: IdSource,
}

impl Identity {
    /// Node `node` of the cluster of these secrets.
    pub fn new(secrets: &Secrets, node: u64, ids: IdSource) -> Self {
        Identity {
            cluster_id: secrets.cluster_id,
            node,
            key: *secrets.peer_key(),
            ids,
        }
    }

    /// The id of this node.
    pub fn node(&self) -> u64 {
        self.node
    }

    fn mac(&self, role: &[u8; 8], hello: &[u8; HELLO], nonce: &[u8; NONCE]) -> [u8; MAC] {
        let mut mac = keyed(&self.key);
        mac.update(b"peer/v1 ");
        mac.update(role);
        mac.update(hello);
        mac.update(nonce);
        mac.finalize().into_bytes().into()
    }
}

const LISTENER: &[u8; 8] = b"listener";
const DIALLER: &[u8; 8] = b"dialler ";

/// The dialling side: returns once `target` has proven itself and accepted this node.
pub async fn dial<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    me: &Identity,
    target: u64,
) -> Result<(), HandshakeError> {
    within(async {
        let hello = encode_hello(me, target);
        stream.write_all(&hello).await?;
        let nonce: [u8; NONCE] = read(stream).await?;
        let proof: [u8; MAC] = read(stream).await?;
        check(&proof, &me.mac(LISTENER, &hello, &nonce))?;
        stream.write_all(&me.mac(DIALLER, &hello, &nonce)).await?;
        match read(stream).await? {
            [WELCOME] => Ok(()),
            _ => Err(HandshakeError::Protocol),
        }
    })
    .await
}

/// The listening side: returns the id of the node that has proven itself.
pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    me: &Identity,
    is_member: impl Fn(u64) -> bool,
) -> Result<u64, HandshakeError> {
    within(async {
        let hello: [u8; HELLO] = read(stream).await?;
        let from = check_hello(me, &hello, is_member)?;
        let nonce: [u8; NONCE] = me.ids.random();
        let mut challenge = [0; NONCE + MAC];
        challenge[..NONCE].copy_from_slice(&nonce);
        challenge[NONCE..].copy_from_slice(&me.mac(LISTENER, &hello, &nonce));
        stream.write_all(&challenge).await?;
        let proof: [u8; MAC] = read(stream).await?;
        check(&proof, &me.mac(DIALLER, &hello, &nonce))?;
        stream.write_all(&[WELCOME]).await?;
        Ok(from)
    })
    .await
}

fn encode_hello(me: &Identity, target: u64) -> [u8; HELLO] {
    let mut hello = [0; HELLO];
    let nonce: [u8; NONCE] = me.ids.random();
    let fields: [&[u8]; 5] = [
        MAGIC,
        &me.cluster_id,
        &me.node.to_be_bytes(),
        &target.to_be_bytes(),
        &nonce,
    ];
    let mut rest = hello.as_mut_slice();
    for field in fields {
        let (place, behind) = rest.split_at_mut(field.len());
        place.copy_from_slice(field);
        rest = behind;
    }
    hello
}

fn check_hello(me: &Identity, hello: &[u8; HELLO], is_member: impl Fn(u64) -> bool) -> Result<u64, HandshakeError> {
    let (magic, rest) = hello.split_at(MAGIC.len());
    let (cluster_id, rest) = rest.split_at(16);
    let number = |at: usize| {
        rest[at..at + 8]
            .iter()
            .fold(0, |n: u64, byte| n << 8 | u64::from(*byte))
    };
    let (from, to) = (number(0), number(8));
    if magic != MAGIC {
        return Err(HandshakeError::Protocol);
    }
    if !bool::from(cluster_id.ct_eq(&me.cluster_id)) {
        return Err(HandshakeError::Cluster);
    }
    if to != me.node {
        return Err(HandshakeError::Target {
            wanted: to,
            here: me.node,
        });
    }
    if from == me.node || !is_member(from) {
        return Err(HandshakeError::Stranger(from));
    }
    Ok(from)
}

fn check(given: &[u8; MAC], right: &[u8; MAC]) -> Result<(), HandshakeError> {
    if bool::from(given.ct_eq(right)) {
        Ok(())
    } else {
        Err(HandshakeError::Proof)
    }
}

async fn read<const N: usize, S: AsyncRead + Unpin>(stream: &mut S) -> Result<[u8; N], HandshakeError> {
    let mut frame = [0; N];
    stream.read_exact(&mut frame).await?;
    Ok(frame)
}

async fn within<T>(handshake: impl Future<Output = Result<T, HandshakeError>>) -> Result<T, HandshakeError> {
    tokio::time::timeout(TIMEOUT, handshake)
        .await
        .unwrap_or(Err(HandshakeError::Timeout))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::io::duplex;

    use super::*;
    use crate::clock::Clock;

    fn node(secret: u8, id: u64) -> Identity {
        Identity::new(&Secrets::derive(&[secret; 32]), id, IdSource::new(Clock::system()))
    }

    /// Both results of a handshake; dropping a side's stream tells the other.
    async fn shake(
        dialler: &Identity,
        target: u64,
        listener: &Identity,
    ) -> (Result<(), HandshakeError>, Result<u64, HandshakeError>) {
        let (mut near, mut far) = duplex(1024);
        let dialling = async move { dial(&mut near, dialler, target).await };
        let listening = async move { accept(&mut far, listener, |id| id <= 3).await };
        tokio::join!(dialling, listening)
    }

    #[tokio::test]
    async fn nodes_of_a_cluster_know_each_other() {
        let (near, far) = shake(&node(1, 1), 2, &node(1, 2)).await;
        near.unwrap();
        assert_eq!(far.unwrap(), 1);
    }

    #[tokio::test]
    async fn another_secret_is_another_cluster() {
        let (near, far) = shake(&node(9, 1), 2, &node(1, 2)).await;
        assert!(matches!(far, Err(HandshakeError::Cluster)), "{far:?}");
        assert!(matches!(near, Err(HandshakeError::HungUp)), "{near:?}");
    }

    #[tokio::test]
    async fn a_cluster_id_without_its_secret_is_refused_by_both_sides() {
        let thief = Identity {
            key: [0; 32],
            ..node(1, 1)
        };
        let (near, far) = shake(&thief, 2, &node(1, 2)).await;
        assert!(matches!(near, Err(HandshakeError::Proof)), "{near:?}");
        assert!(far.is_err());
        // A thief that does not check the listener fails at its own proof.
        let listener = node(1, 2);
        let (mut near, mut far) = duplex(1024);
        let dialling = async move {
            near.write_all(&encode_hello(&thief, 2)).await.unwrap();
            let _: [u8; NONCE + MAC] = read(&mut near).await.unwrap();
            near.write_all(&[7; MAC]).await.unwrap();
        };
        let (_, far) = tokio::join!(dialling, async { accept(&mut far, &listener, |_| true).await });
        assert!(matches!(far, Err(HandshakeError::Proof)), "{far:?}");
    }

    #[tokio::test]
    async fn wrong_nodes_are_refused() {
        let (_, far) = shake(&node(1, 1), 3, &node(1, 2)).await;
        assert!(
            matches!(far, Err(HandshakeError::Target { wanted: 3, here: 2 })),
            "{far:?}"
        );
        let (_, far) = shake(&node(1, 4), 2, &node(1, 2)).await;
        assert!(matches!(far, Err(HandshakeError::Stranger(4))), "{far:?}");
        let (_, far) = shake(&node(1, 2), 2, &node(1, 2)).await;
        assert!(matches!(far, Err(HandshakeError::Stranger(2))), "{far:?}");
    }

    #[tokio::test]
    async fn a_recorded_handshake_does_not_work_again() {
        let (dialler, listener) = (node(1, 1), node(1, 2));
        let hello = encode_hello(&dialler, 2);
        let mut recorded: Option<[u8; MAC]> = None;
        for round in 0..2 {
            let (mut near, mut far) = duplex(1024);
            let (dialler, hello) = (&dialler, &hello);
            let replay = recorded;
            let dialling = async move {
                near.write_all(hello).await.unwrap();
                let nonce: [u8; NONCE] = read(&mut near).await.unwrap();
                let _: [u8; MAC] = read(&mut near).await.unwrap();
                let proof = replay.unwrap_or_else(|| dialler.mac(DIALLER, hello, &nonce));
                near.write_all(&proof).await.unwrap();
                // Open until the listener has answered.
                (proof, near)
            };
            let ((proof, _near), result) =
                tokio::join!(dialling, async { accept(&mut far, &listener, |_| true).await });
            assert_eq!(result.is_ok(), round == 0, "round {round}: {result:?}");
            recorded = Some(proof);
        }
    }

    #[tokio::test]
    async fn a_reflected_proof_does_not_work() {
        let (dialler, listener) = (node(1, 1), node(1, 2));
        let (mut near, mut far) = duplex(1024);
        let dialling = async move {
            near.write_all(&encode_hello(&dialler, 2)).await.unwrap();
            let _: [u8; NONCE] = read(&mut near).await.unwrap();
            let theirs: [u8; MAC] = read(&mut near).await.unwrap();
            near.write_all(&theirs).await.unwrap();
        };
        let (_, result) = tokio::join!(dialling, async { accept(&mut far, &listener, |_| true).await });
        assert!(matches!(result, Err(HandshakeError::Proof)), "{result:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_in_time() {
        let (mut near, mut far) = duplex(1024);
        let listener = node(1, 2);
        let result = accept(&mut far, &listener, |_| true).await;
        assert!(matches!(result, Err(HandshakeError::Timeout)), "{result:?}");
        let result = dial(&mut near, &node(1, 1), 2).await;
        assert!(matches!(result, Err(HandshakeError::Timeout)), "{result:?}");
    }

    #[tokio::test]
    async fn another_protocol_is_refused_by_its_first_bytes() {
        let (mut near, mut far) = duplex(1024);
        let listener = node(1, 2);
        near.write_all(&[b'G'; HELLO]).await.unwrap();
        let result = accept(&mut far, &listener, |_| true).await;
        assert!(matches!(result, Err(HandshakeError::Protocol)), "{result:?}");
    }
}
