//! `cargo xtask gpu-check`: everything that wants a real GPU, for a machine that has one and
//! nothing to build with.
//!
//! `pack` builds the binary and the test suites that run on a GPU and puts them, with this program,
//! into `target/gpu-check`. There, in a copy of the checkout, `target/gpu-check/xtask gpu-check`
//! runs the operations' suite, the goldens and twenty steps of training against PyTorch's losses
//! on the GPU, then trains models of random weights, and prints one table. Left out: PyTorch beside
//! it.

use crate::bench::json;
use crate::bench::model::{L1B, L8B, Precision, Shape, write_model};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

/// A test binary that runs on a GPU where `HONE_TEST_GPU` names one.
struct Suite {
    /// What it shows.
    name: &'static str,
    package: &'static str,
    /// Which of the package's binaries.
    target: &'static [&'static str],
    /// Which of its tests; none: all.
    filters: &'static [&'static str],
}

const SUITES: [Suite; 3] = [
    Suite {
        name: "operations against their references",
        package: "hone-tensor",
        target: &["--lib"],
        filters: &["operations::", "linear::"],
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
        filters: &["curves::", "planning::"],
    },
];

/// Most bytes of all that is packed.
const MOST_BYTES: u64 = 60 << 20;

/// A model of random weights to train, and how.
struct Case {
    name: &'static str,
    shape: Shape,
    max_seq_len: usize,
    /// Bytes of the GPU's memory that it wants.
    wants_bytes: u64,
}

const CASES: [Case; 2] = [
    Case { name: "1B", shape: L1B, max_seq_len: 2048, wants_bytes: 20 << 30 },
    Case { name: "8B", shape: L8B, max_seq_len: 4096, wants_bytes: 60 << 30 },
];

/// Builds what is needed where nothing can be built.
pub fn pack(root: &Path) -> ExitCode {
    match try_pack(root) {
        Ok(bytes) => {
            println!("target/gpu-check: {:.1} MiB", bytes as f64 / f64::from(1 << 20));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("gpu-check: {error}");
            ExitCode::FAILURE
        }
    }
}

fn try_pack(root: &Path) -> Result<u64, String> {
    let dir = root.join("target/gpu-check");
    std::fs::create_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let put = |from: &Path, name: &str| {
        let to = dir.join(name);
        let io = |error: std::io::Error| format!("{}: {error}", from.display());
        std::fs::copy(from, &to).map_err(io)?;
        // Names of functions are a fifth of it. Without `strip` it is only larger.
        let _ = Command::new("strip").arg(&to).status();
        Ok::<u64, String>(std::fs::metadata(&to).map_err(io)?.len())
    };
    let mut bytes = put(&built(root, &["build", "--package", "hone-cli"])?, "hone")?;
    for suite in &SUITES {
        let args = [&["test", "--no-run", "--package", suite.package], suite.target].concat();
        bytes += put(&built(root, &args)?, suite.package)?;
    }
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    bytes += put(&own, "xtask")?;
    match bytes <= MOST_BYTES {
        true => Ok(bytes),
        false => Err(format!("{bytes} bytes are more than the {MOST_BYTES} that may travel")),
    }
}

/// The executable that a cargo command in the release profile makes.
fn built(root: &Path, args: &[&str]) -> Result<PathBuf, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(args)
        .args(["--release", "--message-format=json"])
        .current_dir(root)
        .stderr(std::process::Stdio::inherit())
        .output()
        .map_err(|error| format!("cannot start cargo: {error}"))?;
    let messages = String::from_utf8_lossy(&output.stdout);
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut executables =
        messages.filter_map(|message| Some(message["executable"].as_str()?.into()));
    executables.next_back().ok_or_else(|| format!("cargo {} made no executable", args.join(" ")))
}

/// Runs what was packed on CUDA device `device`, from the root of a checkout; `emulated` runs the
/// suites on an emulation instead, to try this very command.
pub fn run(device: &str) -> ExitCode {
    match try_run(device) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("gpu-check: {error}");
            ExitCode::FAILURE
        }
    }
}

fn try_run(device: &str) -> Result<bool, String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let dir = own.parent().unwrap_or(Path::new(".")).to_path_buf();
    let root = std::env::current_dir().map_err(|error| error.to_string())?;
    if !SUITES.iter().all(|suite| dir.join(suite.package).is_file()) {
        return Err(
            "run `cargo xtask gpu-check pack`, and then `target/gpu-check/xtask gpu-check` \
                    on the machine with the GPU"
                .to_owned(),
        );
    }
    println!("| what | passed | failed | s |\n| --- | ---: | ---: | ---: |");
    let mut all_passed = true;
    for suite in &SUITES {
        all_passed &= run_suite(&root, &dir, suite, device)?;
    }
    if device != "emulated" {
        train(&root, &dir, device)?;
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

/// Trains each model that fits for some steps.
fn train(root: &Path, dir: &Path, device: &str) -> Result<(), String> {
    let doctor = json(Command::new(dir.join("hone")).args(["doctor", "--json"]))?;
    let index = device.parse::<usize>().unwrap_or(0);
    let memory = doctor["gpus"][index]["memory_bytes"].as_u64().unwrap_or(0);
    println!(
        "\n| model | tokens a step | tok/s | step planned, s | actual, s | memory planned, MiB | \
         actual, MiB |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    );
    for case in CASES.iter().filter(|case| case.wants_bytes <= memory) {
        let place = root.join("target/gpu-check/models").join(case.name);
        let io = |error: std::io::Error| format!("{}: {error}", place.display());
        if !place.join("model.safetensors").is_file() {
            write_model(&place, &case.shape, Precision::Bf16).map_err(io)?;
        }
        println!("{}", row(dir, &place, case, device)?);
    }
    Ok(())
}

/// Steps that are timed, after one that also compiles kernels.
const STEPS: usize = 5;

fn row(dir: &Path, place: &Path, case: &Case, device: &str) -> Result<String, String> {
    let (len, out) = (case.max_seq_len, place.join("run"));
    let word = |i: usize| format!("w{}", (i * 7919) % 100_000);
    let document = (0..len - 1).map(word).collect::<Vec<_>>().join(" ");
    let row = serde_json::json!({ "text": document }).to_string();
    let data = place.join("train.jsonl");
    let rows = vec![row; 2 * (STEPS + 1)].join("\n");
    std::fs::write(&data, rows).map_err(|error| format!("{}: {error}", data.display()))?;
    let file = format!(
        "[model]\npath = {place:?}\n[data]\ntrain = [{data:?}]\nmax_seq_len = {len}\n[adapter]\n\
         method = \"lora\"\nrank = 16\n[train]\nbatch_tokens = {}\nmax_steps = {}\n[run]\n\
         device = \"cuda:{device}\"\n[report]\nsamples = 0\n[output]\ndir = {out:?}\n",
        2 * len,
        STEPS + 1,
    );
    let run_file = place.join("run.toml");
    std::fs::write(&run_file, file).map_err(|error| format!("{}: {error}", run_file.display()))?;
    let _ = std::fs::remove_dir_all(&out);
    let plan = json(Command::new(dir.join("hone")).arg("plan").arg(&run_file).arg("--json"))?;
    let trained = Command::new(dir.join("hone")).arg("train").arg(&run_file).output();
    let trained = trained.map_err(|error| error.to_string())?;
    if !trained.status.success() {
        return Err(String::from_utf8_lossy(&trained.stderr).into_owned());
    }
    let metrics = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap_or_default();
    let steps: Vec<Value> =
        metrics.lines().skip(1).filter_map(|line| serde_json::from_str(line).ok()).collect();
    let mut seconds: Vec<f64> =
        steps.iter().filter_map(|step| step["step_seconds"].as_f64()).collect();
    seconds.sort_by(f64::total_cmp);
    let step = seconds.get(seconds.len() / 2).copied().unwrap_or(f64::NAN);
    let peak = steps.last().and_then(|step| step["peak_bytes"].as_u64()).unwrap_or(0);
    let of = |key: &str| plan[key].as_f64().unwrap_or(f64::NAN);
    Ok(format!(
        "| {} | {} | {:.0} | {:.3} | {step:.3} | {:.0} | {} |",
        case.name,
        2 * len,
        2.0 * len as f64 / step,
        of("step_seconds"),
        of("peak_bytes") / f64::from(1 << 20),
        peak >> 20,
    ))
}
