//! `cargo xtask demo-base`: the recipe of the demo's base model.

use std::process::ExitCode;

fn main() -> ExitCode {
    xtask_tools::demo_base::main()
}
