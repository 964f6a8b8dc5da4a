//! What tests of all crates share: which tier runs, and how a test says that it cannot run here.
//!
//! `cargo xtask test` runs every kind of check with few cases of the costly ones; with `--full`, it
//! sets `HONE_TEST_FULL`, and all cases run. It counts the lines that [`skip`] writes.

use std::fmt::Display;
use std::io::Write as _;

/// Whether all cases are asked for, not a sample of the costly ones.
pub fn is_full() -> bool {
    std::env::var_os("HONE_TEST_FULL").is_some_and(|value| value == "1")
}

/// `all` of them in the full tier, `few` otherwise.
pub fn cases<'a, T>(all: &'a [T], few: &'a [T]) -> &'a [T] {
    if is_full() { all } else { few }
}

/// Says that the running test, or a part of it, is skipped on this machine, and why.
pub fn skip(reason: impl Display) {
    let thread = std::thread::current();
    // The test harness runs each test in a thread of its name.
    let test = thread.name().unwrap_or("unknown");
    // Not by a macro: the harness would swallow it.
    let _ = writeln!(std::io::stderr(), "skipped test {test}: {reason}");
}
