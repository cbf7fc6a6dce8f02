//! The directory of a team's agents.
