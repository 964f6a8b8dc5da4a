//! Chores that link Hone itself; `cargo xtask` starts them.

pub mod demo_base;
pub mod fuzz;
