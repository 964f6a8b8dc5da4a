//! Fuzzing on the stable toolchain: files of a small committed corpus are mutated and read.
//!
//! A reader of foreign files may refuse, with an error, or accept; it must not panic, abort, hang
//! or take memory without bound. One process, the worker, mutates and reads until it dies or time
//! is up; another watches it. What a dead worker read last is kept, with the command that reads it
//! again. Mutations follow from a seed, so that a run can be repeated; it is printed.

mod mutation;
mod targets;
mod watch;
mod worker;

use hone_tensor::allocation::{CountingAllocator, peak_of};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

const USAGE: &str = "\
usage: cargo xtask fuzz TARGET [--seconds N] [--seed N]
       cargo xtask fuzz TARGET --read FILE
TARGET: all, or one of ";

/// Counts what each input takes.
#[global_allocator]
static MEMORY: CountingAllocator = CountingAllocator;

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
struct Options {
    target: String,
    seconds: u64,
    seed: Option<u64>,
    /// Only reads this file.
    read: Option<PathBuf>,
    /// Mutates and reads in this process, in this folder.
    worker: Option<PathBuf>,
}

impl Options {
    fn parse(mut args: impl Iterator<Item = String>) -> Option<Self> {
        let target = args.next().filter(|target| !target.starts_with('-'))?;
        let mut options = Self { target, seconds: 10, seed: None, read: None, worker: None };
        while let Some(flag) = args.next() {
            let value = args.next()?;
            match flag.as_str() {
                "--seconds" => options.seconds = value.parse().ok()?,
                "--seed" => options.seed = Some(value.parse().ok()?),
                "--read" => options.read = Some(PathBuf::from(value)),
                "--worker" => options.worker = Some(PathBuf::from(value)),
                _ => return None,
            }
        }
        Some(options)
    }
}

/// Runs what the command line says; the exit status is 1 if a reader failed.
pub fn main() -> ExitCode {
    let options = Options::parse(std::env::args().skip(1));
    let targets = options.as_ref().map(|options| targets::named(&options.target));
    let (Some(options), Some(targets)) = (options, targets.filter(|found| !found.is_empty()))
    else {
        eprintln!("{USAGE}{}", targets::names().join(", "));
        return ExitCode::from(2);
    };
    match run(&options, &targets) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("fuzz: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The number of failures found.
fn run(options: &Options, targets: &[&targets::Target]) -> std::io::Result<usize> {
    if let Some(dir) = &options.worker {
        let deadline = Duration::from_secs(options.seconds);
        worker::run(targets[0], dir, options.seed.unwrap_or(0), deadline)?;
        return Ok(0);
    }
    if let Some(file) = &options.read {
        let dir = watch::folder("read");
        let input = std::fs::read(file)?;
        let (said, peak) = peak_of(|| worker::read_once(targets[0], &dir, &input));
        println!("{}, with {peak} bytes of memory", said?);
        worker::check_peak(peak, input.len());
        return Ok(0);
    }
    let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let seed = options.seed.unwrap_or_else(|| clock.map_or(0, |time| time.as_secs()));
    let share = Duration::from_secs(options.seconds) / targets.len() as u32;
    targets.iter().map(|target| watch::watch(target, seed, share)).sum()
}

#[cfg(test)]
mod tests;
