//! Tiny models, data and run files for the tests, and the binary itself.
