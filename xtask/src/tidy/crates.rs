//! Rules on crates: who may depend on whom, the workspace's lints, and the documents.

use super::Finding;
use super::source;
use std::fs;
use std::io;
use std::path::Path;

/// Who may depend on whom, by folder. The binary may use everything.
const MAY_DEPEND_ON: [(&str, &[&str]); 13] = [
    ("kernels", &[]),
    ("tensor", &["kernels"]),
    ("model", &["tensor"]),
    ("data", &[]),
    ("train", &["model", "data", "tensor"]),
    ("eval", &["model", "data", "tensor"]),
    ("compress", &["model", "data", "eval", "tensor"]),
    ("tune", &[]),
    ("dist", &["tensor"]),
    ("store", &[]),
    ("govern", &["store"]),
    ("serve", &["store", "govern", "model"]),
    ("cli", &[]),
];
const BINARY: &str = "cli";
/// These hold unsafe code, so they cannot take the workspace's `forbid`.
const OWN_LINTS: [&str; 2] = ["kernels", "tensor"];
const PREFIX: &str = "hone-";

/// One crate of the workspace.
pub struct Krate {
    /// The folder's name, which is the crate's name without its prefix.
    pub name: String,
    /// The text of its Cargo.toml.
    pub manifest: String,
}

/// Reads the manifest of every folder in `crates/`.
pub fn read_all(root: &Path) -> io::Result<Vec<Krate>> {
    let mut crates = Vec::new();
    for entry in fs::read_dir(root.join("crates"))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let manifest =
                fs::read_to_string(entry.path().join("Cargo.toml")).map_err(|error| {
                    io::Error::new(error.kind(), format!("crates/{name}/Cargo.toml: {error}"))
                })?;
            crates.push(Krate { name, manifest });
        }
    }
    crates.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(crates)
}

/// Name, dependency directions and lints of one crate.
pub fn check_manifest(krate: &Krate) -> Vec<Finding> {
    let path = format!("crates/{}/Cargo.toml", krate.name);
    let mut findings = Vec::new();
    let mut section = "";
    let mut has_lints = false;
    for (index, line) in krate.manifest.lines().enumerate() {
        let line = line.trim();
        if let Some(header) = line.strip_prefix('[') {
            section = header.trim_matches(['[', ']']);
        }
        has_lints |= section == "lints" && line.replace(' ', "") == "workspace=true";
        let message = check_dependency(&krate.name, section, line)
            .or_else(|| check_package_name(&krate.name, section, line));
        findings.extend(message.map(|text| Finding::new(&path, index + 1, text)));
    }
    if !has_lints && !OWN_LINTS.contains(&krate.name.as_str()) {
        let message = "the workspace's lints are not taken: add `[lints]` with `workspace = true`";
        findings.push(Finding::new(&path, 1, message));
    }
    if !MAY_DEPEND_ON.iter().any(|(name, _)| *name == krate.name) {
        let message = "a new crate: add its row to MAY_DEPEND_ON in xtask/src/tidy/crates.rs";
        findings.push(Finding::new(&path, 1, message));
    }
    findings
}

fn check_package_name(name: &str, section: &str, line: &str) -> Option<String> {
    let (key, value) = line.split_once('=')?;
    let expected = format!("{PREFIX}{name}");
    let wrong =
        section == "package" && key.trim() == "name" && value.trim().trim_matches('"') != expected;
    wrong.then(|| format!("a crate is called after its folder: name it `{expected}`"))
}

fn check_dependency(name: &str, section: &str, line: &str) -> Option<String> {
    let dependency = dependency_on_crate(section, line)?;
    let (_, allowed) = MAY_DEPEND_ON.iter().find(|(row, _)| *row == name)?;
    if name == BINARY || allowed.contains(&dependency) {
        return None;
    }
    let list = if allowed.is_empty() { "no crate of ours".to_owned() } else { allowed.join(", ") };
    Some(format!(
        "`{name}` may not depend on `{dependency}` (it may use: {list}): \
         move the code to the crate that may, or pass what is needed in"
    ))
}

/// The crate of ours that a manifest's line makes a dependency of any kind: `hone-x = …` in a
/// table of dependencies, or the header of a table of its own.
fn dependency_on_crate<'a>(section: &'a str, line: &'a str) -> Option<&'a str> {
    if line.starts_with('[') {
        let (table, name) = section.rsplit_once('.')?;
        return is_dependencies(table).then(|| name.strip_prefix(PREFIX)).flatten();
    }
    if !is_dependencies(section) {
        return None;
    }
    let name_end = line.find(|c: char| !source::is_word(c) && c != '-')?;
    line[..name_end].strip_prefix(PREFIX)
}

fn is_dependencies(table: &str) -> bool {
    table.rsplit('.').next().is_some_and(|last| last.ends_with("dependencies"))
}

/// A document that must exist and say something.
pub fn check_document(path: &str, text: &str) -> Option<Finding> {
    text.trim().is_empty().then(|| Finding::new(path, 1, "missing or empty: write it"))
}

/// The map names every crate, as `name`, `hone-name` or crates/name.
pub fn check_map(name: &str, map: &str) -> Option<Finding> {
    let forms = [format!("`{name}`"), format!("{PREFIX}{name}"), format!("crates/{name}")];
    let named = forms.iter().any(|form| map.contains(form.as_str()));
    let message = format!("crate `{name}` is not on the map: add what it does and may depend on");
    (!named).then(|| Finding::new("ARCHITECTURE.md", 1, message))
}
