//! `cargo xtask fuzz`: mutated files for every reader of foreign input.

use std::process::ExitCode;

fn main() -> ExitCode {
    xtask_tools::fuzz::main()
}
