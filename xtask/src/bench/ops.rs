//! `cargo xtask bench ops`: the rate of each operation beside the machine's ceilings.

use super::doctor::Doctor;
use super::{Place, report};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

const HEAD: &str = "# Operations beside the machine's ceilings

<!-- Written by `cargo xtask bench ops`; do not edit. -->

At the sizes of a Llama of 135 million weights with 1,024 tokens; medians of seven windows, operands
in the cache as far as it holds them. The ceiling of products is the rate of the tile with the loads
that it does, from the first-level cache, in windows that take turns with those of the operation:
what the machine can do changes with its neighbours, and the share is the median of the windows'. A
rate in GB/s above that of the memory means that the cache held the operands.

| operation | threads | ms | rate | of the ceiling |
| --- | ---: | ---: | ---: | ---: |
";

/// Runs the operations named (all if there are none); the page is written when all were run.
pub fn run(root: &Path, names: &[&str]) -> ExitCode {
    report("ops", try_run(root, names))
}

fn try_run(root: &Path, names: &[&str]) -> Result<bool, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["bench", "--quiet", "--package", "hone-kernels", "--bench", "ops", "--"])
        .args(names)
        .current_dir(root)
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| error.to_string())?;
    let rows = String::from_utf8_lossy(&output.stdout);
    print!("{rows}");
    if !output.status.success() {
        return Err("the benchmark failed".to_owned());
    }
    if names.is_empty() {
        let place = Place::new(root, "bench-ops", None)?;
        let doctor = Doctor::ask(&place.hone, None)?;
        let (sets, machine) = (doctor.table(), doctor.machine()?);
        place.write_page("ops.md", &format!("{HEAD}{rows}\n{sets}\nMachine: {machine}.\n"))?;
    }
    Ok(true)
}
