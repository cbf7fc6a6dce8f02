//! Ports on loopback that nobody listens on.

use std::io;
use std::net::{Ipv4Addr, TcpListener};

/// Picks `count` different ports that are free now. Another process may take one before its user binds it.
pub fn free(count: usize) -> io::Result<Vec<u16>> {
    // All listeners are open at the same time, so that no port comes twice.
    let listeners = (0..count)
        .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
        .collect::<io::Result<Vec<_>>>()?;
    let port = |listener: &TcpListener| Ok(listener.local_addr()?.port());
    listeners.iter().map(port).collect()
}

/// The base URL of a server that refuses connections.
///
/// # Panics
/// If no port is free.
pub fn refusing_url() -> String {
    let ports = free(1).expect("a free port");
    format!("http://127.0.0.1:{}", ports[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_ports_differ_and_can_be_bound() {
        let ports = free(20).unwrap();
        let mut unique = ports.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), 20);
        let bound = ports
            .iter()
            .filter(|&&port| TcpListener::bind(("127.0.0.1", port)).is_ok());
        // A neighbour may have taken some of them meanwhile.
        assert!(bound.count() > 0);
    }
}
