//! Keys derived from the cluster secret, and the creation of API keys.
//!
//! The secret is 32 random bytes, the same on every node. HKDF-SHA256 derives one key per purpose from it, so that no
//! two purposes share a key and every node derives the same keys.

use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use agentpost_proto::id::{KeyId, TeamId};
use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use crate::base::clock::IdSource;

/// Bytes of the cluster secret.
pub const SECRET_BYTES: usize = 32;

/// Keys derived from the cluster secret.
pub struct Secrets {
    /// Identifies the cluster. A node with another secret has another id and is refused.
    pub cluster_id: [u8; 16],
    /// The HMAC state after its key was absorbed, which saves two hash blocks per request.
    pepper: Hmac<Sha256>,
    cursor: [u8; 32],
    peer: [u8; 32],
    endpoint_secrets: Hmac<Sha256>,
    signing_keys: Hmac<Sha256>,
    login_keys: Hmac<Sha256>,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secrets(cluster {})", hex::encode(self.cluster_id))
    }
}

impl Secrets {
    /// Derives all keys from the cluster secret.
    pub fn derive(secret: &[u8; SECRET_BYTES]) -> Self {
        let hkdf = Hkdf::<Sha256>::new(Some(b"agentpost"), secret);
        Secrets {
            cluster_id: expand(&hkdf, b"cluster-id/v1"),
            pepper: keyed(&expand(&hkdf, b"key-hash/v1")),
            cursor: expand(&hkdf, b"cursor/v1"),
            peer: expand(&hkdf, b"peer/v1"),
            endpoint_secrets: keyed(&expand(&hkdf, b"endpoint-secret/v1")),
            signing_keys: keyed(&expand(&hkdf, b"signing-key/v1")),
            login_keys: keyed(&expand(&hkdf, b"login-key/v1")),
        }
    }

    /// Reads the secret file: exactly 32 bytes, in a file that only its owner may read.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let bytes = std::fs::read(path).with_context(|| format!("cluster.secret_file {}", path.display()))?;
        let mode = std::fs::metadata(path)?.permissions().mode();
        anyhow::ensure!(
            mode & 0o077 == 0,
            "cluster.secret_file {} can be read by others (mode {:o}); run: chmod 600 {0}",
            path.display(),
            mode & 0o777
        );
        let secret: [u8; SECRET_BYTES] = bytes.try_into().map_err(|bytes: Vec<u8>| {
            anyhow::anyhow!(
                "cluster.secret_file {} has {} bytes instead of {SECRET_BYTES}",
                path.display(),
                bytes.len()
            )
        })?;
        Ok(Self::derive(&secret))
    }

    /// The stored form of an API key: an HMAC of the whole presented text, in any format.
    pub fn key_hash(&self, presented: &str) -> [u8; 32] {
        let mut mac = self.pepper.clone();
        mac.update(presented.as_bytes());
        mac.finalize().into_bytes().into()
    }

    /// The team key of a device code. Every node derives the same key, so no node stores it.
    pub fn login_key(&self, device_code: &str) -> String {
        let mut mac = self.login_keys.clone();
        mac.update(device_code.as_bytes());
        let bytes: [u8; 32] = mac.finalize().into_bytes().into();
        format!("kite_{}_{}", hex::encode(&bytes[..4]), hex::encode(&bytes[4..20]))
    }

    /// The key that signs list cursors.
    pub fn cursor_key(&self) -> &[u8; 32] {
        &self.cursor
    }

    /// The secret that verifies an endpoint's deliveries: `whsec_` and the base64 of 32 bytes. It is derived, so
    /// neither the log nor a snapshot holds it.
    pub fn endpoint_secret(&self, team: TeamId, generation: u64) -> String {
        format!(
            "whsec_{}",
            STANDARD.encode(derive(&self.endpoint_secrets, team, generation))
        )
    }

    /// Signing key `number` of a team, `sig_<40 hex>`. The current one signs all deliveries of the team.
    pub fn signing_key(&self, team: TeamId, number: u64) -> String {
        let bytes = derive(&self.signing_keys, team, number);
        format!("sig_{}", hex::encode(&bytes[..20]))
    }

    /// The key with which nodes authenticate each other.
    pub fn peer_key(&self) -> &[u8; 32] {
        &self.peer
    }
}

fn expand<const N: usize>(hkdf: &Hkdf<Sha256>, purpose: &[u8]) -> [u8; N] {
    let mut key = [0; N];
    // HKDF-SHA256 fails only for outputs beyond 8,160 bytes.
    hkdf.expand(purpose, &mut key).expect("a short output");
    key
}

fn derive(under: &Hmac<Sha256>, team: TeamId, number: u64) -> [u8; 32] {
    let mut mac = under.clone();
    mac.update(&team.0);
    mac.update(&number.to_be_bytes());
    mac.finalize().into_bytes().into()
}

/// An HMAC-SHA256 under `key`.
pub fn keyed(key: &[u8; 32]) -> Hmac<Sha256> {
    // HMAC takes keys of any length.
    Hmac::new_from_slice(key).expect("any length is a key")
}

/// A new API key. `api_key` is shown once; only the id and the prefix are stored, beside its hash.
#[derive(Clone)]
pub struct NewKey {
    pub id: KeyId,
    /// The secret.
    pub api_key: String,
    /// The start of the key, enough to recognise it in a list.
    pub prefix: String,
}

impl NewKey {
    /// A team key, `kite_<8 hex>_<32 hex>`.
    pub fn team(ids: &IdSource) -> Self {
        Self::make(ids, "kite", &ids.random::<16>())
    }

    /// A key bound to an agent, `aba_<8 hex>_<40 hex>`.
    pub fn agent(ids: &IdSource) -> Self {
        Self::make(ids, "aba", &ids.random::<20>())
    }

    fn make(ids: &IdSource, kind: &str, secret: &[u8]) -> Self {
        let prefix = format!("{kind}_{}", hex::encode(ids.random::<4>()));
        let api_key = format!("{prefix}_{}", hex::encode(secret));
        NewKey {
            id: KeyId(ids.random()),
            api_key,
            prefix,
        }
    }
}

/// The prefix of a key: all but its last, secret part.
pub fn prefix_of(api_key: &str) -> String {
    api_key
        .rsplit_once('_')
        .map_or_else(String::new, |(prefix, _)| prefix.to_owned())
}

/// Writes a file that only its owner may read. After a crash the file is either complete or as it was before.
pub fn write_private(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let directory = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let mut staged = path.as_os_str().to_owned();
    staged.push(".tmp");
    let write = || {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&staged)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&staged, path)?;
        std::fs::File::open(directory)?.sync_all()
    };
    write().with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::base::clock::Clock;

    #[test]
    fn purposes_have_different_keys_and_secrets_different_clusters() {
        let one = Secrets::derive(&[1; 32]);
        let two = Secrets::derive(&[2; 32]);
        assert_ne!(one.cursor_key(), one.peer_key());
        assert_ne!(one.cluster_id, two.cluster_id);
        assert_ne!(one.key_hash("kite_x"), two.key_hash("kite_x"));
        assert_eq!(one.key_hash("kite_x"), Secrets::derive(&[1; 32]).key_hash("kite_x"));
        assert_ne!(one.key_hash("kite_x"), one.key_hash("kite_y"));
    }

    #[test]
    fn derived_secrets_differ_by_purpose_team_number_and_cluster() {
        let (one, two) = (Secrets::derive(&[1; 32]), Secrets::derive(&[2; 32]));
        let (a, b) = (TeamId([1; 16]), TeamId([2; 16]));
        let all = [
            one.endpoint_secret(a, 1),
            one.endpoint_secret(a, 2),
            one.endpoint_secret(b, 1),
            two.endpoint_secret(a, 1),
            one.signing_key(a, 1),
            one.signing_key(a, 2),
            one.signing_key(b, 1),
            two.signing_key(a, 1),
        ];
        assert_eq!(all.iter().collect::<std::collections::BTreeSet<_>>().len(), all.len());
        assert_eq!(all[0], Secrets::derive(&[1; 32]).endpoint_secret(a, 1));
        let bytes = STANDARD.decode(all[0].strip_prefix("whsec_").unwrap()).unwrap();
        assert_eq!(bytes.len(), 32);
        let digits = all[4].strip_prefix("sig_").unwrap();
        assert!(digits.len() == 40 && digits.bytes().all(|b| b.is_ascii_hexdigit()));
    }

    #[test]
    fn keys_have_the_published_formats() {
        let ids = IdSource::new(Clock::system());
        let team = NewKey::team(&ids);
        let parts: Vec<_> = team.api_key.split('_').map(str::len).collect();
        assert_eq!(parts, [4, 8, 32]);
        assert!(team.api_key.starts_with(&team.prefix));
        let parts: Vec<_> = NewKey::agent(&ids).api_key.split('_').map(str::len).collect();
        assert_eq!(parts, [3, 8, 40]);
    }

    #[test]
    fn a_secret_file_must_be_private_and_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        write_private(&path, &[9; 32]).unwrap();
        assert_eq!(
            Secrets::load(&path).unwrap().cluster_id,
            Secrets::derive(&[9; 32]).cluster_id
        );
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(Secrets::load(&path).unwrap_err().to_string().contains("chmod 600"));
        write_private(&path, &[9; 31]).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(Secrets::load(&path).unwrap_err().to_string().contains("31 bytes"));
    }
}
