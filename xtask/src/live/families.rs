//! `cargo xtask live families`: configurations that are drawn now, by transformers, PEFT and Hone.

use super::{script, succeed};
use crate::test::cargo;
use std::path::Path;

const SCRIPT: &str = "live_families.py";

/// Draws, compares, and lets the peers read what Hone wrote. `args` are those of the script's
/// `draw`.
pub fn run(root: &Path, args: &[&str]) -> Result<(), String> {
    let dir = root.join("target/live/families");
    let folder = dir.to_string_lossy();
    script(root, SCRIPT, &[&["draw", &folder], args].concat())?;
    let mut test = cargo(root);
    test.args(["test", "--quiet", "--workspace", "--test", "model", "--"])
        .args(["--ignored", "--exact", "live::drawn_configurations", "--nocapture"])
        .env("HONE_LIVE_FAMILIES", &dir);
    succeed(&mut test)?;
    script(root, SCRIPT, &["check", &folder])
}
