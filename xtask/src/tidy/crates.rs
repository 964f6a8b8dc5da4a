//! Rules on crates: who may depend on whom, the workspace's lints, and the documents.

use super::Finding;
use crate::test::cargo;
use serde_json::Value;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Who may depend on whom, by folder. The binary may use everything.
const MAY_DEPEND_ON: [(&str, &[&str]); 8] = [
    ("kernels", &[]),
    ("tensor", &["kernels"]),
    ("model", &["tensor"]),
    ("data", &[]),
    ("eval", &["model", "data", "tensor"]),
    ("train", &["model", "data", "tensor"]),
    ("compress", &["model", "tensor"]),
    ("cli", &[]),
];
const BINARY: &str = "cli";
const PREFIX: &str = "hone-";
/// What only tests may switch on, so that the binary is without it.
const FOR_TESTS: [&str; 3] = ["emulator", "reference", "testing"];

/// One crate of the workspace.
pub struct Krate {
    /// The folder's name, which is the crate's name without its prefix.
    pub name: String,
    /// What it is called.
    pub package: String,
    /// Every package that it depends on, for whatever purpose.
    pub dependencies: Vec<String>,
    /// Features of crates of ours that it switches on for itself, not for its tests alone.
    pub features: Vec<String>,
    /// The text of its Cargo.toml.
    pub manifest: String,
}

/// Every crate in `crates/`, as cargo reads it.
pub fn read_all(root: &Path) -> io::Result<Vec<Krate>> {
    let metadata = cargo(root).args(["metadata", "--no-deps", "--format-version=1"]).output()?;
    if !metadata.status.success() {
        return Err(io::Error::other(String::from_utf8_lossy(&metadata.stderr)));
    }
    let metadata: Value = serde_json::from_slice(&metadata.stdout)?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut crates = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let path = PathBuf::from(text(&package["manifest_path"]));
        let folder = path.parent().filter(|folder| folder.parent() == Some(&root.join("crates")));
        let Some(name) = folder.and_then(Path::file_name) else { continue };
        let dependencies = || package["dependencies"].as_array().into_iter().flatten();
        let ours =
            dependencies().filter(|d| d["kind"].is_null() && text(&d["name"]).starts_with(PREFIX));
        let features = ours.flat_map(|d| d["features"].as_array().into_iter().flatten());
        crates.push(Krate {
            name: name.to_string_lossy().into_owned(),
            package: text(&package["name"]),
            dependencies: dependencies().map(|dependency| text(&dependency["name"])).collect(),
            features: features.map(text).collect(),
            manifest: fs::read_to_string(&path)?,
        });
    }
    Ok(crates)
}

/// Name, dependency directions and lints of one crate.
pub fn check(krate: &Krate) -> Vec<Finding> {
    let mut messages = Vec::new();
    if krate.package != format!("{PREFIX}{}", krate.name) {
        let name = &krate.name;
        messages.push(format!("a crate is called after its folder: name it `{PREFIX}{name}`"));
    }
    if !krate.manifest.contains("\n[lints]\nworkspace = true\n") {
        let message = "the workspace's lints are not taken: add `[lints]` with `workspace = true`";
        messages.push(message.to_owned());
    }
    let for_tests = krate.features.iter().filter(|name| FOR_TESTS.contains(&name.as_str()));
    messages.extend(for_tests.map(|name| {
        format!("the feature `{name}` is for tests: switch it on under `[dev-dependencies]`")
    }));
    match MAY_DEPEND_ON.iter().find(|(name, _)| *name == krate.name) {
        Some((_, allowed)) => messages.extend(wrong_ways(krate, allowed)),
        None => messages
            .push("a new crate: add its row to MAY_DEPEND_ON in xtask/src/tidy/crates.rs".into()),
    }
    let path = format!("crates/{}/Cargo.toml", krate.name);
    messages.into_iter().map(|message| Finding::new(&path, 1, message)).collect()
}

/// A message for each dependency on a crate of ours that is not allowed.
fn wrong_ways(krate: &Krate, allowed: &[&str]) -> Vec<String> {
    let ours = krate.dependencies.iter().filter_map(|name| name.strip_prefix(PREFIX));
    let wrong = ours.filter(|name| krate.name != BINARY && !allowed.contains(name));
    let may = if allowed.is_empty() { "no crate of ours".to_owned() } else { allowed.join(", ") };
    let message = |name: &str| {
        format!(
            "`{}` may not depend on `{name}` (it may use: {may}): move the code to the crate that \
             may, or pass what is needed in",
            krate.name
        )
    };
    wrong.map(message).collect()
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
