//! What a model is worth in figures that people know, and how sure they are.

pub mod against;
pub mod statistics;
