//! Source files, and the rules on the text of each: sizes, names, headers, unfinished work, and
//! lints that are not to be silenced.

use super::Finding;
use std::fs;
use std::io;
use std::path::Path;

/// Kinds of files that count as code.
const CODE_EXTENSIONS: [&str; 8] = ["rs", "py", "sh", "cu", "cuh", "c", "h", "js"];
const MAX_LINES: usize = 600;
/// Model families, which say how they differ from others and compute nothing.
const FAMILIES: &str = "crates/model/src/families/";
const MAX_FAMILY_LINES: usize = 250;
const MAX_COLUMNS: usize = 100;
/// Names that say nothing of what is inside.
const BANNED_NAMES: [&str; 9] =
    ["util", "utils", "helper", "helpers", "manager", "managers", "base", "misc", "common"];
/// Written in two parts, as the lints below, so that this very file is clean.
const UNFINISHED: [&str; 3] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
/// The only files that may allow unsafe code, each for its crate.
const MAY_BE_UNSAFE: [&str; 2] = ["crates/kernels/src/lib.rs", "crates/tensor/src/lib.rs"];
const UNSAFE: &str = concat!("unsafe", "_code");
const LONG_FUNCTIONS: &str = concat!("too_many", "_lines");

/// One file of code.
pub struct Source {
    /// Relative to the workspace's root, with `/` between its parts.
    pub path: String,
    pub text: String,
}

/// Reads every code file below `folders`, in order of path.
pub fn read_all(root: &Path, folders: &[&str]) -> io::Result<Vec<Source>> {
    let mut sources = Vec::new();
    for folder in folders {
        if root.join(folder).is_dir() {
            read_folder(root, folder, &mut sources)?;
        }
    }
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(sources)
}

fn read_folder(root: &Path, folder: &str, sources: &mut Vec<Source>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(folder))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = format!("{folder}/{name}");
        let kind = entry.file_type()?;
        if kind.is_dir() && name != "target" && !name.starts_with('.') {
            read_folder(root, &path, sources)?;
        } else if kind.is_file() && is_code(&path) {
            let text = fs::read_to_string(entry.path())
                .map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))?;
            sources.push(Source { path, text });
        }
    }
    Ok(())
}

fn is_code(path: &str) -> bool {
    let extension = path.rsplit('/').next().and_then(|name| name.rsplit_once('.'));
    path == ".ci/run" || extension.is_some_and(|(_, ext)| CODE_EXTENSIONS.contains(&ext))
}

/// Every rule on one file.
pub fn check(source: &Source) -> Vec<Finding> {
    let Source { path, text } = source;
    let mut found = Vec::new();
    let num_lines = text.lines().count();
    let is_family = path.starts_with(FAMILIES) && !path.ends_with("/mod.rs");
    let max_lines = if is_family { MAX_FAMILY_LINES } else { MAX_LINES };
    if num_lines > max_lines {
        let message = format!("the file has {num_lines} lines, at most {max_lines}: split it");
        found.push((1, message));
    }
    let names = path.split(['/', '.']).filter(|name| BANNED_NAMES.contains(name));
    found.extend(names.map(|name| (1, says_nothing(name))));
    let is_rust = path.ends_with(".rs");
    if is_rust && !text.trim_start().starts_with("//!") && !path.ends_with("/tests.rs") {
        let message = "no header: begin with `//!`, what the module is for and what it leaves out";
        found.push((1, message.to_owned()));
    }
    for (index, line) in text.lines().enumerate() {
        let mut messages = check_line(line);
        messages.extend(is_rust.then(|| silenced(path, line)).flatten());
        found.extend(messages.into_iter().map(|message| (index + 1, message)));
    }
    found.into_iter().map(|(line, message)| Finding::new(path, line, message)).collect()
}

fn says_nothing(name: &str) -> String {
    format!("`{name}` says nothing of what is inside: name it after what it does")
}

fn check_line(line: &str) -> Vec<String> {
    let mut messages = Vec::new();
    let columns = line.chars().count();
    // An address cannot be broken.
    let address = line.split_whitespace().find(|word| word.contains("://"));
    if columns - address.map_or(0, |address| address.chars().count()) > MAX_COLUMNS {
        let message = format!("the line has {columns} columns, at most {MAX_COLUMNS}: break it");
        messages.push(message);
    }
    let words = || line.split(|c| !is_word(c));
    for word in words().filter(|word| UNFINISHED.contains(word)) {
        messages.push(format!("`{word}`: do it now, or open an issue and remove the mark"));
    }
    // A module with a file of its own is found by that file's name.
    let module = line.trim_start().trim_start_matches("pub ").strip_prefix("mod ");
    let name = module.and_then(|rest| rest.strip_suffix(" {"));
    messages.extend(name.filter(|name| BANNED_NAMES.contains(name)).map(says_nothing));
    messages
}

/// What is wrong with naming a lint that the compiler or clippy would otherwise hold us to.
fn silenced(path: &str, line: &str) -> Option<String> {
    if line.contains(UNSAFE) && !MAY_BE_UNSAFE.contains(&path) {
        return Some(
            "unsafe code belongs in crates/kernels (crates/tensor for memory maps): move it there \
             behind a safe function"
                .to_owned(),
        );
    }
    line.contains(LONG_FUNCTIONS).then(|| "split the function".to_owned())
}

pub fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}
