//! The process that mutates and reads until it dies.

use super::mutation::{Random, mutate};
use super::targets::{Target, corpus};
use hone_tensor::allocation::peak_of;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

/// Mutates and reads in `dir`, which holds a copy of the corpus's `base`, until `time` is up.
/// Prints a line after each input: how many there were, and how many of them were accepted.
pub fn run(target: &Target, dir: &Path, seed: u64, time: Duration) -> std::io::Result<()> {
    let seeds = target.seeds()?;
    let file = dir.join(target.file);
    let mut out = std::io::stdout().lock();
    let (start, mut num_accepted) = (Instant::now(), 0);
    for index in 0u64.. {
        if start.elapsed() >= time {
            break;
        }
        let input = mutate(&seeds, &mut Random::new(seed, index));
        std::fs::write(&file, &input)?;
        let (said, peak) = peak_of(|| (target.read)(dir));
        check_peak(peak, input.len());
        num_accepted += u64::from(said.is_ok());
        writeln!(out, "{} {num_accepted}", index + 1)?;
        out.flush()?;
    }
    Ok(())
}

/// The most memory that reading a file may take besides as much as the file has.
const MAX_MORE: usize = 64 << 20;

/// # Panics
/// If reading an input of this length took too much memory.
pub fn check_peak(peak: usize, length: usize) {
    let most = length + MAX_MORE;
    assert!(peak <= most, "{length} bytes took {peak} bytes of memory to read, at most {most} may");
}

/// Reads one file instead of mutated ones; what the reader says. Memory is not bounded: tests run
/// at the same time.
pub fn read_once(target: &Target, dir: &Path, bytes: &[u8]) -> std::io::Result<String> {
    prepare(dir)?;
    std::fs::write(dir.join(target.file), bytes)?;
    Ok(match (target.read)(dir) {
        Ok(()) => "accepted".to_owned(),
        Err(error) => format!("refused: {error}"),
    })
}

/// Makes `dir` a fresh copy of the corpus's `base`.
pub fn prepare(dir: &Path) -> std::io::Result<()> {
    let _ = std::fs::remove_dir_all(dir);
    copy(&corpus().join("base"), dir)
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to)?;
        } else {
            std::fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}
