//! The peer handshake: two nodes prove to each other that they hold the cluster secret, before the first byte of
//! HTTP/2.
//!
//! ```text
//! dialling node                                    listening node
//!   HELLO      magic | cluster | from | to | life a | nonce a  ──►   right cluster? am I `to`?
//!   ◄──  CHALLENGE   nonce b | life b | MAC("listener", transcript)
//!   right MAC? is life b the one I remember?
//!   PROOF      verdict a | MAC("dialler", transcript, verdict a)  ──►   right MAC?
//!                                                                       is `from` admitted, and life a the one I remember?
//!   ◄──  ANSWER      verdict b | MAC("answer", transcript, verdict b)
//! ```
//!
//! The transcript is the whole HELLO, nonce b and life b, so a MAC is valid for one cluster, one pair of nodes, one
//! direction and one connection: it can be neither replayed nor reflected. The listening node proves itself first.
//! Frames have fixed lengths, so no length from a stranger causes an allocation. Both sides give up after [`TIMEOUT`].
//! Bytes after the handshake are neither encrypted nor authenticated: until there is TLS, the peer port belongs on
//! loopback or a trusted network.
//!
//! A verdict is sent only to a node that has proven itself, and a MAC covers it, so a wiped node can believe the
//! verdict and enter quarantine ([`super::lives`]). Each side stores the other's life on disk before it sends its
//! verdict.

use std::time::Duration;

use hmac::Mac as _;
use subtle::ConstantTimeEq as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::lives::Lives;
use crate::base::clock::IdSource;
use crate::base::owner::Life;
use crate::base::secrets::{Secrets, keyed};

/// Time limit for the whole handshake.
pub const TIMEOUT: Duration = Duration::from_secs(5);

const MAGIC: &[u8; 16] = b"agentpost peer 2";
const NONCE: usize = 32;
const LIFE: usize = size_of::<Life>();
const MAC: usize = 32;
const HELLO: usize = MAGIC.len() + 16 + 8 + 8 + LIFE + NONCE;
const CHALLENGE: usize = NONCE + LIFE;

/// Verdicts, as bytes on the wire.
const WELCOME: u8 = 1;
const OTHER_LIFE: u8 = 2;
const NOT_ADMITTED: u8 = 3;

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The connection broke or could not be opened.
    #[error("connection: {0}")]
    Io(std::io::Error),
    /// The other side closed the connection in the middle of the handshake.
    #[error("the other side hung up: it has another cluster secret or is another node")]
    HungUp,
    /// The time limit passed.
    #[error("no answer within {TIMEOUT:?}")]
    Timeout,
    /// The other side is no peer, or one of another protocol version.
    #[error("the other side does not speak this protocol")]
    Protocol,
    /// The other side has another cluster id, hence another secret.
    #[error("the other side belongs to another cluster (another cluster secret)")]
    Cluster,
    /// The other side dialled this address to reach another node.
    #[error("the other side looks for node {wanted}, this is node {here}")]
    Target {
        /// The id that it dialled.
        wanted: u64,
        /// The id of this node.
        here: u64,
    },
    /// The other side's id is not a member, or is this node's own.
    #[error("node {0} is not a member of this cluster")]
    Stranger(u64),
    /// The other side says that this node is not a member.
    #[error("node {0} says that this node is not a member, or was removed")]
    NotAdmitted(u64),
    /// The other side has another data directory than the one remembered for its id.
    #[error("node {0} comes back without the data that it had; it must join again: agentpost node rejoin")]
    OtherLife(u64),
    /// The other side says the same of this node.
    #[error("node {0} says that this node comes back without the data that it had")]
    Replaced(u64),
    /// The other side's life could not be stored.
    #[error("storing the other node's life: {0}")]
    Memory(String),
    /// The other side does not hold the cluster secret.
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

/// What this node proves to others: its id, its cluster and its life.
#[derive(Clone)]
pub struct Identity {
    cluster_id: [u8; 16],
    node: u64,
    key: [u8; 32],
    lives: Lives,
    ids: IdSource,
}

impl Identity {
    /// The identity of node `node` in the cluster of these secrets.
    pub fn new(secrets: &Secrets, node: u64, lives: Lives, ids: IdSource) -> Self {
        Identity {
            cluster_id: secrets.cluster_id,
            node,
            key: *secrets.peer_key(),
            lives,
            ids,
        }
    }

    /// The id of this node.
    pub fn node(&self) -> u64 {
        self.node
    }

    fn mac(&self, role: &[u8; 8], transcript: &Transcript, verdict: &[u8]) -> [u8; MAC] {
        let mut mac = keyed(&self.key);
        mac.update(b"peer/v2 ");
        mac.update(role);
        mac.update(&transcript.hello);
        mac.update(&transcript.challenge);
        mac.update(verdict);
        mac.finalize().into_bytes().into()
    }

    /// The verdict on node `id` with life `life`.
    async fn verdict(&self, id: u64, life: Life) -> Result<u8, HandshakeError> {
        match self.lives.meet(id, life).await {
            Ok(true) => Ok(WELCOME),
            Ok(false) => Ok(OTHER_LIFE),
            Err(error) => Err(HandshakeError::Memory(format!("{error:#}"))),
        }
    }
}

const LISTENER: &[u8; 8] = b"listener";
const DIALLER: &[u8; 8] = b"dialler ";
const ANSWER: &[u8; 8] = b"answer  ";

/// The bytes that every MAC of a handshake covers.
struct Transcript {
    hello: [u8; HELLO],
    challenge: [u8; CHALLENGE],
}

/// The dialling side. Returns once `target` has proven itself and accepted this node.
pub async fn dial<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    me: &Identity,
    target: u64,
) -> Result<(), HandshakeError> {
    within(async {
        let hello = encode_hello(me, target);
        stream.write_all(&hello).await?;
        let challenge: [u8; CHALLENGE] = read(stream).await?;
        let proof: [u8; MAC] = read(stream).await?;
        let transcript = Transcript { hello, challenge };
        check(&proof, &me.mac(LISTENER, &transcript, &[]))?;
        let mine = me.verdict(target, life_at(&challenge, NONCE)).await?;
        say(stream, me, DIALLER, &transcript, mine).await?;
        if mine != WELCOME {
            return Err(HandshakeError::OtherLife(target));
        }
        match heard(stream, me, ANSWER, &transcript).await? {
            WELCOME => Ok(()),
            NOT_ADMITTED => Err(HandshakeError::NotAdmitted(target)),
            OTHER_LIFE => {
                me.lives.replaced(target);
                Err(HandshakeError::Replaced(target))
            }
            _ => Err(HandshakeError::Protocol),
        }
    })
    .await
}

/// The listening side. Returns the id of the other node, which has proven itself and is admitted.
pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    me: &Identity,
    admits: impl Fn(u64) -> bool,
) -> Result<u64, HandshakeError> {
    within(async {
        let hello: [u8; HELLO] = read(stream).await?;
        let (from, life) = check_hello(me, &hello)?;
        let mut challenge = [0; CHALLENGE];
        let nonce: [u8; NONCE] = me.ids.random();
        challenge[..NONCE].copy_from_slice(&nonce);
        challenge[NONCE..].copy_from_slice(&me.lives.mine());
        let transcript = Transcript { hello, challenge };
        stream.write_all(&challenge).await?;
        stream.write_all(&me.mac(LISTENER, &transcript, &[])).await?;
        match heard(stream, me, DIALLER, &transcript).await? {
            WELCOME => {}
            OTHER_LIFE => {
                me.lives.replaced(from);
                return Err(HandshakeError::Replaced(from));
            }
            _ => return Err(HandshakeError::Protocol),
        }
        let verdict = match admits(from) {
            true => me.verdict(from, life).await?,
            false => NOT_ADMITTED,
        };
        say(stream, me, ANSWER, &transcript, verdict).await?;
        match verdict {
            WELCOME => Ok(from),
            OTHER_LIFE => Err(HandshakeError::OtherLife(from)),
            _ => Err(HandshakeError::Stranger(from)),
        }
    })
    .await
}

async fn say<S: AsyncWrite + Unpin>(
    stream: &mut S,
    me: &Identity,
    role: &[u8; 8],
    transcript: &Transcript,
    verdict: u8,
) -> Result<(), HandshakeError> {
    let mut frame = [verdict; 1 + MAC];
    frame[1..].copy_from_slice(&me.mac(role, transcript, &[verdict]));
    Ok(stream.write_all(&frame).await?)
}

/// Reads the other side's verdict and checks its MAC.
async fn heard<S: AsyncRead + Unpin>(
    stream: &mut S,
    me: &Identity,
    role: &[u8; 8],
    transcript: &Transcript,
) -> Result<u8, HandshakeError> {
    let [verdict] = read(stream).await?;
    let proof: [u8; MAC] = read(stream).await?;
    check(&proof, &me.mac(role, transcript, &[verdict]))?;
    Ok(verdict)
}

fn life_at(frame: &[u8], at: usize) -> Life {
    let mut life = [0; LIFE];
    life.copy_from_slice(&frame[at..at + LIFE]);
    life
}

fn encode_hello(me: &Identity, target: u64) -> [u8; HELLO] {
    let mut hello = [0; HELLO];
    let nonce: [u8; NONCE] = me.ids.random();
    let fields: [&[u8]; 6] = [
        MAGIC,
        &me.cluster_id,
        &me.node.to_be_bytes(),
        &target.to_be_bytes(),
        &me.lives.mine(),
        &nonce,
    ];
    let mut rest = hello.as_mut_slice();
    for field in fields {
        let (place, after) = rest.split_at_mut(field.len());
        place.copy_from_slice(field);
        rest = after;
    }
    hello
}

fn check_hello(me: &Identity, hello: &[u8; HELLO]) -> Result<(u64, Life), HandshakeError> {
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
    if from == me.node {
        return Err(HandshakeError::Stranger(from));
    }
    Ok((from, life_at(rest, 16)))
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
    use crate::base::clock::Clock;

    fn node(secret: u8, id: u64) -> Identity {
        node_of_life(secret, id, id as u8)
    }

    fn node_of_life(secret: u8, id: u64, life: u8) -> Identity {
        let lives = Lives::in_memory([life; LIFE]);
        Identity::new(
            &Secrets::derive(&[secret; 32]),
            id,
            lives,
            IdSource::new(Clock::system()),
        )
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
        // A thief that does not check the listener fails at its own proof, whatever verdict it claims.
        let listener = node(1, 2);
        let (mut near, mut far) = duplex(1024);
        let dialling = async move {
            near.write_all(&encode_hello(&thief, 2)).await.unwrap();
            let _: [u8; CHALLENGE + MAC] = read(&mut near).await.unwrap();
            near.write_all(&[OTHER_LIFE; 1 + MAC]).await.unwrap();
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
        let (near, far) = shake(&node(1, 4), 2, &node(1, 2)).await;
        assert!(matches!(far, Err(HandshakeError::Stranger(4))), "{far:?}");
        assert!(matches!(near, Err(HandshakeError::NotAdmitted(2))), "{near:?}");
        let (_, far) = shake(&node(1, 2), 2, &node(1, 2)).await;
        assert!(matches!(far, Err(HandshakeError::Stranger(2))), "{far:?}");
    }

    #[tokio::test]
    async fn another_life_of_an_id_is_refused_by_both_sides_and_told_so() {
        let (dialler, listener) = (node(1, 1), node(1, 2));
        let (near, far) = shake(&dialler, 2, &listener).await;
        near.unwrap();
        far.unwrap();
        let wiped = node_of_life(1, 1, 77);
        let (near, far) = shake(&wiped, 2, &listener).await;
        assert!(matches!(near, Err(HandshakeError::Replaced(2))), "{near:?}");
        assert!(matches!(far, Err(HandshakeError::OtherLife(1))), "{far:?}");
        assert!(wiped.lives.until_replaced().await.contains("node 2"));
        let wiped = node_of_life(1, 2, 77);
        let (near, far) = shake(&dialler, 2, &wiped).await;
        assert!(matches!(near, Err(HandshakeError::OtherLife(2))), "{near:?}");
        assert!(matches!(far, Err(HandshakeError::Replaced(1))), "{far:?}");
        assert!(wiped.lives.until_replaced().await.contains("node 1"));
        // The refused node's life was not stored, and the known lives are unchanged.
        let (_, far) = shake(&node(1, 4), 2, &listener).await;
        far.unwrap_err();
        assert!(listener.lives.meet(4, [99; LIFE]).await.unwrap());
        let (near, far) = shake(&dialler, 2, &listener).await;
        near.unwrap();
        far.unwrap();
    }

    #[tokio::test]
    async fn a_verdict_is_believed_only_from_a_node_with_the_secret() {
        let (dialler, listener) = (node(1, 1), node(1, 2));
        let (mut near, mut far) = duplex(1024);
        let lying = async move {
            let hello: [u8; HELLO] = read(&mut far).await.unwrap();
            let challenge = [7; CHALLENGE];
            let transcript = Transcript { hello, challenge };
            far.write_all(&challenge).await.unwrap();
            far.write_all(&listener.mac(LISTENER, &transcript, &[])).await.unwrap();
            heard(&mut far, &listener, DIALLER, &transcript).await.unwrap();
            // An attacker on the wire changes the verdict, so the MAC is that of a welcome.
            let mut answer = [OTHER_LIFE; 1 + MAC];
            answer[1..].copy_from_slice(&listener.mac(ANSWER, &transcript, &[WELCOME]));
            far.write_all(&answer).await.unwrap();
        };
        let (result, ()) = tokio::join!(dial(&mut near, &dialler, 2), lying);
        assert!(matches!(result, Err(HandshakeError::Proof)), "{result:?}");
    }

    #[tokio::test]
    async fn a_recorded_handshake_does_not_work_again() {
        let (dialler, listener) = (node(1, 1), node(1, 2));
        let hello = encode_hello(&dialler, 2);
        let mut recorded: Option<[u8; 1 + MAC]> = None;
        for round in 0..2 {
            let (mut near, mut far) = duplex(1024);
            let (dialler, hello) = (&dialler, &hello);
            let replay = recorded;
            let dialling = async move {
                near.write_all(hello).await.unwrap();
                let challenge: [u8; CHALLENGE] = read(&mut near).await.unwrap();
                let _: [u8; MAC] = read(&mut near).await.unwrap();
                let hello = *hello;
                let mut fresh = [WELCOME; 1 + MAC];
                let transcript = Transcript { hello, challenge };
                fresh[1..].copy_from_slice(&dialler.mac(DIALLER, &transcript, &[WELCOME]));
                let proof = replay.unwrap_or(fresh);
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
            let _: [u8; CHALLENGE] = read(&mut near).await.unwrap();
            let theirs: [u8; MAC] = read(&mut near).await.unwrap();
            near.write_all(&[WELCOME]).await.unwrap();
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
