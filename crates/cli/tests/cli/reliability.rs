//! What a run survives.
