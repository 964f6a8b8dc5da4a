//! Runs that are killed under one instruction set and go on under another.

use super::super::Place;
use super::record::names;
use super::{Parts, RUNS, ended, parts, remove, train};
use std::process::Stdio;
use std::time::Duration;

/// The run, which is too short for a test that is late.
const RUN: usize = 0;
const NUM_THREADS: usize = 2;
/// The first checkpoint.
const CHECKPOINT: &str = "checkpoints/step-4";
const DIR: &str = "killed";

/// A run that ended as if nothing had happened to it.
pub struct Killed {
    /// The instruction set under which it was killed.
    pub first: &'static str,
    /// The one that it went on under.
    pub then: &'static str,
}

/// Between the two best of `sets`, there and back; none where there is but one.
pub fn both_ways(
    place: &Place,
    sets: &[&'static str],
    expected: &Parts,
) -> Result<Vec<Killed>, String> {
    let [.., a, b] = sets else { return Ok(Vec::new()) };
    [(b, a), (a, b)].into_iter().map(|(first, then)| once(place, first, then, expected)).collect()
}

fn once(
    place: &Place,
    first: &'static str,
    then: &'static str,
    expected: &Parts,
) -> Result<Killed, String> {
    eprintln!("killed under {first}, resumed under {then}");
    let (run, dir) = (&RUNS[RUN], place.dir.join(DIR));
    remove(&dir)?;
    kill(place, first)?;
    let mut resume = train(place, run, then, NUM_THREADS, DIR);
    let said = ended(resume.arg("--resume"))?;
    if !said.lines().any(|line| line.starts_with("continuing after step ")) {
        return Err(format!("killed under {first}, it did not go on under {then}:\n{said}"));
    }
    let found = parts(&dir)?;
    match (0..found.len()).find(|&i| found[i] != expected[i]) {
        None => Ok(Killed { first, then }),
        Some(part) => Err(format!(
            "{}, {}: {} if killed under {first} and resumed under {then}, and {} otherwise",
            run.key,
            names(run)[part],
            found[part],
            expected[part]
        )),
    }
}

/// Starts the run and ends it by SIGKILL as soon as there is a checkpoint.
fn kill(place: &Place, set: &str) -> Result<(), String> {
    let mut command = train(place, &RUNS[RUN], set, NUM_THREADS, DIR);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|error| format!("{command:?}: {error}"))?;
    let checkpoint = place.dir.join(DIR).join(CHECKPOINT);
    while !checkpoint.is_dir() && child.try_wait().is_ok_and(|status| status.is_none()) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let _ = child.kill();
    let status = child.wait().map_err(|error| error.to_string())?;
    match status.code() {
        None => Ok(()),
        Some(code) => {
            Err(format!("under {set} the run ended before it was killed (status {code})"))
        }
    }
}
