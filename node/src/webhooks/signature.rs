//! Signatures with which receivers verify a delivery. Pure functions of bytes and time; each attempt is signed anew.

use agentpost_proto::id::DeliveryId;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

/// How long a token is valid, in seconds.
const LIFETIME_S: u64 = 300;
/// How far `iat` is set back, in seconds: some receivers refuse a token issued in their future and allow no leeway.
const BACKDATED_S: u64 = 5;

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    sub: &'a str,
    exp: u64,
    nbf: u64,
    iat: u64,
    jti: &'a str,
    body: String,
}

/// The value of `Upstash-Signature`: a JWT under the text of `key`. `url` appears in it exactly as it was registered,
/// because receivers compare it letter by letter.
pub fn upstash(key: &str, url: &str, body: &[u8], now_s: u64, jti: &str) -> String {
    let claims = Claims {
        iss: "Upstash",
        sub: url,
        exp: now_s + LIFETIME_S,
        // 0 makes the token valid whatever the receiver's clock says.
        nbf: 0,
        iat: now_s.saturating_sub(BACKDATED_S),
        jti,
        body: URL_SAFE.encode(Sha256::digest(body)),
    };
    // Serializing strings and numbers cannot fail.
    let claims = serde_json::to_vec(&claims).unwrap_or_default();
    let mut token = URL_SAFE_NO_PAD.encode(br#"{"alg":"HS256","typ":"JWT"}"#);
    token.push('.');
    URL_SAFE_NO_PAD.encode_string(claims, &mut token);
    let signature = hmac(key.as_bytes(), &[token.as_bytes()]);
    token.push('.');
    URL_SAFE_NO_PAD.encode_string(signature, &mut token);
    token
}

/// A token id that no other attempt has.
pub fn token_id(delivery: DeliveryId, attempt_no: u32) -> String {
    format!("jwt_{}_{attempt_no}", hex::encode(delivery.0))
}

/// The value of `X-Abbababa-Signature`, under the text of `secret`.
pub fn abbababa(secret: &str, now_s: u64, body: &[u8]) -> String {
    let signature = hmac(secret.as_bytes(), &[now_s.to_string().as_bytes(), b".", body]);
    format!("t={now_s},v1={}", hex::encode(signature))
}

/// The value of `webhook-signature` (Standard Webhooks), under the bytes that `secret` encodes.
pub fn standard(secret: &str, id: &str, now_s: u64, body: &[u8]) -> String {
    let text = secret.strip_prefix("whsec_").unwrap_or(secret);
    // All our secrets decode.
    let key = STANDARD.decode(text).unwrap_or_else(|_| text.as_bytes().to_vec());
    let signature = hmac(&key, &[id.as_bytes(), b".", now_s.to_string().as_bytes(), b".", body]);
    format!("v1,{}", STANDARD.encode(signature))
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    // HMAC takes keys of any length.
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("any length is a key");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const NOW: u64 = 1_770_906_600;

    fn decoded(part: &str) -> Value {
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
    }

    #[test]
    fn the_token_has_seven_claims_and_the_url_as_registered() {
        let url = "https://H.example/a?b=%7E&ä=\"";
        let token = upstash("sig_k", url, b"{}", NOW, "jwt_1");
        let parts: Vec<_> = token.split('.').collect();
        assert_eq!(decoded(parts[0]), json!({"alg": "HS256", "typ": "JWT"}));
        assert_eq!(
            decoded(parts[1]),
            json!({
                "iss": "Upstash", "sub": url, "exp": NOW + 300, "nbf": 0, "iat": NOW - 5, "jti": "jwt_1",
                "body": "RBNvo1WzZ4oRRq0W9-hknpT7T8If536DEMBg9hyq_4o=",
            })
        );
        let signed = token.rsplit_once('.').unwrap().0;
        assert_eq!(
            URL_SAFE_NO_PAD.decode(parts[2]).unwrap(),
            hmac(b"sig_k", &[signed.as_bytes()])
        );
    }

    #[test]
    fn each_attempt_has_a_token_id_of_its_own() {
        let (one, two) = (DeliveryId([1; 16]), DeliveryId([2; 16]));
        let ids = [token_id(one, 1), token_id(one, 2), token_id(two, 1), token_id(two, 11)];
        assert_eq!(ids.iter().collect::<std::collections::BTreeSet<_>>().len(), ids.len());
    }

    #[test]
    fn hmac_is_the_published_one() {
        // RFC 4231, test case 2.
        assert_eq!(
            hex::encode(hmac(b"Jefe", &[b"what do ya want ", b"for nothing?"])),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }

    #[test]
    fn the_library_of_receivers_verifies_the_standard_signature() {
        let secret = format!("whsec_{}", STANDARD.encode([7; 32]));
        let verifier = standardwebhooks::Webhook::new(&secret).unwrap();
        let body = "{\"ä\":1}";
        assert_eq!(
            standard(&secret, "dlv_1", NOW, body.as_bytes()),
            verifier.sign("dlv_1", NOW as i64, body.as_bytes()).unwrap()
        );
    }

    #[test]
    fn the_house_signature_covers_time_and_body() {
        let text = abbababa("whsec_x", NOW, b"body");
        let expected = hex::encode(hmac(b"whsec_x", &[b"1770906600.body"]));
        assert_eq!(text, format!("t=1770906600,v1={expected}"));
    }
}
