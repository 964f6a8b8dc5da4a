//! What commands print: results on standard output, everything else on standard error.

use serde_json::Value;
use std::io::{ErrorKind, Write};

/// Prints one JSON object on standard output.
pub fn json(value: &Value) {
    line(&serde_json::to_string(value).expect("a JSON value can be written"));
}

/// Prints a table of names and values, names aligned.
pub fn table(rows: &[(&str, String)]) {
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    for (name, value) in rows {
        line(&format!("  {name:<width$}  {value}"));
    }
}

/// Prints a line of a result. A reader that has gone away is no failure; a full disk is, and ends
/// the program with status 1, since a result that is lost must not look like success.
pub fn line(text: &str) {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            note(&format!("error: cannot write to standard output: {error}"));
            std::process::exit(1)
        }
        _ => {}
    }
}

/// Prints a line on standard error. A run goes on when nobody reads it.
pub fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
