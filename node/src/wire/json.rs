//! Reads and writes JSON strictly and without building a tree.
//!
//! serde_json checks the syntax once and hands out raw slices ([`members`]); [`compact`] then walks such a slice byte by
//! byte. It keeps numbers and escapes as they were written, which a typed visitor would not (it would turn an integer
//! above 2^64 into a float), and it enforces what syntax cannot: depth, number of keys, no duplicate key, length and
//! range of numbers, paired surrogates. A slice without white space is not copied.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// Upper bound on the nesting depth of JSON in a body, well below serde_json's own limit of 128.
const DEPTH_MAX: usize = 32;
/// Upper bound on the keys of one object.
const KEYS_MAX: usize = 1_000;
/// Upper bound on the characters of one number.
const NUMBER_CHARS_MAX: usize = 64;

/// Describes the fault of a JSON text without the faulty value: clients put keys and tokens in the wrong place, and
/// this description may be logged.
pub fn explain(error: &serde_json::Error) -> String {
    let text = error.to_string();
    // serde quotes the value and then says what it expected, in words that are ours.
    let expected = text.rfind(", expected ").filter(|_| error.is_data());
    match expected.filter(|_| !text.starts_with("unknown field ")) {
        Some(at) => text[at + 2..].to_owned(),
        None => text,
    }
}

/// Why a well-formed JSON text is refused. The caller sees the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("must be a JSON object")]
    NotAnObject,
    #[error("must be a string")]
    NotText,
    #[error("is nested deeper than {DEPTH_MAX} levels")]
    TooDeep,
    #[error("has an object with more than {KEYS_MAX} keys")]
    TooManyKeys,
    #[error("has an object with the same key twice")]
    DuplicateKey,
    #[error("has a number of more than {NUMBER_CHARS_MAX} characters")]
    LongNumber,
    #[error("has a number that no program can represent")]
    NumberOutOfRange,
    #[error("has a string that is not valid Unicode")]
    BadUnicode,
}

/// Reads an object into a struct of `Option<&RawValue>`: unknown names are skipped, and `null` counts as absent. The
/// outer error is wrong syntax. The inner one says that well-formed JSON is no object or repeats a name, so that one bad
/// item does not spoil a batch. The struct needs `#[serde(bound(deserialize = "'de: 'a"))]`, because serde does not see
/// that such members borrow.
pub fn members<'a, T: Deserialize<'a>>(text: &'a str) -> serde_json::Result<Result<T, Fault>> {
    match serde_json::from_str::<Object<T>>(text) {
        Ok(Object(members)) => Ok(Ok(members)),
        // Raw members have no wrong type, and serde stopped at the fault, so the rest of the syntax is still unchecked.
        Err(error) if error.is_data() => {
            serde_json::from_str::<Checked>(text)?;
            let object = text.trim_ascii_start().starts_with('{');
            Ok(Err(if object {
                debug_assert!(
                    error.to_string().starts_with("duplicate field"),
                    "not only raw members: {error}"
                );
                Fault::DuplicateKey
            } else {
                Fault::NotAnObject
            }))
        }
        Err(error) => Err(error),
    }
}

/// A struct that is read from an object only. A derived struct alone also accepts an array.
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Members<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Members<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map))
            }
        }
        input.deserialize_map(Members(PhantomData)).map(Object)
    }
}

/// Any JSON value. Numbers out of range and unpaired surrogates are errors in the value itself and in its keys, but not
/// in nested values.
pub struct Checked;

impl<'de> Deserialize<'de> for Checked {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        input.deserialize_any(IgnoredAny).map(|_| Checked)
    }
}

/// The text of a raw JSON string. It borrows unless the string has escapes.
pub fn text(raw: &str) -> Result<Cow<'_, str>, Fault> {
    let inner = raw
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
        .ok_or(Fault::NotText)?;
    if inner.contains('\\') {
        return serde_json::from_str::<String>(raw)
            .map(Cow::Owned)
            .map_err(|_| Fault::BadUnicode);
    }
    Ok(Cow::Borrowed(inner))
}

/// The same value without white space between its tokens. `raw` must be one JSON value that serde_json
/// accepted, as a `RawValue` is.
pub fn compact(raw: &str) -> Result<Cow<'_, str>, Fault> {
    let mut walk = Walk {
        raw,
        at: 0,
        frames: Vec::new(),
        keys: Vec::new(),
    };
    let bytes = raw.as_bytes();
    let mut out = String::new();
    let mut run = 0; // start of the part that is not copied yet
    while let Some(byte) = bytes.get(walk.at) {
        match byte {
            b' ' | b'\t' | b'\n' | b'\r' => {
                out.push_str(&raw[run..walk.at]);
                run = walk.at + 1;
                walk.at += 1;
            }
            b'"' => walk.string()?,
            b'-' | b'0'..=b'9' => walk.number()?,
            b'{' | b'[' => walk.open(*byte == b'{')?,
            b'}' | b']' => walk.close()?,
            b',' => walk.comma(),
            _ => walk.at += 1, // a colon or a letter of true, false, null
        }
    }
    if run == 0 {
        return Ok(Cow::Borrowed(raw));
    }
    out.push_str(&raw[run..]);
    Ok(Cow::Owned(out))
}

/// An open array or object.
struct Frame {
    /// For an object, the index of its first key in `Walk::keys`.
    keys_from: Option<usize>,
    /// Whether the next string is a key.
    at_key: bool,
}

struct Walk<'a> {
    raw: &'a str,
    at: usize,
    frames: Vec<Frame>,
    /// The keys of all open objects.
    keys: Vec<Cow<'a, str>>,
}

impl<'a> Walk<'a> {
    fn open(&mut self, object: bool) -> Result<(), Fault> {
        if self.frames.len() == DEPTH_MAX {
            return Err(Fault::TooDeep);
        }
        self.frames.push(Frame {
            keys_from: object.then_some(self.keys.len()),
            at_key: object,
        });
        self.at += 1;
        Ok(())
    }

    fn close(&mut self) -> Result<(), Fault> {
        if let Some(Frame {
            keys_from: Some(from), ..
        }) = self.frames.pop()
        {
            let keys = &mut self.keys[from..];
            keys.sort_unstable();
            if keys.windows(2).any(|pair| pair[0] == pair[1]) {
                return Err(Fault::DuplicateKey);
            }
            self.keys.truncate(from);
        }
        self.at += 1;
        Ok(())
    }

    fn comma(&mut self) {
        if let Some(frame) = self.frames.last_mut() {
            frame.at_key = frame.keys_from.is_some();
        }
        self.at += 1;
    }

    fn string(&mut self) -> Result<(), Fault> {
        let start = self.at;
        let end = string_end(self.raw.as_bytes(), start)?;
        self.at = end;
        let Some(Frame {
            keys_from: Some(from),
            at_key,
        }) = self.frames.last_mut()
        else {
            return Ok(());
        };
        if std::mem::take(at_key) {
            if self.keys.len() - *from == KEYS_MAX {
                return Err(Fault::TooManyKeys);
            }
            self.keys.push(text(&self.raw[start..end])?);
        }
        Ok(())
    }

    fn number(&mut self) -> Result<(), Fault> {
        let rest = &self.raw[self.at..];
        let length = rest
            .find(|c: char| !matches!(c, '0'..='9' | '-' | '+' | '.' | 'e' | 'E'))
            .unwrap_or(rest.len());
        let number = &rest[..length];
        if length > NUMBER_CHARS_MAX {
            return Err(Fault::LongNumber);
        }
        let exponent = number.contains(['e', 'E']);
        if exponent && !number.parse::<f64>().is_ok_and(f64::is_finite) {
            return Err(Fault::NumberOutOfRange);
        }
        self.at += length;
        Ok(())
    }
}

/// The position after the string that starts at `start`.
fn string_end(bytes: &[u8], start: usize) -> Result<usize, Fault> {
    let mut at = start + 1;
    loop {
        match bytes.get(at) {
            Some(b'"') => return Ok(at + 1),
            Some(b'\\') if bytes.get(at + 1) == Some(&b'u') => at = unicode_escape(bytes, at)?,
            Some(b'\\') => at += 2,
            Some(_) => at += 1,
            None => return Err(Fault::BadUnicode), // cannot be: the syntax was checked
        }
    }
}

/// The position after the escape at `at`, or after its second half if it is a surrogate pair.
fn unicode_escape(bytes: &[u8], at: usize) -> Result<usize, Fault> {
    match code_unit(bytes, at).ok_or(Fault::BadUnicode)? {
        0xD800..=0xDBFF => match code_unit(bytes, at + 6) {
            Some(0xDC00..=0xDFFF) => Ok(at + 12),
            _ => Err(Fault::BadUnicode),
        },
        0xDC00..=0xDFFF => Err(Fault::BadUnicode),
        _ => Ok(at + 6),
    }
}

fn code_unit(bytes: &[u8], at: usize) -> Option<u16> {
    let digits = bytes.get(at..at + 6)?.strip_prefix(b"\\u")?;
    u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// Appends a JSON string.
pub fn push_text(out: &mut Vec<u8>, text: &str) {
    // Writing to memory does not fail, and a string always serializes.
    let _ = serde_json::to_writer(out, text);
}

/// Writes an object member by member, for answers whose parts are stored as JSON.
pub struct Writer<'o> {
    out: &'o mut Vec<u8>,
    empty: bool,
}

impl<'o> Writer<'o> {
    /// Opens the object.
    pub fn new(out: &'o mut Vec<u8>) -> Self {
        out.push(b'{');
        Writer { out, empty: true }
    }

    /// Writes `"key":`; the caller must then write one value. Keys must need no escapes.
    pub fn key(&mut self, key: &'static str) -> &mut Vec<u8> {
        if !std::mem::take(&mut self.empty) {
            self.out.push(b',');
        }
        self.out.push(b'"');
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(b"\":");
        self.out
    }

    /// Writes a member whose value is JSON already.
    pub fn raw(&mut self, key: &'static str, json: impl AsRef<[u8]>) {
        self.key(key).extend_from_slice(json.as_ref());
    }

    /// Writes a string member, or `null` for `None`.
    pub fn text<'t>(&mut self, key: &'static str, text: impl Into<Option<&'t str>>) {
        match text.into() {
            Some(text) => push_text(self.key(key), text),
            None => self.raw(key, "null"),
        }
    }

    /// Writes the members of a compact JSON object, which must not be empty.
    pub fn members_of(&mut self, object: &[u8]) {
        let inner = object.strip_prefix(b"{").and_then(|rest| rest.strip_suffix(b"}"));
        if let Some(inner) = inner.filter(|inner| !inner.is_empty()) {
            if !std::mem::take(&mut self.empty) {
                self.out.push(b',');
            }
            self.out.extend_from_slice(inner);
        }
    }

    /// Closes the object.
    pub fn end(self) {
        self.out.push(b'}');
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;
    use serde_json::value::RawValue;

    #[test]
    fn white_space_between_tokens_goes_and_everything_else_stays() {
        let raw = "{ \"a b\" :\n[ 1 , -2.50e+3 ,\ttrue,null , \"x \\u00e4 \\\" { \" ] ,\r\n\"o\":{ } }";
        let expected = "{\"a b\":[1,-2.50e+3,true,null,\"x \\u00e4 \\\" { \"],\"o\":{}}";
        assert_eq!(compact(raw).unwrap(), expected);
        assert!(matches!(compact(expected).unwrap(), Cow::Borrowed(_)));
        let large = r#"{"n":123456789012345678901234567890.10}"#;
        assert_eq!(compact(large).unwrap(), large);
    }

    #[test]
    fn limits_beyond_syntax_are_enforced() {
        let nested = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        let keys = |n: usize| {
            let members: Vec<String> = (0..n).map(|i| format!("\"k{i}\":0")).collect();
            format!("{{{}}}", members.join(","))
        };
        assert!(compact(&nested(32)).is_ok());
        assert!(compact(&keys(1000)).is_ok());
        assert!(compact(&format!("[{},{}]", keys(1000), keys(1000))).is_ok());
        assert!(compact(&"9".repeat(64)).is_ok());
        for (bad, fault) in [
            (nested(33).as_str(), Fault::TooDeep),
            (&keys(1001), Fault::TooManyKeys),
            (r#"{"a":1,"a":2}"#, Fault::DuplicateKey),
            (r#"{"a":{"b":1,"c":2,"b":3}}"#, Fault::DuplicateKey),
            (r#"{"a":1,"\u0061":2}"#, Fault::DuplicateKey),
            (&"9".repeat(65), Fault::LongNumber),
            ("1e400", Fault::NumberOutOfRange),
            (r#"["\ud800"]"#, Fault::BadUnicode),
            (r#"["\ud800\u0041"]"#, Fault::BadUnicode),
            (r#"["\udc00\ud800"]"#, Fault::BadUnicode),
            (r#"{"\ud800":1}"#, Fault::BadUnicode),
        ] {
            assert_eq!(compact(bad), Err(fault), "{bad}");
        }
        assert!(compact(r#"["\ud83d\ude00"]"#).is_ok());
        assert!(compact(r#"{"a":{"a":{"a":1}},"b":[{"a":1},{"a":1}]}"#).is_ok());
    }

    #[test]
    fn text_is_unescaped() {
        assert_eq!(text(r#""plain""#).unwrap(), "plain");
        assert_eq!(text(r#""a\n\u00e4""#).unwrap(), "a\nä");
        assert_eq!(text(r#""\ud800""#), Err(Fault::BadUnicode));
        assert_eq!(text("12"), Err(Fault::NotText));
        assert_eq!(text("{}"), Err(Fault::NotText));
    }

    #[test]
    fn an_explanation_never_quotes_a_value() {
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        #[allow(dead_code)]
        struct Typed {
            number: u8,
            kind: Option<Kind>,
        }
        #[derive(Debug, Deserialize)]
        enum Kind {
            One,
            Two,
        }
        for (bad, explained) in [
            (r#"{"number":"kite_x, expected y"}"#, "expected u8"),
            (r#"{"number":300777}"#, "expected u8"),
            (r#"{"number":1,"kind":"kite_x"}"#, "expected `One` or `Two`"),
            (r#"{"number":[]}"#, "expected u8"),
            (r#""kite_x""#, "expected struct Typed"),
            (r#"{"other":1}"#, "unknown field `other`, expected `number` or `kind`"),
            (r#"{}"#, "missing field `number`"),
            (r#"{"number":1"#, "EOF while parsing an object"),
            (r#"{"number":kite_x}"#, "expected value"),
        ] {
            let text = explain(&serde_json::from_str::<Typed>(bad).unwrap_err());
            assert!(text.starts_with(explained), "{bad}: {text}");
            assert!(!text.contains("kite_x") && !text.contains("300777"), "{bad}: {text}");
        }
    }

    #[derive(Debug, Deserialize)]
    #[serde(bound(deserialize = "'de: 'a"))]
    struct Sample<'a> {
        first: Option<&'a RawValue>,
        #[serde(rename = "secondName")]
        second: Option<&'a RawValue>,
    }

    #[test]
    fn members_are_raw_and_faults_are_remembered() {
        let sample = |text| members::<Sample<'_>>(text).unwrap();
        let read = sample(r#"{"first":{"x": 1},"other":[[]],"second\u004eame":"s"}"#).unwrap();
        assert_eq!(read.first.unwrap().get(), r#"{"x": 1}"#);
        assert_eq!(read.second.unwrap().get(), r#""s""#);
        let read = sample(r#"{"first":null,"other":1,"other":2}"#).unwrap();
        assert!(read.first.is_none() && read.second.is_none());
        for twice in [
            r#"{"first":1,"first":null}"#,
            r#"{"first":null,"first":1}"#,
            r#"{"secondName":1,"second\u004eame":1}"#,
        ] {
            assert_eq!(sample(twice).unwrap_err(), Fault::DuplicateKey, "{twice}");
        }
        for other in [
            "[1,{}]",
            "[1,2]",
            "[null,null]",
            "1",
            "-1",
            "1.5",
            "\"s\"",
            "null",
            "true",
        ] {
            assert_eq!(sample(other).unwrap_err(), Fault::NotAnObject, "{other}");
        }
        // Wrong syntax is an error, also after a fault.
        for bad in [
            "{\"first\":1",
            r#"{"first":1,"first":2,}"#,
            r#"{"first":1,"first":2} x"#,
            r#"{"first":1,"first":2,"\ud800":3}"#,
            "[1,]",
            "1e999",
            r#""\ud800""#,
        ] {
            assert!(!members::<Sample<'_>>(bad).unwrap_err().is_data(), "{bad}");
        }
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(6, 64, 8, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
                prop::collection::btree_map(any::<String>(), inner, 0..8)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn compact_text_is_what_serde_json_writes(value in value()) {
            let pretty = serde_json::to_string_pretty(&value).unwrap();
            let plain = serde_json::to_string(&value).unwrap();
            prop_assert_eq!(compact(&pretty).unwrap(), plain.as_str());
            prop_assert!(matches!(compact(&plain).unwrap(), Cow::Borrowed(_)));
        }

        #[test]
        fn compact_keeps_the_value_of_valid_json(raw in r#"[\[\]{}",:0-9eE.\\u\-+ \ntrufalsn]{0,64}"#) {
            let Ok(syntax) = serde_json::from_str::<&serde_json::value::RawValue>(&raw) else { return Ok(()) };
            if let Ok(small) = compact(syntax.get()) {
                prop_assert_eq!(serde_json::from_str::<Value>(&small).unwrap(), serde_json::from_str::<Value>(&raw).unwrap());
            }
        }
    }
}
