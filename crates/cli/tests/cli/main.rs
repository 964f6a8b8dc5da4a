//! The real binary on real files. Each module is one promise to users:
//! what a run survives (`reliability`), and what bad input gets (`bad_input`).

mod bad_input;
mod common;
mod reliability;
