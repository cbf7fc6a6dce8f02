//! The device login, from both sides: a machine that asks for a key, and an administrator who lets it in.
