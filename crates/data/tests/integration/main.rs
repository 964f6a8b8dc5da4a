//! Tests of the public interface, one file for each part.

mod chat_goldens;
mod chat_spans;
mod chunks;
mod errors;
mod faults;
mod fixture;
mod formats;
mod packing;
mod preference;
mod real_files;
mod streaming;

use std::io::Write as _;
use std::path::PathBuf;

/// The folder of shared test files beside the checkout; `None`, said aloud, where it is absent.
fn shared() -> Option<PathBuf> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    if path.is_dir() {
        return Some(path);
    }
    skip("../shared is absent");
    None
}

/// Says that a test is left out.
fn skip(reason: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("unknown");
    // Not by a macro: the test harness would swallow it. `cargo xtask test` counts such lines.
    let _ = writeln!(std::io::stderr(), "skipped test {test}: {reason}");
}
