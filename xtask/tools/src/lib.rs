//! Chores that link Hone itself; `cargo xtask` starts them.

pub mod fuzz;
