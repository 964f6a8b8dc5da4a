//! Rows of a table by index, and the gradient of the table.

mod cpu;
pub mod reference;

pub use cpu::{backward, forward};
