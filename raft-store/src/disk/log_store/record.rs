//! The payloads of the log's records.

use std::io;

use agentpost_proto::peer;
use bytes::Bytes;
use prost::Message;

use crate::disk::segments::damaged;
use crate::disk::segments::format::HEAD;
use crate::disk::types::{Entry, LogId, entry_from_proto, entry_to_proto, log_id_from_proto, log_id_to_proto};

/// Appends an encoded message to `buffer`.
pub(super) fn encode(message: &impl Message, buffer: &mut Vec<u8>) -> io::Result<()> {
    message.encode(buffer).map_err(io::Error::other)
}

/// Decodes a message that was verified by its checksum.
pub(super) fn decode<T: Message + Default>(payload: Bytes) -> io::Result<T> {
    T::decode(payload).map_err(|error| damaged(error.to_string()))
}

/// Appends an encoded entry. Its command is copied here, and nowhere else on the way to the file.
pub(super) fn encode_entry(entry: &Entry, buffer: &mut Vec<u8>) -> io::Result<()> {
    encode(&entry_to_proto(entry), buffer)
}

pub(super) fn decode_entry(payload: Bytes) -> io::Result<Entry> {
    let entry = decode::<peer::Entry>(payload)?;
    entry_from_proto(entry).map_err(|error| damaged(error.to_string()))
}

/// About the length of the record of an entry, without encoding it.
pub(super) fn size_of(entry: &Entry) -> usize {
    /// The id of the entry and the tags of its fields, at most.
    const FIELDS: usize = 40;
    match &entry.payload {
        openraft::EntryPayload::Normal(proposal) => HEAD + FIELDS + proposal.0.len(),
        _ => HEAD + FIELDS,
    }
}

pub(super) fn encode_point(id: Option<&LogId>, buffer: &mut Vec<u8>) -> io::Result<()> {
    let id = id.map(log_id_to_proto);
    encode(&peer::LogPoint { id }, buffer)
}

pub(super) fn decode_point(payload: Bytes) -> io::Result<Option<LogId>> {
    let point = decode::<peer::LogPoint>(payload)?;
    Ok(point.id.as_ref().map(log_id_from_proto))
}
