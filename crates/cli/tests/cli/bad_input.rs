//! What bad input gets: one clear message, exit status 2, nothing half-written.
