//! Test suites that run on a GPU.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

/// A test binary that runs on a GPU where `HONE_TEST_GPU` names one.
pub struct Suite {
    /// What it shows.
    name: &'static str,
    /// Where it comes from, which is also the packed binary's name.
    pub package: &'static str,
    /// Which of the package's binaries.
    pub target: &'static [&'static str],
    /// Which of its tests; none: all.
    filters: &'static [&'static str],
}

/// All of them.
pub const SUITES: [Suite; 4] = [
    Suite {
        name: "kernels of many arrays, rounding to eight bits",
        package: "hone-kernels",
        target: &["--lib"],
        filters: &["a_gpu_", "fp8"],
    },
    Suite {
        name: "operations against their references",
        package: "hone-tensor",
        target: &["--lib"],
        filters: &["operations::", "linear::", "offload::"],
    },
    Suite {
        name: "goldens, generation",
        package: "hone-model",
        target: &["--test", "model"],
        filters: &["goldens::", "every_device"],
    },
    Suite {
        name: "training against PyTorch's losses",
        package: "hone-train",
        target: &["--test", "train"],
        filters: &["curves::", "planning::", "determinism::", "gpu_precisions::"],
    },
];

/// Whether they were packed into `dir`.
pub fn are_in(dir: &Path) -> bool {
    SUITES.iter().all(|suite| dir.join(suite.package).is_file())
}

/// Runs all of them, with a table of what passed; whether all did.
pub fn run(root: &Path, dir: &Path, device: &str) -> Result<bool, String> {
    println!("| what | passed | failed | s |\n| --- | ---: | ---: | ---: |");
    let mut all_passed = true;
    for suite in &SUITES {
        all_passed &= run_suite(root, dir, suite, device)?;
    }
    Ok(all_passed)
}

fn run_suite(root: &Path, dir: &Path, suite: &Suite, device: &str) -> Result<bool, String> {
    let begun = Instant::now();
    let package = suite.package.trim_start_matches("hone-");
    let mut command = Command::new(dir.join(suite.package));
    command
        .args(suite.filters)
        .env("CARGO_MANIFEST_DIR", root.join("crates").join(package))
        .current_dir(root);
    if device != "emulated" {
        command.env("HONE_TEST_GPU", device);
    }
    let output = command.output().map_err(|error| format!("{}: {error}", suite.package))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // `test result: ok. 12 passed; 0 failed; …`
    let result = text.lines().rev().find(|line| line.starts_with("test result:"));
    let count = |word: &str| {
        let before = result.unwrap_or_default().split(&format!(" {word}")).next()?;
        before.split(' ').next_back()?.parse::<usize>().ok()
    };
    let (passed, failed) = (count("passed").unwrap_or(0), count("failed").unwrap_or(0));
    let seconds = begun.elapsed().as_secs_f64();
    println!("| {} | {passed} | {failed} | {seconds:.0} |", suite.name);
    if !output.status.success() {
        println!("{text}\n{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(output.status.success() && passed > 0)
}
