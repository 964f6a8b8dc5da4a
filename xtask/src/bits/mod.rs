//! `cargo xtask bits`: SHA-256 of what small training runs compute, to show that a change moves no
//! bit.
//!
//! A tiny model of fixed weights is trained in every way that Hone promises to repeat: adapter and
//! all weights, in f32, bf16 and int8. Each run gives a digest of its resulting weights (names,
//! types, shapes and values, in order of name; not of the file, whose header may change) and one of
//! its losses and gradient norms. Digests do not depend on the machine: Hone's results on a CPU
//! depend neither on its instruction set nor on the number of threads.

mod cases;
pub(crate) mod digest;

use cases::{CASES, Case};
use digest::Digests;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Digests as they should be, one run a line.
const RECORD: &str = "xtask/bits.txt";

/// What to compare with what.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Hone's binary; a release build unless given.
    pub hone: Option<PathBuf>,
    /// Another binary to compare with, instead of [`RECORD`].
    pub against: Option<PathBuf>,
    /// Writes [`RECORD`] instead of comparing with it.
    pub record: bool,
}

impl Options {
    /// Reads `[HONE] [--against BINARY | --record]`.
    pub fn parse(args: &[&str]) -> Result<Self, String> {
        let mut options = Self::default();
        let mut args = args.iter();
        while let Some(&arg) = args.next() {
            match arg {
                "--record" => options.record = true,
                "--against" => {
                    let binary = args.next().ok_or("--against needs a binary")?;
                    options.against = Some(PathBuf::from(binary));
                }
                _ if !arg.starts_with('-') && options.hone.is_none() => {
                    options.hone = Some(PathBuf::from(arg));
                }
                _ => return Err(format!("unknown argument `{arg}`")),
            }
        }
        match (options.record, &options.against) {
            (true, Some(_)) => Err("--record and --against exclude each other".to_owned()),
            _ => Ok(options),
        }
    }
}

/// Runs all cases and compares; the exit status says whether every digest is as expected.
pub fn run(root: &Path, args: &[&str]) -> ExitCode {
    let options = match Options::parse(args) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("bits: {error}");
            return ExitCode::from(2);
        }
    };
    match compare(root, &options) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bits: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The number of runs whose digests are not as expected.
fn compare(root: &Path, options: &Options) -> Result<usize, String> {
    let hone = match &options.hone {
        Some(path) => std::path::absolute(path).map_err(|error| error.to_string())?,
        None => crate::bench::build(root)?,
    };
    let dir = root.join("target/bits");
    let found = digests_of(&hone, &dir)?;
    if options.record {
        let path = root.join(RECORD);
        std::fs::write(&path, listing(&found)).map_err(|error| format!("{RECORD}: {error}"))?;
        println!("bits: {} runs written to {RECORD}", found.len());
        return Ok(0);
    }
    let expected = match &options.against {
        Some(binary) => {
            let binary = std::path::absolute(binary).map_err(|error| error.to_string())?;
            digests_of(&binary, &dir)?
        }
        None => {
            let text = std::fs::read_to_string(root.join(RECORD))
                .map_err(|error| format!("{RECORD}: {error}; write it with --record"))?;
            parse_listing(&text)
        }
    };
    let differing: Vec<String> = differences(&found, &expected);
    print!("{}", listing(&found));
    differing.iter().for_each(|line| println!("{line}"));
    println!("bits: {} runs, {} differ", found.len(), differing.len());
    Ok(differing.len())
}

type Runs = Vec<(String, Digests)>;

/// Trains every case with `hone` in directories of their own below `dir`.
fn digests_of(hone: &Path, dir: &Path) -> Result<Runs, String> {
    let _ = std::fs::remove_dir_all(dir);
    cases::write_inputs(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let spelling = cases::Spelling::of(hone, dir)?;
    CASES.iter().map(|case| Ok((case.name.to_owned(), train(hone, dir, case, spelling)?))).collect()
}

fn train(
    hone: &Path,
    dir: &Path,
    case: &Case,
    spelling: cases::Spelling,
) -> Result<Digests, String> {
    let run_file = dir.join(format!("{}.toml", case.name));
    std::fs::write(&run_file, case.run_file(spelling)).map_err(|error| error.to_string())?;
    let output = Command::new(hone)
        .arg("train")
        .arg(&run_file)
        .current_dir(dir)
        .env("XDG_CACHE_HOME", dir.join("cache"))
        .output()
        .map_err(|error| format!("{}: {error}", hone.display()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{} failed in {}:\n{said}", hone.display(), case.name));
    }
    Digests::of_run(&dir.join(case.name)).map_err(|error| format!("{}: {error}", case.name))
}

/// `name weights losses`, one run a line.
fn listing(runs: &Runs) -> String {
    runs.iter().fold(String::new(), |mut text, (name, digests)| {
        let _ = writeln!(text, "{name:<24} {} {}", digests.weights, digests.losses);
        text
    })
}

fn parse_listing(text: &str) -> Runs {
    let line = |line: &str| {
        let mut words = line.split_whitespace().map(str::to_owned);
        let name = words.next()?;
        Some((name, Digests { weights: words.next()?, losses: words.next()? }))
    };
    text.lines().filter_map(line).collect()
}

/// One line for each run that differs or is on one side only.
fn differences(found: &Runs, expected: &Runs) -> Vec<String> {
    let of =
        |runs: &Runs, name: &str| runs.iter().find(|run| run.0 == name).map(|run| run.1.clone());
    let missing = expected.iter().filter(|run| of(found, &run.0).is_none());
    let missing = missing.map(|run| format!("{}: expected, but not run", run.0));
    let differing = found.iter().filter_map(|(name, digests)| match of(expected, name) {
        None => Some(format!("{name}: nothing to compare with")),
        Some(other) => {
            let weights = (digests.weights != other.weights).then_some("weights");
            let losses = (digests.losses != other.losses).then_some("losses");
            let parts: Vec<&str> = [weights, losses].into_iter().flatten().collect();
            (!parts.is_empty()).then(|| format!("{name}: {} differ", parts.join(" and ")))
        }
    });
    differing.chain(missing).collect()
}

#[cfg(test)]
mod tests;
