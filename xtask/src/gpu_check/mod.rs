//! `cargo xtask gpu-check`: everything that wants a real GPU, for a machine that has one and
//! nothing to build with.
//!
//! [`pack`] builds the binary and the test suites that run on a GPU and puts them, with this
//! program, into `target/gpu-check`. There, in a copy of the checkout,
//! `target/gpu-check/xtask gpu-check` runs the operations' suite, the goldens and twenty steps of
//! training against PyTorch's losses on the GPU, and prints one table; then it trains models of
//! random weights with Hone and with PyTorch, and writes `docs/benchmarks/gpu.md`.

mod options;
mod pack;
mod suites;
#[cfg(test)]
mod tests;
mod train;

use options::Options;
pub use pack::pack;
use std::path::Path;
use std::process::ExitCode;

/// Runs what was packed, from the root of a checkout, as the arguments say.
pub fn run(args: &[&str]) -> ExitCode {
    match Options::parse(args).and_then(|options| try_run(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("gpu-check: {error}");
            ExitCode::FAILURE
        }
    }
}

fn try_run(options: &Options) -> Result<bool, String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let dir = own.parent().unwrap_or(Path::new(".")).to_path_buf();
    let root = std::env::current_dir().map_err(|error| error.to_string())?;
    if options.runs_suites() && !suites::are_in(&dir) {
        return Err(
            "run `cargo xtask gpu-check pack`, and then `target/gpu-check/xtask gpu-check` \
                    on the machine with the GPU"
                .to_owned(),
        );
    }
    let bench = options.trains().then(|| train::Bench::new(&root, &dir, options));
    let passed = std::thread::scope(|scope| {
        // 17 GB, meanwhile. What went wrong is found again when they are needed.
        if let Some(Ok(bench)) = &bench {
            scope.spawn(|| bench.write_models());
        }
        if options.runs_suites() { suites::run(&root, &dir, &options.device) } else { Ok(true) }
    })?;
    let trained = bench.map_or(Ok(true), |bench| train::run(&bench?))?;
    Ok(passed && trained)
}
