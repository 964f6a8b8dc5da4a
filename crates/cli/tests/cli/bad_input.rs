//! What bad input gets: one clear message that names the place and the fix, exit status 2, and
//! nothing written. Each module is a table of ways to spoil a good set-up.

mod commands;
mod data;
mod model;
mod output;
mod run_file;
mod weights;

use crate::sandbox::{Ended, Scene, ended};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A way to spoil a good set-up.
struct Case {
    name: &'static str,
    /// Spoils it.
    spoil: fn(&Scene),
    /// Command line after `hone`.
    arguments: &'static [&'static str],
    /// Parts of the message, among them place and fix.
    says: &'static [&'static str],
}

const TRAIN: &[&str] = &["train", "run.toml"];

/// A case of `hone train run.toml`.
const fn train(name: &'static str, spoil: fn(&Scene), says: &'static [&'static str]) -> Case {
    Case { name, spoil, arguments: TRAIN, says }
}

/// A case of a command line on a good set-up.
const fn command(
    name: &'static str,
    arguments: &'static [&'static str],
    says: &'static [&'static str],
) -> Case {
    Case { name, spoil: |_| {}, arguments, says }
}

fn check(cases: &[Case]) {
    for case in cases {
        let scene = Scene::new();
        (case.spoil)(&scene);
        refused(case.name, &scene, &mut scene.hone(case.arguments), case.says);
    }
}

/// Runs a command and asserts that it is refused as it should be, leaving all files as they were.
fn refused(name: &str, scene: &Scene, command: &mut Command, says: &[&str]) -> Ended {
    let before = files(&scene.path(""));
    let ended = ended(command);
    let said = &ended.stderr;
    println!("{name}: {}", said.lines().rev().take(3).collect::<Vec<_>>().join(" / "));
    assert_eq!(ended.status, Some(2), "{name}: {said}");
    assert_eq!(ended.stdout, "", "{name}: results on standard output");
    let num_messages = said.lines().filter(|line| line.starts_with("error:")).count();
    assert_eq!(num_messages, 1, "{name}: not one message:\n{said}");
    for part in says {
        assert!(said.contains(part), "{name}: {part:?} is not in:\n{said}");
    }
    for inside in ["panicked", "RUST_BACKTRACE", "Error {", "Some(", "unwrap", "os error"] {
        assert!(!said.contains(inside), "{name}: shows internals:\n{said}");
    }
    assert!(!said.contains("settings run"), "{name}: as if it began:\n{said}");
    assert_eq!(files(&scene.path("")), before, "{name}: files were written or changed");
    ended
}

/// Every path below `dir`; of files, their contents.
fn files(dir: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
            found.insert(path, None);
        } else {
            let bytes = std::fs::read(&path).unwrap();
            found.insert(path, Some(bytes));
        }
    }
    found
}

/// Replaces text in a file of the scene; it must be there.
fn replace(scene: &Scene, file: &str, from: &str, to: &str) {
    let text = std::fs::read_to_string(scene.path(file)).unwrap();
    assert!(text.contains(from), "{from:?} is not in {file}");
    scene.write(file, &text.replace(from, to));
}
