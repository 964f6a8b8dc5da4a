//! `cargo xtask bench ops`: the rate of each operation beside the machine's ceilings.
