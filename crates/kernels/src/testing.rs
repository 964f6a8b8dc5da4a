//! Shared by the tests of all crates: which tier runs, and how a test reports that it is skipped.
//!
//! `cargo xtask test` runs every kind of check with few cases of the costly ones; with `--full`, it
//! sets `HONE_TEST_FULL` and all cases run. It counts the lines that [`skip`] writes.

use std::fmt::Display;
use std::io::Write as _;

/// Whether to run all cases instead of a sample of the costly ones.
pub fn is_full() -> bool {
    std::env::var_os("HONE_TEST_FULL").is_some_and(|value| value == "1")
}

/// `all` cases in the full tier, `few` otherwise.
pub fn cases<'a, T>(all: &'a [T], few: &'a [T]) -> &'a [T] {
    if is_full() { all } else { few }
}

/// Reports that the current test, or a part of it, is skipped on this machine, and why.
pub fn skip(reason: impl Display) {
    let thread = std::thread::current();
    // The test harness names each test's thread after the test.
    let test = thread.name().unwrap_or("unknown");
    // Not `eprintln!`, which the harness would capture.
    let _ = writeln!(std::io::stderr(), "skipped test {test}: {reason}");
}
