//! Smaller files of a model: which type each tensor is stored in.
//!
//! A [`Mix`] gives each tensor the type that llama.cpp's mix of that name gives it. A type whose
//! blocks do not divide a tensor's rows is never replaced in silence: it is an error that says
//! which tensors there are, unless [`Fallback::LlamaCpp`] is asked for.

mod choice;
mod mix;

pub use choice::{Choice, CompressError, Fallback, choose};
pub use mix::{Facts, Mix, Stored};
