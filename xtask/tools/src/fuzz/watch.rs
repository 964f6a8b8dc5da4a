//! Watches a worker: notes crashes, hangs and memory without bound, and starts another.

use super::targets::Target;
use super::worker;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Longest time for one input. Far above what any takes, so that a busy machine is no hang.
const PATIENCE: Duration = Duration::from_secs(20);
/// A worker's address space, in KiB, where the shell can limit it: what one allocation may ask for
/// that is never counted, as it fails. What inputs may take is far less.
const MEMORY_KIB: u64 = 3 << 20;
/// Failures of a target after which it is left alone.
const MAX_FAILURES: usize = 5;

/// Below the target directory that this program was built into.
pub fn folder(name: &str) -> PathBuf {
    let program = std::env::current_exe().ok();
    let target = program.as_deref().and_then(Path::parent).and_then(Path::parent);
    target.unwrap_or(Path::new("target")).join("fuzz-files").join(name)
}

/// Fuzzes one target for `time`; the number of failures.
pub fn watch(target: &Target, seed: u64, time: Duration) -> std::io::Result<usize> {
    let dir = folder(target.name);
    let start = Instant::now();
    let (mut num_inputs, mut num_accepted, mut num_failures) = (0, 0, 0);
    while start.elapsed() < time && num_failures < MAX_FAILURES {
        worker::prepare(&dir)?;
        let left = (time - start.elapsed()).as_secs().max(1);
        let seed = seed.wrapping_add(num_failures as u64);
        let mut child = spawn(target, &dir, seed, left)?;
        let (progress, failure) = follow(&mut child)?;
        num_inputs += progress.0;
        num_accepted += progress.1;
        if let Some(failure) = failure {
            num_failures += 1;
            keep(target, &dir, &format!("{seed}-{}", progress.0), &failure)?;
        }
    }
    println!(
        "{}: {num_inputs} inputs, {num_accepted} of them accepted, {num_failures} failures (seed \
         {seed})",
        target.name
    );
    Ok(num_failures)
}

/// A worker with bounded memory.
fn spawn(target: &Target, dir: &Path, seed: u64, seconds: u64) -> std::io::Result<Child> {
    let program = std::env::current_exe()?;
    let limited = format!("ulimit -v {MEMORY_KIB} 2>/dev/null; exec \"$0\" \"$@\"");
    let mut command = Command::new("sh");
    command.arg("-c").arg(limited).arg(program).arg(target.name).arg("--worker").arg(dir);
    command.args(["--seed", &seed.to_string(), "--seconds", &seconds.to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command.stderr(std::fs::File::create(dir.join("stderr.txt"))?).spawn()
}

/// How many inputs a worker read and accepted, and how it failed.
fn follow(child: &mut Child) -> std::io::Result<((u64, u64), Option<String>)> {
    let lines = lines_of(child);
    let mut progress = (0, 0);
    let failure = loop {
        match lines.recv_timeout(PATIENCE) {
            Ok(line) => progress = numbers(&line).unwrap_or(progress),
            Err(RecvTimeoutError::Timeout) => {
                child.kill()?;
                child.wait()?;
                break Some(format!("hangs: more than {} s", PATIENCE.as_secs()));
            }
            Err(RecvTimeoutError::Disconnected) => {
                let status = child.wait()?;
                break (!status.success()).then(|| format!("crashes: {status}"));
            }
        }
    };
    Ok((progress, failure))
}

/// The lines that a worker prints; disconnected at their end.
fn lines_of(child: &mut Child) -> Receiver<String> {
    let (sender, receiver) = channel();
    if let Some(out) = child.stdout.take() {
        std::thread::spawn(move || {
            let lines = BufReader::new(out).lines().map_while(Result::ok);
            lines.take_while(|line| sender.send(line.clone()).is_ok()).count()
        });
    }
    receiver
}

fn numbers(line: &str) -> Option<(u64, u64)> {
    let (inputs, accepted) = line.split_once(' ')?;
    Some((inputs.parse().ok()?, accepted.parse().ok()?))
}

/// Keeps what a failed worker read last, and prints how it is read again.
fn keep(target: &Target, dir: &Path, name: &str, failure: &str) -> std::io::Result<()> {
    let failures = folder("failures");
    std::fs::create_dir_all(&failures)?;
    let kept = failures.join(format!("{}-{name}", target.name));
    std::fs::copy(dir.join(target.file), &kept)?;
    let said = std::fs::read_to_string(dir.join("stderr.txt")).unwrap_or_default();
    println!(
        "{} {failure}\n{said}    cargo xtask fuzz {} --read {}",
        target.name,
        target.name,
        kept.display()
    );
    Ok(())
}
