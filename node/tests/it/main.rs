//! The tests of the node: real nodes with real sockets and disks, in this process or as processes of their own.
//!
//! One binary, so that RocksDB is linked once. Each area is a folder; `common` has what they share.
#![allow(clippy::unwrap_used)]

mod common;

/// Nodes as one cluster: replication, members, clocks, full disks.
mod cluster {
    mod catching_up;
    mod joint_membership;
    mod leader_loss;
    mod membership;
    mod overload;
    mod peer_port;
    mod reads;
    mod replication;
    mod space;
    mod unlogged;
    mod wall_time;
}

/// The binary `agentpostd` as a process.
mod daemon {
    mod failpoints;
    mod opening;
    mod process;
    mod quarantine;
}

/// The webhook dispatcher: when it calls, how often, with which signatures.
mod dispatch {
    mod callers;
    mod clock;
    mod dispatcher;
    mod vendor_signatures;
}

/// Calls to hostile and broken receivers, and to places that a webhook must never reach.
mod egress {
    mod addresses;
    mod listeners;
    mod receivers;
    mod stage;
    mod tls;
    mod urls;
}

/// The HTTP APIs.
mod http {
    mod abbababa;
    mod activate_page;
    mod admin;
    mod agents;
    mod answers;
    mod bad_input;
    mod budget;
    mod burst;
    mod deliveries;
    mod keys;
    mod kite;
    mod login;
    mod pages;
    mod ratelimit;
    mod topics;
    mod webhooks;
}

/// Compatibility with the vendor's Kite clients.
mod kite {
    mod cloudevents;
    mod protocol;
    mod published_clients;
}

mod layers;
mod resume_model;
mod secrets_stay_secret;

/// Kite's WebSocket.
mod ws {
    mod cursors;
    mod keys;
    mod quota;
    mod resume;
    mod resume_kills;
    mod rpc;
    mod rpc_keys;
    mod rpc_turns;
    mod scopes;
    mod session;
    mod topics;
}
