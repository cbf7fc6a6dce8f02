//! The agents of the crash points of the dispatcher, one for each leader that dies there.

use crate::record::deliveries::CRASH_POINTS;

/// How many leaders can die at each crash point of the dispatcher.
pub const ROUNDS: usize = 20;

/// The agent that gets the message of a round for a crash point.
pub fn agent_at(place: &str, round: usize) -> String {
    format!("{place}-{round}")
}

/// The agents of all crash points and rounds.
pub fn crash_point_agents() -> impl Iterator<Item = String> {
    let places = CRASH_POINTS.into_iter().map(|(place, _, _)| place);
    places.flat_map(|place| (0..ROUNDS).map(move |round| agent_at(place, round)))
}
