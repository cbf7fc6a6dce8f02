//! Input of requests: the query string, the body and the idempotency key.

use agentpost_proto::id;
use agentpost_raft_store::core::kv::Order;
use axum::extract::Query;
use axum::http::{HeaderMap, Uri};

use crate::server::error::{ApiError, Result};
use crate::wire::json::{self, Fault};

/// Items of a page if the caller gives no limit.
pub(super) const PAGE_DEFAULT: usize = 50;

/// How fresh a read is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Consistency {
    /// The read sees every write that was acknowledged before it began.
    Linearizable,
    /// The read sees this node's state and needs no quorum.
    Local,
}

impl Consistency {
    pub(super) fn of(parameters: &Parameters) -> Result<Self> {
        match parameters.get("consistency")? {
            None | Some("linearizable") => Ok(Self::Linearizable),
            Some("local") => Ok(Self::Local),
            Some(_) => Err(ApiError::field("consistency", "must be linearizable or local")),
        }
    }

    /// Reads the parameter of a request that has no other.
    pub(super) fn of_uri(uri: &Uri) -> Result<Self> {
        Self::of(&Parameters::of(uri)?)
    }
}

pub(super) struct Parameters(Vec<(String, String)>);

impl Parameters {
    pub(super) fn of(uri: &Uri) -> Result<Self> {
        let pairs = Query::try_from_uri(uri).map_err(|_| ApiError::invalid("the query string cannot be read"))?;
        Ok(Parameters(pairs.0))
    }

    /// The value of a parameter. A repeated parameter is an error; unknown ones are ignored.
    pub(super) fn get(&self, name: &str) -> Result<Option<&str>> {
        let mut values = self
            .0
            .iter()
            .filter(|(key, _)| key == name)
            .map(|(_, value)| value.as_str());
        match (values.next(), values.next()) {
            (_, Some(_)) => Err(ApiError::field(name, "appears more than once in the query string")),
            (value, None) => Ok(value),
        }
    }

    /// The order of a list.
    pub(super) fn order(&self) -> Result<Order> {
        match self.get("order")? {
            None | Some("asc") => Ok(Order::Ascending),
            Some("desc") => Ok(Order::Descending),
            Some(_) => Err(ApiError::field("order", "must be asc or desc")),
        }
    }

    /// A number between `low` and `high`.
    pub(super) fn number(&self, name: &str, low: u64, high: u64) -> Result<Option<u64>> {
        let Some(text) = self.get(name)? else { return Ok(None) };
        let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        match text.parse() {
            Ok(number) if plain && (low..=high).contains(&number) => Ok(Some(number)),
            _ => Err(ApiError::field(name, format!("must be a number from {low} to {high}"))),
        }
    }
}

/// Parses a JSON body that must be an object.
pub(super) fn parse<'a, T: serde::Deserialize<'a>>(body: &'a [u8]) -> Result<T> {
    serde_json::from_str(object(body)?).map_err(not_json)
}

/// Parses a JSON body, which must be an object, into a struct of raw members. The outer error is wrong
/// syntax, the inner one a repeated name.
pub(super) fn parse_members<'a, T: serde::Deserialize<'a>>(body: &'a [u8]) -> Result<Result<T, Fault>> {
    json::members(object(body)?).map_err(not_json)
}

fn object(body: &[u8]) -> Result<&str> {
    let text = std::str::from_utf8(body).map_err(|_| ApiError::invalid("the request body is not UTF-8"))?;
    // serde would also accept an array for a struct.
    if !text.trim_ascii_start().starts_with('{') {
        return Err(ApiError::invalid("the request body must be a JSON object"));
    }
    Ok(text)
}

pub(super) fn not_json(error: serde_json::Error) -> ApiError {
    ApiError::invalid(format!("the request body is not valid JSON: {}", json::explain(&error)))
}

/// The error for a request body with a fault. Its details stay empty, because the fault is in no one field.
pub(super) fn request_fault(fault: Fault) -> ApiError {
    ApiError::invalid(format!("the request body {fault}"))
}

/// The `Idempotency-Key` header; empty if there is none.
pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<String> {
    const NAME: &str = "Idempotency-Key";
    let mut values = headers.get_all(NAME).iter();
    let Some(value) = values.next() else {
        return Ok(String::new());
    };
    if values.next().is_some() {
        return Err(ApiError::field(NAME, "appears more than once"));
    }
    let text = value.to_str().unwrap_or_default();
    id::validate_idempotency_key(text).map_err(|e| ApiError::named(NAME, e.to_string()))?;
    Ok(text.to_owned())
}
