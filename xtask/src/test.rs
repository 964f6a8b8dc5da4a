//! `cargo xtask test`: everything a change must pass, in one command.
//!
//! Needs a Rust toolchain and a C compiler. Missing toolchain components are added through
//! `rustup` where there is one; anything else that is missing is named with the command that
//! installs it. Nothing here touches the network once the crates are in cargo's cache and NVRTC,
//! which is optional, is in the target directory.

use crate::tidy;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// One stage: its name and the cargo arguments that run it.
struct Stage {
    name: &'static str,
    cargo_args: &'static [&'static str],
}

/// Runs before tidy. Clippy uses the dev profile and the common target directory, so build scripts
/// and procedural macros are built once for it and for the tests. The lint on unsafe blocks is
/// named because the crates that may hold unsafe code do not take the workspace's lints.
const LINT_STAGES: [Stage; 2] = [
    Stage { name: "fmt", cargo_args: &["fmt", "--all", "--check"] },
    Stage {
        name: "clippy",
        cargo_args: &[
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
            "-D",
            "clippy::undocumented_unsafe_blocks",
        ],
    },
];

const TESTS: Stage = Stage { name: "tests", cargo_args: &["test", "--workspace"] };

/// Runs every stage in order and stops at the first that fails.
pub fn run(root: &Path) -> ExitCode {
    let start = Instant::now();
    match run_stages(root) {
        Ok(num_stages) => {
            let seconds = start.elapsed().as_secs_f64();
            println!("\ncargo xtask test: all {num_stages} stages passed in {seconds:.1} s");
            ExitCode::SUCCESS
        }
        Err(stage) => {
            let seconds = start.elapsed().as_secs_f64();
            eprintln!("\ncargo xtask test: FAILED in stage `{stage}` after {seconds:.1} s");
            ExitCode::FAILURE
        }
    }
}

/// The number of stages passed, or the name of the one that failed.
fn run_stages(root: &Path) -> Result<usize, &'static str> {
    timed("tools", || tools_are_there(root))?;
    for stage in &LINT_STAGES {
        cargo_stage(root, stage)?;
    }
    timed("tidy", || tidy::check_and_print(root))?;
    cargo_stage(root, &TESTS)?;
    Ok(LINT_STAGES.len() + 3)
}

fn cargo_stage(root: &Path, stage: &Stage) -> Result<(), &'static str> {
    let shown = format!("cargo {}", stage.cargo_args.join(" "));
    timed(stage.name, || {
        println!("$ {shown}");
        match cargo(root).args(stage.cargo_args).status() {
            Ok(status) => status.success(),
            Err(error) => {
                eprintln!("cannot start `{shown}`: {error}");
                false
            }
        }
    })
}

/// Prints the heading, runs the stage, prints its time.
fn timed(name: &'static str, stage: impl FnOnce() -> bool) -> Result<(), &'static str> {
    println!("\n== {name}");
    let start = Instant::now();
    let passed = stage();
    println!("-- {name}: {} in {}", if passed { "ok" } else { "FAILED" }, show(start.elapsed()));
    if passed { Ok(()) } else { Err(name) }
}

fn show(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// The cargo which runs us, started in the workspace's root.
fn cargo(root: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root);
    command
}

/// Checks for everything the later stages start. Prints one line for each thing.
fn tools_are_there(root: &Path) -> bool {
    let fmt = component(root, "rustfmt", "fmt");
    let clippy = component(root, "clippy", "clippy");
    let compiler = c_compiler();
    nvrtc(root);
    fmt && clippy && compiler
}

/// NVIDIA's compiler for kernels, from PyPI. It needs no GPU, and a test compiles every kernel with
/// it; where it cannot be had, that test says that it is skipped.
fn nvrtc(root: &Path) {
    let folder = root.join("target/nvrtc");
    if !folder.is_dir() {
        let python = if cfg!(windows) { "python" } else { "python3" };
        let mut pip = Command::new(python);
        pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--target"]).arg(&folder);
        answers(pip.arg("nvidia-cuda-nvrtc>=13,<14"));
    }
    let found = folder.join("nvidia/cu13/lib").is_dir();
    if !found {
        // What half an installation left would keep the next one from being tried.
        let _ = std::fs::remove_dir_all(&folder);
    }
    let state = if found { "found" } else { "absent: kernels are not compiled for GPUs here" };
    println!("NVRTC: {state}");
}

/// A component of the Rust toolchain, added through `rustup` when it is absent.
fn component(root: &Path, name: &str, subcommand: &str) -> bool {
    if answers(cargo(root).args([subcommand, "--version"])) {
        println!("{name}: found");
        return true;
    }
    println!("{name}: missing, trying `rustup component add {name}`");
    let added = Command::new("rustup").args(["component", "add", name]).current_dir(root).status();
    if added.is_ok_and(|status| status.success())
        && answers(cargo(root).args([subcommand, "--version"]))
    {
        println!("{name}: added");
        return true;
    }
    eprintln!(
        "{name} is missing and could not be added. Install it with\n    \
         rustup component add {name}\nor, where Rust comes from the system's packages, install \
         its package `{name}` (Debian, Ubuntu: apt-get install rustfmt rust-clippy)"
    );
    false
}

/// The C compiler, which links every Rust binary and compiles the TLS library's assembly.
fn c_compiler() -> bool {
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    // CC may carry arguments or a wrapper ("ccache gcc").
    let mut words = compiler.split_whitespace();
    let program = words.next().unwrap_or("cc");
    if answers(Command::new(program).args(words).arg("--version")) {
        println!("C compiler: found ({compiler})");
        return true;
    }
    eprintln!(
        "a C compiler is missing (`{compiler} --version` does not run). Install one:\n    \
         Debian, Ubuntu: apt-get install gcc libc6-dev\n    \
         Fedora: dnf install gcc\n    \
         macOS: xcode-select --install\nor name yours in CC"
    );
    false
}

fn answers(command: &mut Command) -> bool {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}
