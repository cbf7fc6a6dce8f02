//! Requests over a WebSocket, one socket for each: recent events, the team's numbers and its keys.
