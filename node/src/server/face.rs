//! The faces: the APIs that one port serves. Each has its own JSON.

/// Which API a request belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Face {
    /// `/v1` and `/api/v1`.
    Abbababa,
    /// `/ws`, `agents`, `agents/messages` and `/api/auth/`.
    Kite,
    /// `/admin/v1` and `/activate`.
    Admin,
    /// Health and metrics.
    Node,
}

impl Face {
    /// The name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Face::Abbababa => "Abbababa",
            Face::Kite => "Kite",
            Face::Admin => "Admin",
            Face::Node => "Node",
        }
    }
}
