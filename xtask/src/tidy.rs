//! `cargo xtask tidy`: the house rules that a program can check.
//!
//! Each rule is a small pure function over text, so that its tests need no files: [`source`]
//! (sizes, names, headers, unfinished work), [`circles`] (modules that use each other), [`crates`]
//! (dependency directions, lints, documents), [`goldens`] (their size). Formatting is rustfmt's
//! business; lints, long functions and unsafe code among them, are the compiler's and clippy's.
//!
//! Documents made by a program (`docs/run-file.md`, `docs/command-line.md`) are compared with a
//! fresh copy by the tests of the crates that make them; `HONE_WRITE_DOCS=1 cargo test` writes
//! them.

mod circles;
mod crates;
mod goldens;
mod source;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::Path;
use std::process::ExitCode;

/// Folders whose code is checked; everything else is documents, data or build output.
const CODE_FOLDERS: [&str; 4] = ["crates", "xtask", "scripts", ".ci"];
const CIRCLES: &str = "xtask/tidy-circles.txt";

/// One broken rule: where, what, and how to fix it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    path: String,
    /// Counted from 1.
    line: usize,
    message: String,
}

impl Finding {
    fn new(path: &str, line: usize, message: impl Into<String>) -> Self {
        Finding { path: path.to_owned(), line, message: message.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.message)
    }
}

/// Runs as a command of its own.
pub fn run(root: &Path) -> ExitCode {
    if check_and_print(root) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Checks the workspace at `root`, prints what it found, and says whether all is well.
pub fn check_and_print(root: &Path) -> bool {
    match check(root) {
        Ok((num_files, findings)) => {
            for finding in &findings {
                eprintln!("{finding}");
            }
            println!("tidy: {num_files} files, {} findings", findings.len());
            findings.is_empty()
        }
        Err(error) => {
            eprintln!("tidy: {error}");
            false
        }
    }
}

/// The number of source files, and every broken rule in order of place.
fn check(root: &Path) -> std::io::Result<(usize, Vec<Finding>)> {
    let sources = source::read_all(root, &CODE_FOLDERS)?;
    let mut findings = circles::check(&sources, CIRCLES, &read(root, CIRCLES));
    findings.extend(goldens::check(goldens::size(root)?));
    findings.extend(sources.iter().flat_map(source::check));
    for krate in crates::read_all(root)? {
        findings.extend(crates::check(&krate));
        findings.extend(crates::check_map(&krate.name, &read(root, "ARCHITECTURE.md")));
    }
    for document in ["ARCHITECTURE.md", "CHANGELOG.md"] {
        findings.extend(crates::check_document(document, &read(root, document)));
    }
    findings.sort();
    Ok((sources.len(), findings))
}

/// A document's text; empty when it is absent, which its own check reports.
fn read(root: &Path, document: &str) -> String {
    std::fs::read_to_string(root.join(document)).unwrap_or_default()
}
