//! Rules on what a source file says: unsafe code, unfinished work, headers, names.

use super::Finding;
use super::source::{self, Line, Source};

/// The only folders that may hold unsafe code.
const UNSAFE_FOLDERS: [&str; 2] = ["crates/kernels/", "crates/tensor/"];
/// Names that say nothing of what is inside.
const BANNED_NAMES: [&str; 9] =
    ["util", "utils", "helper", "helpers", "manager", "managers", "base", "misc", "common"];
/// Written in two parts, so that this very file is clean.
const UNFINISHED_WORDS: [&str; 3] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
const UNFINISHED_MACROS: [&str; 3] = ["todo", "unimplemented", "dbg"];

/// Every rule on one file.
pub fn check(source: &Source) -> Vec<Finding> {
    let mut findings = check_names(source);
    findings.extend(check_unfinished(source));
    if source.is_rust() {
        findings.extend(check_unsafe(source));
        findings.extend(check_header(source));
    }
    findings
}

/// Files and folders, and modules declared inside a file.
fn check_names(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    let folders = source.path.rsplit_once('/').map_or("", |(folders, _)| folders);
    let names = folders.split('/').chain([source.stem()]);
    for name in names.filter(|name| BANNED_NAMES.contains(name)) {
        findings.push(Finding::new(&source.path, 1, banned(name)));
    }
    for pair in source::tokens(&source.lines).windows(3) {
        // A module with a file of its own is found by that file's name.
        if pair[0].1 == "mod" && pair[2].1 == "{" && BANNED_NAMES.contains(&pair[1].1) {
            findings.push(Finding::new(&source.path, pair[1].0, banned(pair[1].1)));
        }
    }
    findings
}

fn banned(name: &str) -> String {
    format!("`{name}` says nothing of what is inside: name it after what it does")
}

fn check_unfinished(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, text) in source.text.lines().enumerate() {
        let text = source.lines.get(index).map_or(text, |line| &line.comment);
        for word in UNFINISHED_WORDS.iter().filter(|word| source::has_word(text, word)) {
            let message = format!("`{word}`: do it now, or open an issue and remove the mark");
            findings.push(Finding::new(&source.path, index + 1, message));
        }
    }
    for pair in source::tokens(&source.lines).windows(2) {
        let (line, name) = pair[0];
        if pair[1].1 == "!" && UNFINISHED_MACROS.contains(&name) {
            let message = format!("`{name}!` must not be committed: finish or remove it");
            findings.push(Finding::new(&source.path, line, message));
        }
    }
    findings
}

/// Where unsafe code may not be, any; where it may, implementations without a reason. Clippy's
/// `undocumented_unsafe_blocks` sees to the blocks.
fn check_unsafe(source: &Source) -> Vec<Finding> {
    let allowed = UNSAFE_FOLDERS.iter().any(|folder| source.path.starts_with(folder));
    let tokens = source::tokens(&source.lines);
    let mut findings = Vec::new();
    for (i, &(line, token)) in tokens.iter().enumerate() {
        if token != "unsafe" {
            continue;
        }
        let next = tokens.get(i + 1).map_or("", |&(_, next)| next);
        if !allowed {
            let message = "unsafe code belongs in crates/kernels (crates/tensor for memory maps): \
                           move it there behind a safe function";
            findings.push(Finding::new(&source.path, line, message));
        } else if next == "impl" && !has_safety_comment(&source.lines, line) {
            let message = "`unsafe impl` without a reason: write `// SAFETY: why it holds` above";
            findings.push(Finding::new(&source.path, line, message));
        }
    }
    findings
}

/// Whether the line, or the comments and attributes right above it, give the reason.
fn has_safety_comment(lines: &[Line], line: usize) -> bool {
    let above = lines[..line - 1].iter().rev().take_while(|above| {
        let code = above.code.trim();
        (code.is_empty() && !above.comment.is_empty()) || code.starts_with('#')
    });
    std::iter::once(&lines[line - 1]).chain(above).any(|l| l.comment.contains("SAFETY:"))
}

fn check_header(source: &Source) -> Vec<Finding> {
    let has_header = source.text.trim_start().starts_with("//!");
    if has_header || source.path.ends_with("/tests.rs") {
        return Vec::new();
    }
    let message = "no header: begin with `//!`, what the module is for and what it leaves out";
    vec![Finding::new(&source.path, 1, message)]
}
