//! hone-model

pub mod hub;
