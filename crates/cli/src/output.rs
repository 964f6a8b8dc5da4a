//! What commands print: results on standard output, everything else on standard error.

use serde::Serialize;
use std::io::{ErrorKind, Write};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

static HAS_JSON: AtomicBool = AtomicBool::new(false);

/// Whether a JSON object was printed.
pub fn has_json() -> bool {
    HAS_JSON.load(Ordering::Relaxed)
}

/// Prints one JSON object on standard output.
pub fn json(value: &impl Serialize) {
    HAS_JSON.store(true, Ordering::Relaxed);
    line(&serde_json::to_string(value).expect("a JSON value can be written"));
}

/// Prints a table of names and values, aligned.
pub fn table(rows: &[(&str, String)]) {
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    for (name, value) in rows {
        line(&format!("  {name:<width$}  {value}"));
    }
}

/// Prints a line of a result.
pub fn line(text: &str) {
    let _ = piece(&format!("{text}\n"));
}

/// Prints a piece of a result at once; stops quietly on a closed pipe. A full disk ends the program
/// with status 1: a result that is lost must not look like success.
pub fn piece(text: &str) -> ControlFlow<()> {
    let mut out = std::io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => ControlFlow::Break(()),
        Err(error) => {
            note(&format!("error: cannot write to standard output: {error}"));
            std::process::exit(1)
        }
    }
}

/// Prints a line on standard error. A closed pipe there does not stop a run.
pub fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
