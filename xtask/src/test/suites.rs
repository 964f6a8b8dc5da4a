//! Builds the workspace's test binaries, runs several at a time, and counts.
//!
//! Cargo runs one binary after another, and the tail of each leaves cores idle. Here the next
//! begins as soon as there is room. A binary that is killed or prints no result counts as one
//! failed test.

use super::{cargo, show};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Names of suites that take longest, which begin first.
const LONGEST: [&str; 4] =
    ["hone-cli cli", "hone-train train", "hone-tensor hone_tensor", "hone-train hone_train"];

/// Reasons to skip that no package mends: anything else fails under `--strict`.
const UNAVOIDABLE: [&str; 4] = [
    "../shared is absent",
    "in target/models",
    "mounting a small disk needs root",
    "the memory of a process is read on Linux only",
];

/// A test binary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suite {
    /// Package and target.
    pub name: String,
    pub package_dir: PathBuf,
    pub executable: PathBuf,
}

/// Builds everything; `None` where that fails, which cargo has then explained.
pub fn build(root: &Path) -> Option<Vec<Suite>> {
    let mut build = cargo(root);
    build.args(["test", "--workspace", "--no-run", "--message-format=json-render-diagnostics"]);
    let output = build.stderr(Stdio::inherit()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut suites: Vec<Suite> = text.lines().filter_map(suite).collect();
    let rank = |suite: &Suite| {
        LONGEST.iter().position(|name| *name == suite.name).unwrap_or(LONGEST.len())
    };
    suites.sort_by_key(|suite| (rank(suite), suite.name.clone()));
    output.status.success().then_some(suites)
}

/// The test binary that a line of cargo's messages tells of.
pub fn suite(message: &str) -> Option<Suite> {
    let message: Value = serde_json::from_str(message).ok()?;
    let is_test = message["profile"]["test"] == true;
    let executable = message["executable"].as_str().filter(|_| is_test)?;
    let package_dir = Path::new(message["manifest_path"].as_str()?).parent()?.to_path_buf();
    // `path+file:///…/crates/cli#hone-cli@0.1.0` or `path+file:///…/xtask#0.1.0`.
    let id = message["package_id"].as_str()?.rsplit(['#', '/']).next()?;
    let package = match id.split_once('@') {
        Some((name, _)) => name,
        None => package_dir.file_name()?.to_str()?,
    };
    let name = format!("{package} {}", message["target"]["name"].as_str()?);
    Some(Suite { name, package_dir, executable: PathBuf::from(executable) })
}

/// What running a suite, or all of them, came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Tests that ran and found nothing wrong, those in `skips` apart.
    pub passed: usize,
    pub failed: usize,
    /// Marked `#[ignore]`.
    pub ignored: usize,
    /// Suite, test and reason.
    pub skips: BTreeSet<(String, String, String)>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let skipped = self.num_skipped() + self.ignored;
        let passed = self.passed.saturating_sub(self.num_skipped());
        write!(f, "{passed} passed, {} failed, {skipped} skipped", self.failed)
    }
}

impl Outcome {
    /// Reads what one suite printed.
    pub fn of(suite: &str, stdout: &str, stderr: &str) -> Self {
        let mut outcome = Self::default();
        let result = stdout.lines().rev().find_map(|line| line.strip_prefix("test result: "));
        let Some(result) = result else { return Self { failed: 1, ..outcome } };
        for part in result.split([';', '.']) {
            let mut words = part.split_whitespace();
            let number = words.next().and_then(|word| word.parse().ok());
            match (number, words.next()) {
                (Some(number), Some("passed")) => outcome.passed = number,
                (Some(number), Some("failed")) => outcome.failed = number,
                (Some(number), Some("ignored")) => outcome.ignored = number,
                _ => {}
            }
        }
        let skips = stderr.lines().filter_map(|line| {
            // The harness's own line may stand before it.
            let (_, skip) = line.split_once("skipped test ")?;
            let (test, reason) = skip.split_once(": ")?;
            Some((suite.to_owned(), test.to_owned(), reason.to_owned()))
        });
        outcome.skips = skips.collect();
        outcome
    }

    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
        self.skips.extend(other.skips);
    }

    fn num_skipped(&self) -> usize {
        let tests = self.skips.iter().map(|(suite, test, _)| (suite, test));
        tests.collect::<BTreeSet<_>>().len()
    }

    /// Whether nothing failed and, under `strict`, no test was skipped without need.
    pub fn is_good(&self, strict: bool) -> bool {
        self.failed == 0 && !(strict && self.skips.iter().any(is_avoidable))
    }

    /// One line for each skipped test.
    pub fn print_skips(&self) {
        for skip @ (suite, test, reason) in &self.skips {
            let note = if is_avoidable(skip) { " (can be installed)" } else { "" };
            println!("skipped: {suite} {test}: {reason}{note}");
        }
    }
}

fn is_avoidable((_, _, reason): &(String, String, String)) -> bool {
    !UNAVOIDABLE.iter().any(|known| reason.contains(known))
}

/// Runs all suites, as many at a time as there are cores, and prints a line for each.
pub fn run_all(suites: &[Suite], full: bool) -> Outcome {
    let waiting = Mutex::new(suites.iter());
    let total = Mutex::new(Outcome::default());
    let next = || waiting.lock().ok()?.next();
    let work = || {
        while let Some(suite) = next() {
            let outcome = run_one(suite, full);
            if let Ok(mut total) = total.lock() {
                total.add(outcome);
            }
        }
    };
    let num_workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..num_workers).for_each(|_| drop(scope.spawn(work))));
    total.into_inner().unwrap_or_default()
}

fn run_one(suite: &Suite, full: bool) -> Outcome {
    let start = Instant::now();
    let mut command = Command::new(&suite.executable);
    // As cargo sets them.
    command.current_dir(&suite.package_dir).env("CARGO_MANIFEST_DIR", &suite.package_dir);
    if full {
        command.env("HONE_TEST_FULL", "1");
    }
    let output = match command.stdin(Stdio::null()).output() {
        Ok(output) => output,
        Err(error) => {
            println!("{}: cannot be started: {error}", suite.name);
            return Outcome { failed: 1, ..Outcome::default() };
        }
    };
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let mut outcome = Outcome::of(&suite.name, &stdout, &stderr);
    if !output.status.success() {
        outcome.failed = outcome.failed.max(1);
    }
    report(suite, &outcome, &[&stdout, &stderr], start.elapsed());
    outcome
}

/// One write, so that lines of several workers stay apart; all that a failed suite said.
fn report(suite: &Suite, outcome: &Outcome, said: &[&str], time: Duration) {
    let said = if outcome.failed > 0 { said.concat() } else { String::new() };
    println!("{said}{}: {outcome} in {}", suite.name, show(time));
}
