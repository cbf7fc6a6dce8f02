//! Published vectors, and what forgers try.
#![allow(clippy::unwrap_used)]

use super::*;

const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
const ID: &str = "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk";
const BODY: &[u8] = br#"{"email":"test@example.com","username":"test_user"}"#;
const AT: u64 = 1_649_367_553;
/// The vector of the Standard Webhooks libraries for the four constants above.
const SIGNATURE: &str = "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=";

fn headers<'a>(id: &'a str, timestamp: &'a str, signature: &'a str) -> StandardHeaders<'a> {
    StandardHeaders {
        id,
        timestamp,
        signature,
    }
}

fn standard(now_s: u64, time: &str, signatures: &str, body: &[u8]) -> Result<(), Invalid> {
    standard_webhooks(SECRET, now_s, headers(ID, time, signatures), body)
}

#[test]
fn the_vector_of_standard_webhooks_passes() {
    let time = AT.to_string();
    assert_eq!(standard(AT, &time, SIGNATURE, BODY), Ok(()));
    // Among signatures of other keys and other versions.
    let several = format!(
        "v1,Ceo5qEr07ixe2NLpvHk3FH9bwy/WavXrAFQ/9tdO6mc= v1a,x v2,{} {SIGNATURE}",
        &SIGNATURE[3..]
    );
    assert_eq!(standard(AT, &time, &several, BODY), Ok(()));
}

#[test]
fn a_standard_signature_of_something_else_fails() {
    let time = AT.to_string();
    let mismatch = Err(Invalid::Mismatch("webhook-signature"));
    assert_eq!(standard(AT, &time, SIGNATURE, b"{}"), mismatch);
    assert_eq!(standard(AT, &(AT + 1).to_string(), SIGNATURE, BODY), mismatch);
    let other_id = standard_webhooks(SECRET, AT, headers("msg_other", &time, SIGNATURE), BODY);
    assert_eq!(other_id, mismatch);
    let other_key = standard_webhooks("whsec_AAAA", AT, headers(ID, &time, SIGNATURE), BODY);
    assert_eq!(other_key, mismatch);
    // A prefix of the right one.
    assert_eq!(standard(AT, &time, "v1,tZ1I4w==", BODY), mismatch);
    for malformed in ["", "v1", "v1,", "v1,!!!", &SIGNATURE[3..], "v2,tZ1I4w=="] {
        let end = standard(AT, &time, malformed, BODY);
        assert!(end.is_err(), "{malformed}");
    }
    for secret in ["", "whsec_", "whsec_!", "C2FVsBQIhrscChlQIMV+b5sSYspob7oD"] {
        let end = standard_webhooks(secret, AT, headers(ID, &time, SIGNATURE), BODY);
        assert_eq!(end, Err(Invalid::Secret), "{secret}");
    }
}

#[test]
fn a_signature_is_good_for_five_minutes_before_and_after() {
    let time = AT.to_string();
    for (now_s, good) in [(AT - 300, true), (AT + 300, true), (AT - 301, false), (AT + 301, false)] {
        assert_eq!(standard(now_s, &time, SIGNATURE, BODY).is_ok(), good, "{now_s}");
    }
    for malformed in ["", "-1", "1649367553.0", "99999999999999999999"] {
        let end = standard(AT, malformed, SIGNATURE, BODY);
        assert_eq!(end, Err(Invalid::Malformed("webhook-signature")), "{malformed}");
    }
}

#[test]
fn the_abbababa_signature_covers_time_and_body() {
    // Made with: printf '%s' "$t.$body" | openssl dgst -sha256 -hmac "$secret"
    let digest = "996637d7f89ef8f7b59f7faaf5341457472e823d8ca666d16b7bbd1dc831721d";
    let signature = format!("t={AT},v1={digest}");
    assert_eq!(abbababa(SECRET, AT, &signature, BODY), Ok(()));
    assert_eq!(
        abbababa(SECRET, AT + 300, &format!("v1={digest}, t={AT}"), BODY),
        Ok(())
    );
    let name = "x-abbababa-signature";
    assert_eq!(abbababa(SECRET, AT + 301, &signature, BODY), Err(Invalid::Time(name)));
    for (secret, signature, body) in [
        (SECRET, signature.as_str(), b"{}".as_slice()),
        ("whsec_AAAA", &signature, BODY),
        (SECRET, &format!("t={},v1={digest}", AT + 1), BODY),
        (SECRET, &format!("t={AT},v1={}", &digest[..32]), BODY),
    ] {
        assert_eq!(abbababa(secret, AT, signature, body), Err(Invalid::Mismatch(name)));
    }
    for malformed in ["", "t=1", "v1=00", "t=x,v1=00", &format!("t={AT},v1=zz")] {
        let end = abbababa(SECRET, AT, malformed, BODY);
        assert_eq!(end, Err(Invalid::Malformed(name)), "{malformed}");
    }
}

/// Tokens as the documentation of QStash describes them.
mod tokens {
    use super::*;
    use serde_json::{Value, json};

    const KEY: &str = "sig_7kYjw48mhY7kAjqNGcy6cr29RJ6r";
    const URL: &str = "https://h.example/hook?a=%7E";
    const NAME: &str = "upstash-signature";

    fn encoded(bytes: impl AsRef<[u8]>) -> String {
        BASE64URL.encode(bytes).trim_end_matches('=').to_owned()
    }

    fn claims() -> Value {
        // Padded, as the vendor's samples are.
        let body = BASE64URL.encode(Sha256::digest(BODY));
        json!({"iss": "Upstash", "sub": URL, "iat": AT - 3, "nbf": 0, "exp": AT + 300, "jti": "jwt_1", "body": body})
    }

    fn with(name: &str, value: Value) -> Value {
        let mut claims = claims();
        claims[name] = value;
        claims
    }

    fn token(key: &str, head: &str, claims: &Value) -> String {
        let signed = format!("{}.{}", encoded(head), encoded(claims.to_string()));
        let signature = keyed(key.as_bytes(), &[signed.as_bytes()]).finalize().into_bytes();
        format!("{signed}.{}", encoded(signature))
    }

    fn good() -> String {
        token(KEY, r#"{"alg":"HS256","typ":"JWT"}"#, &claims())
    }

    /// The end of a token that is signed as it should be.
    fn end(claims: &Value) -> Result<(), Invalid> {
        upstash(KEY, AT, &token(KEY, r#"{"alg":"HS256"}"#, claims), Some(URL), BODY)
    }

    #[test]
    fn a_token_made_elsewhere_passes() {
        // Made with Python: hmac, hashlib, base64, json.
        let made = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJpc3MiOiAiVXBzdGFzaCIsICJzdWIiOiAiaHR0cHM6Ly9oLmV4Y\
             W1wbGUvaG9vaz9hPSU3RSIsICJpYXQiOiAxNjQ5MzY3NTUwLCAibmJmIjogMCwgImV4cCI6IDE2NDkzNjc4NTMsICJ\
             qdGkiOiAiand0XzY3a3hYRDZVQkFrN0RxVTZoenVITURkWEZYZlAiLCAiYm9keSI6ICJwMUkydENrX3MybEpRNDhna\
             FJmYnFUOTNQSjkySGw3SXpsdHBqM0ZiMUtJPSJ9.2gqOt212Ja8CBc36NvzLenNdkFHOTH0JLl9VBv0fE80";
        assert_eq!(upstash(KEY, AT, made, Some(URL), BODY), Ok(()));
        assert_eq!(upstash(KEY, AT, &good(), None, BODY), Ok(()));
        let unpadded = with("body", json!(encoded(Sha256::digest(BODY))));
        assert_eq!(end(&unpadded), Ok(()));
    }

    #[test]
    fn a_token_of_another_key_body_or_url_fails() {
        let mismatch = Err(Invalid::Mismatch(NAME));
        assert_eq!(upstash("sig_other", AT, &good(), Some(URL), BODY), mismatch);
        assert_eq!(upstash(KEY, AT, &good(), Some(URL), b"{}"), mismatch);
        assert_eq!(upstash(KEY, AT, &good(), Some(&format!("{URL}/")), BODY), mismatch);
        assert_eq!(end(&with("iss", json!("upstash"))), mismatch);
        assert_eq!(end(&with("sub", json!(null))), mismatch);
        let mut parts: Vec<String> = good().split('.').map(str::to_owned).collect();
        parts[1] = encoded(with("exp", json!(AT + 900)).to_string());
        assert_eq!(upstash(KEY, AT, &parts.join("."), None, BODY), mismatch);
    }

    #[test]
    fn a_token_lives_as_long_as_it_says() {
        for (now_s, alive) in [(AT + 300, true), (AT + 305, true), (AT + 306, false), (AT - 1000, true)] {
            assert_eq!(upstash(KEY, now_s, &good(), None, BODY).is_ok(), alive, "{now_s}");
        }
        assert_eq!(end(&with("nbf", json!(AT + 5))), Ok(()));
        assert_eq!(end(&with("nbf", json!(AT + 6))), Err(Invalid::Time(NAME)));
    }

    #[test]
    fn other_algorithms_and_forms_fail() {
        let malformed = Err(Invalid::Malformed(NAME));
        for head in [r#"{"alg":"none"}"#, r#"{"alg":"HS512"}"#, "{}", "x"] {
            let token = token(KEY, head, &claims());
            assert_eq!(upstash(KEY, AT, &token, None, BODY), malformed, "{head}");
        }
        for text in ["", ".", "..", "a.b", &format!("{}.x", good()), "é.é.é"] {
            assert_eq!(upstash(KEY, AT, text, None, BODY), malformed, "{text}");
        }
        for name in ["exp", "nbf", "iss", "body"] {
            assert_eq!(end(&with(name, json!(null))), malformed, "{name}");
        }
        assert_eq!(end(&with("exp", json!((AT + 300).to_string()))), malformed);
        // A token without a signature.
        let unsigned = good().rsplit_once('.').map(|(signed, _)| format!("{signed}.")).unwrap();
        assert_eq!(upstash(KEY, AT, &unsigned, None, BODY), Err(Invalid::Mismatch(NAME)));
    }

    #[test]
    fn a_verifier_checks_all_that_it_has_keys_for() {
        let (time, token) = (AT.to_string(), good());
        let mut headers = std::collections::BTreeMap::from([
            ("webhook-id", ID),
            ("upstash-message-id", ID),
            ("webhook-timestamp", &time),
            ("webhook-signature", SIGNATURE),
            ("upstash-signature", &token),
        ]);
        let check = |verifier: &Verifier, headers: &std::collections::BTreeMap<&str, &str>| {
            verifier.verify_at(AT, |name| headers.get(name).copied(), BODY)
        };
        let good = Ok(Verified { id: ID.to_owned() });
        let both = Verifier::new()
            .secret("whsec_AAAA")
            .and_then(|verifier| verifier.secret(SECRET))
            .unwrap()
            .signing_keys("sig_older", KEY)
            .url(URL);
        assert_eq!(check(&both, &headers), good);
        assert_eq!(check(&Verifier::new().signing_keys(KEY, "sig_next"), &headers), good);
        assert_eq!(check(&Verifier::new(), &headers), Err(Invalid::NoKey));

        headers.insert("x-abbababa-signature", "t=1649367553,v1=00");
        assert_eq!(check(&both, &headers), Err(Invalid::Mismatch("x-abbababa-signature")));
        headers.remove("x-abbababa-signature");
        headers.remove("upstash-signature");
        assert_eq!(check(&both, &headers), Err(Invalid::Missing(NAME)));
        headers.remove("webhook-id");
        assert_eq!(check(&both, &headers), Err(Invalid::Missing("webhook-id")));
        assert_eq!(Verifier::new().secret("secret").unwrap_err(), Invalid::Secret);
    }
}
