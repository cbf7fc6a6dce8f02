//! Verification of webhook calls, for their receivers.
//!
//! Every call carries three signatures of the same bytes:
//!
//! | header | form | key |
//! |---|---|---|
//! | `webhook-signature` | [Standard Webhooks] | the secret of the URL, `whsec_…`: [`crate::Webhook::secret`] |
//! | `X-Abbababa-Signature` | `t=<seconds>,v1=<hex>` | the same |
//! | `Upstash-Signature` | JSON Web Token, HS256 | the team's current signing key, `sig_…`: [`crate::Agentpost::signing_keys`] |
//!
//! One of them is enough. A [`Verifier`] checks all for which it was given keys.
//!
//! A receiver must verify the bytes that came, before a JSON parser has changed them, and should remember the ids that
//! it has handled: a call may be repeated, always under the same id.
//!
//! ```
//! use agentpost::verify::Verifier;
//! # use std::collections::{HashMap, HashSet};
//!
//! # fn handle(_event: &[u8]) {}
//! /// The status to answer with.
//! fn receive(verifier: &Verifier, seen: &mut HashSet<String>, headers: &HashMap<String, String>, body: &[u8]) -> u16 {
//!     match verifier.verify(|name| headers.get(name).map(String::as_str), body) {
//!         Ok(call) => {
//!             if seen.insert(call.id) {
//!                 handle(body);
//!             }
//!             200
//!         }
//!         Err(_forged) => 401,
//!     }
//! }
//!
//! # fn main() -> Result<(), agentpost::verify::Invalid> {
//! let verifier = Verifier::new()
//!     .secret("whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD")?
//!     .signing_keys("sig_4kUQz3gXsVeqUCjUtmBAXaVp", "sig_7mQp2sVrAtYwCfLmDbEhJkRn");
//! # let mut seen = HashSet::new();
//! # assert_eq!(receive(&verifier, &mut seen, &HashMap::new(), b"{}"), 401);
//! # Ok(())
//! # }
//! ```
//!
//! [Standard Webhooks]: https://www.standardwebhooks.com

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

/// How far a signature's time may be from the receiver's, in the past or the future: both clocks may be wrong, and a
/// network may be slow.
pub const TOLERANCE: Duration = Duration::from_secs(5 * 60);
/// A token names its own end, so only the difference of two clocks is tolerated.
const CLOCK_SKEW_S: u64 = 5;
/// Other encoders may or may not pad.
const BASE64URL: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Why a call is not genuine, or cannot be verified.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// The call lacks a header that the verifier has a key for.
    #[error("the header {0} is missing")]
    Missing(&'static str),
    /// The header is not of the documented form.
    #[error("{0} is malformed")]
    Malformed(&'static str),
    /// None of the verifier's keys made the signature, or the body was changed.
    #[error("{0} does not match")]
    Mismatch(&'static str),
    /// Its time is more than [`TOLERANCE`] from now: an old call that is repeated by somebody else, or a wrong clock.
    #[error("{0} is not valid at this time")]
    Time(&'static str),
    /// The secret is not `whsec_` and Base64.
    #[error("the secret is not of the form whsec_…")]
    Secret,
    /// The verifier was given no key.
    #[error("no secret and no signing key to verify with")]
    NoKey,
}

/// A genuine call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// The delivery's id, `dlv_…`: the same whenever the call is repeated.
    pub id: String,
}

/// Checks calls with the keys that it was given.
#[derive(Debug, Clone, Default)]
pub struct Verifier {
    secrets: Vec<String>,
    signing_keys: Vec<String>,
    url: Option<String>,
}

impl Verifier {
    /// A verifier without keys.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the secret of a URL: `webhook-signature` is checked, and `X-Abbababa-Signature` if the call has it. With
    /// several secrets, of several URLs, one must match.
    ///
    /// # Errors
    /// [`Invalid::Secret`] if it is not of the form `whsec_…`.
    pub fn secret(mut self, secret: &str) -> Result<Self, Invalid> {
        decoded(secret)?;
        self.secrets.push(secret.to_owned());
        Ok(self)
    }

    /// Sets the team's signing keys: `Upstash-Signature` is checked with the current one, then with the next, so the
    /// verifier still works after one rotation.
    pub fn signing_keys(mut self, current: &str, next: &str) -> Self {
        self.signing_keys = vec![current.to_owned(), next.to_owned()];
        self
    }

    /// Accepts an `Upstash-Signature` only if it was made for this URL, exactly as it was registered.
    pub fn url(mut self, url: &str) -> Self {
        self.url = Some(url.to_owned());
        self
    }

    /// Verifies a call. `header` returns a header's value by its name in lower case.
    ///
    /// # Errors
    /// [`Invalid`] tells why the call is not genuine; answer it with 401.
    pub fn verify<'h>(&self, header: impl Fn(&str) -> Option<&'h str>, body: &[u8]) -> Result<Verified, Invalid> {
        #[expect(
            clippy::disallowed_methods,
            reason = "jiff would be a dependency for this line alone"
        )]
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.verify_at(now.as_secs(), header, body)
    }

    /// [`Verifier::verify`] at a given time, in seconds since 1970.
    ///
    /// # Errors
    /// See [`Verifier::verify`].
    pub fn verify_at<'h>(
        &self,
        now_s: u64,
        header: impl Fn(&str) -> Option<&'h str>,
        body: &[u8],
    ) -> Result<Verified, Invalid> {
        let needed = |name: &'static str| header(name).ok_or(Invalid::Missing(name));
        if self.secrets.is_empty() && self.signing_keys.is_empty() {
            return Err(Invalid::NoKey);
        }
        let id = if self.secrets.is_empty() {
            needed("upstash-message-id")?
        } else {
            needed("webhook-id")?
        };
        if !self.secrets.is_empty() {
            let headers = StandardHeaders {
                id,
                timestamp: needed("webhook-timestamp")?,
                signature: needed("webhook-signature")?,
            };
            any(&self.secrets, |secret| standard_webhooks(secret, now_s, headers, body))?;
            if let Some(signature) = header("x-abbababa-signature") {
                any(&self.secrets, |secret| abbababa(secret, now_s, signature, body))?;
            }
        }
        if !self.signing_keys.is_empty() {
            let token = needed("upstash-signature")?;
            any(&self.signing_keys, |key| {
                upstash(key, now_s, token, self.url.as_deref(), body)
            })?;
        }
        Ok(Verified { id: id.to_owned() })
    }
}

/// The first success, else the last failure.
fn any(keys: &[String], mut check: impl FnMut(&str) -> Result<(), Invalid>) -> Result<(), Invalid> {
    let mut last = Err(Invalid::NoKey);
    for key in keys {
        last = check(key);
        if last.is_ok() {
            break;
        }
    }
    last
}

/// The headers of Standard Webhooks.
#[derive(Debug, Clone, Copy)]
pub struct StandardHeaders<'a> {
    /// The value of `webhook-id`.
    pub id: &'a str,
    /// The value of `webhook-timestamp`.
    pub timestamp: &'a str,
    /// The value of `webhook-signature`, which may hold several signatures.
    pub signature: &'a str,
}

/// Verifies a signature of Standard Webhooks at `now_s`, in seconds since 1970.
///
/// # Errors
/// [`Invalid`], except [`Invalid::Missing`] and [`Invalid::NoKey`].
pub fn standard_webhooks(secret: &str, now_s: u64, headers: StandardHeaders<'_>, body: &[u8]) -> Result<(), Invalid> {
    const NAME: &str = "webhook-signature";
    let StandardHeaders {
        id,
        timestamp,
        signature,
    } = headers;
    let key = decoded(secret)?;
    timely(NAME, timestamp, now_s)?;
    let mac = keyed(&key, &[id.as_bytes(), b".", timestamp.as_bytes(), b".", body]);
    let ours = signature.split(' ').filter_map(|one| one.strip_prefix("v1,"));
    let mut candidates = ours.filter_map(|text| STANDARD.decode(text).ok()).peekable();
    if candidates.peek().is_none() {
        return Err(Invalid::Malformed(NAME));
    }
    if candidates.any(|candidate| mac.clone().verify_slice(&candidate).is_ok()) {
        Ok(())
    } else {
        Err(Invalid::Mismatch(NAME))
    }
}

/// Verifies the value of `X-Abbababa-Signature`, `t=<seconds>,v1=<hex>`, at `now_s`, in seconds since 1970. Its key is
/// the text of the secret, `whsec_` included.
///
/// # Errors
/// [`Invalid`], except [`Invalid::Missing`] and [`Invalid::NoKey`].
pub fn abbababa(secret: &str, now_s: u64, signature: &str, body: &[u8]) -> Result<(), Invalid> {
    const NAME: &str = "x-abbababa-signature";
    let part = |name: &str| signature.split(',').find_map(|part| part.trim().strip_prefix(name));
    let (Some(time), Some(digest)) = (part("t="), part("v1=")) else {
        return Err(Invalid::Malformed(NAME));
    };
    timely(NAME, time, now_s)?;
    let digest = hex::decode(digest).map_err(|_| Invalid::Malformed(NAME))?;
    let mac = keyed(secret.as_bytes(), &[time.as_bytes(), b".", body]);
    mac.verify_slice(&digest).map_err(|_| Invalid::Mismatch(NAME))
}

#[derive(Deserialize)]
struct Head {
    alg: String,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    #[serde(default)]
    sub: Option<String>,
    exp: u64,
    nbf: u64,
    body: String,
}

/// Verifies the value of `Upstash-Signature` at `now_s`, in seconds since 1970: a JSON Web Token (HS256) whose key is
/// the text of a signing key. It names the hash of the body, its own end, and the URL, which is compared if one is
/// given.
///
/// # Errors
/// [`Invalid`], except [`Invalid::Missing`], [`Invalid::Secret`] and [`Invalid::NoKey`].
pub fn upstash(key: &str, now_s: u64, token: &str, url: Option<&str>, body: &[u8]) -> Result<(), Invalid> {
    const NAME: &str = "upstash-signature";
    let malformed = || Invalid::Malformed(NAME);
    let bytes = |text: &str| BASE64URL.decode(text).map_err(|_| malformed());
    let mut parts = token.split('.');
    let (Some(head), Some(claims), Some(signature), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(malformed());
    };
    // The algorithm is fixed: a token that names another one, or none, is not ours. (The crate jsonwebtoken computes
    // HS256 only together with RSA and elliptic curves, or with a second crypto library.)
    let algorithm: Head = serde_json::from_slice(&bytes(head)?).map_err(|_| malformed())?;
    if algorithm.alg != "HS256" {
        return Err(malformed());
    }
    let mac = keyed(key.as_bytes(), &[head.as_bytes(), b".", claims.as_bytes()]);
    mac.verify_slice(&bytes(signature)?)
        .map_err(|_| Invalid::Mismatch(NAME))?;
    let claims: Claims = serde_json::from_slice(&bytes(claims)?).map_err(|_| malformed())?;
    if claims.nbf > now_s.saturating_add(CLOCK_SKEW_S) || claims.exp.saturating_add(CLOCK_SKEW_S) < now_s {
        return Err(Invalid::Time(NAME));
    }
    let hash = bytes(&claims.body)?;
    // The signature covers what follows, so the time that these comparisons take tells an attacker nothing.
    let meant = claims.iss == "Upstash" && hash == Sha256::digest(body).as_slice();
    if !meant || url.is_some_and(|url| claims.sub.as_deref() != Some(url)) {
        return Err(Invalid::Mismatch(NAME));
    }
    Ok(())
}

fn decoded(secret: &str) -> Result<Vec<u8>, Invalid> {
    let text = secret.strip_prefix("whsec_").ok_or(Invalid::Secret)?;
    let key = STANDARD.decode(text).map_err(|_| Invalid::Secret)?;
    if key.is_empty() { Err(Invalid::Secret) } else { Ok(key) }
}

fn timely(name: &'static str, time: &str, now_s: u64) -> Result<(), Invalid> {
    let time_s: u64 = time.parse().map_err(|_| Invalid::Malformed(name))?;
    if time_s.abs_diff(now_s) > TOLERANCE.as_secs() {
        return Err(Invalid::Time(name));
    }
    Ok(())
}

/// An HMAC over the parts; `verify_slice` compares in constant time.
fn keyed(key: &[u8], parts: &[&[u8]]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    for part in parts {
        mac.update(part);
    }
    mac
}

#[cfg(test)]
mod tests;
