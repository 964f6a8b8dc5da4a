//! `cargo xtask test`: everything a change must pass, in one command.
//!
//! Two tiers. Without arguments every kind of check runs, the costly ones on a sample of their
//! cases; `--full` runs all cases, fuzzes the readers of foreign files for a minute, and builds the
//! binary as users do: the compiler has failed on a release build alone. Needs a Rust toolchain and
//! a C compiler ([`tools`]); what else is missing shows as skipped tests, which are counted in the
//! last line and which `--strict` refuses where the machine can do better.

mod suites;
#[cfg(test)]
mod tests;
mod tools;

use crate::{tidy, tools as hone_tools};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};
use suites::Outcome;

/// How much is run, and what of skipped tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// All cases of everything.
    full: bool,
    /// A skip that an installed package would avoid is a failure.
    strict: bool,
}

impl Options {
    /// Reads `[--full] [--strict]`; `None` where there is anything else.
    pub fn parse(args: &[&str]) -> Option<Self> {
        args.iter().try_fold(Self::default(), |options, &arg| match arg {
            "--full" => Some(Self { full: true, ..options }),
            "--strict" => Some(Self { strict: true, ..options }),
            _ => None,
        })
    }
}

/// One stage: its name and the cargo arguments that run it.
struct Stage {
    name: &'static str,
    cargo_args: &'static [&'static str],
}

/// Runs before tidy. Clippy uses the dev profile and the common target directory, so build scripts
/// and procedural macros are built once for it and for the tests.
const LINT_STAGES: [Stage; 2] = [
    Stage { name: "fmt", cargo_args: &["fmt", "--all", "--check"] },
    Stage {
        name: "clippy",
        cargo_args: &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"],
    },
];

/// Examples in the documentation; the suites run everything else.
const DOC_TESTS: Stage =
    Stage { name: "doc tests", cargo_args: &["test", "--workspace", "--doc", "--quiet"] };

const RELEASE: Stage = Stage { name: "release build", cargo_args: &["build", "--release"] };

/// Seconds of fuzzing in the full tier, over all targets.
const FUZZ_SECONDS: u64 = 60;

/// Runs every stage in order and stops at the first that fails.
pub fn run(root: &Path, options: Options) -> ExitCode {
    let mut progress = Progress { start: Instant::now(), num_stages: 0, outcome: None };
    let result = run_stages(root, options, &mut progress);
    let seconds = progress.start.elapsed().as_secs_f64();
    let tier = if options.full { " --full" } else { "" };
    match result {
        Ok(()) => println!(
            "\ncargo xtask test{tier}: all {} stages passed in {seconds:.1} s",
            progress.num_stages
        ),
        Err(stage) => {
            println!("\ncargo xtask test{tier}: FAILED in stage `{stage}` after {seconds:.1} s");
        }
    }
    // Alone on the last line, for programs.
    if let Some(outcome) = &progress.outcome {
        println!("{outcome}");
    }
    if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What the stages so far came to.
struct Progress {
    start: Instant,
    num_stages: usize,
    outcome: Option<Outcome>,
}

impl Progress {
    /// Prints the heading, runs the stage, prints its time.
    fn timed(
        &mut self,
        name: &'static str,
        stage: impl FnOnce() -> bool,
    ) -> Result<(), &'static str> {
        println!("\n== {name}");
        let start = Instant::now();
        let passed = stage();
        println!(
            "-- {name}: {} in {}",
            if passed { "ok" } else { "FAILED" },
            show(start.elapsed())
        );
        self.num_stages += 1;
        if passed { Ok(()) } else { Err(name) }
    }

    fn cargo_stage(&mut self, root: &Path, stage: &Stage) -> Result<(), &'static str> {
        let shown = format!("cargo {}", stage.cargo_args.join(" "));
        self.timed(stage.name, || {
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
}

/// `Err` with the name of the stage that failed.
fn run_stages(root: &Path, options: Options, progress: &mut Progress) -> Result<(), &'static str> {
    progress.timed("tools", || tools::are_there(root))?;
    for stage in &LINT_STAGES {
        progress.cargo_stage(root, stage)?;
    }
    progress.timed("tidy", || tidy::check_and_print(root))?;
    let mut suites = None;
    progress.timed("build tests", || {
        suites = suites::build(root);
        suites.is_some()
    })?;
    let mut outcome = Outcome::default();
    let tests = progress.timed("tests", || {
        outcome = suites::run_all(&suites.unwrap_or_default(), options.full);
        outcome.print_skips();
        outcome.is_good(options.strict)
    });
    progress.outcome = Some(outcome);
    tests?;
    if options.full {
        progress.cargo_stage(root, &DOC_TESTS)?;
        progress.timed("fuzz", || hone_tools::fuzz_all(root, Duration::from_secs(FUZZ_SECONDS)))?;
        progress.cargo_stage(root, &RELEASE)?;
    }
    Ok(())
}

fn show(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// The cargo which runs us, started in the workspace's root.
pub fn cargo(root: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root);
    command
}
