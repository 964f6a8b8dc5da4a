//! `cargo xtask live packed`: what Hone writes for other engines, in transformers.

use super::{script, succeed};
use crate::test::cargo;
use std::path::Path;
use std::process::Command;

/// What reads such directories, installed beside the other peers when it is missing.
const READERS: [(&str, &str); 3] = [
    ("compressed_tensors", "compressed-tensors==0.20.1"),
    ("bitsandbytes", "bitsandbytes"),
    ("accelerate", "accelerate"),
];

/// Runs `scripts/live_packed.py` with the release build; `kinds` are the types to write, all
/// without any.
pub fn run(root: &Path, kinds: &[&str]) -> Result<(), String> {
    let python = crate::bench::peer::venv(root)?;
    for (module, package) in READERS {
        let import = format!("import {module}");
        let has = Command::new(&python).args(["-c", &import]).output();
        if !has.is_ok_and(|out| out.status.success()) {
            let pip = ["-m", "pip", "install", "--quiet", package];
            succeed(Command::new(&python).args(pip))?;
        }
    }
    succeed(cargo(root).args(["build", "--release", "--quiet", "--package", "hone-cli"]))?;
    let path = |name: &str| root.join(name).to_string_lossy().into_owned();
    let [hone, folder] = [path("target/release/hone"), path("target/live/packed")];
    script(root, "live_packed.py", &[&[&*hone, &*folder], kinds].concat())
}
