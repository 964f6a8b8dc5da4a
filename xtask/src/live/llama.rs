//! `cargo xtask live llama`: files that Hone writes, in llama.cpp's own programs.

use super::{script, succeed};
use crate::test::cargo;
use std::path::Path;

const SCRIPT: &str = "live_llama.py";
/// What must have been built.
const PROGRAMS: [&str; 3] = ["llama-server", "llama-perplexity", "llama-quantize"];

/// `args` are the folder of llama.cpp's programs and the cases, all without any.
pub fn run(root: &Path, args: &[&str]) -> Result<(), String> {
    let [programs, cases @ ..] = args else {
        return Err("give the folder of llama.cpp's programs, such as build/bin".to_owned());
    };
    let programs = std::path::absolute(programs).map_err(|error| error.to_string())?;
    if let Some(missing) = PROGRAMS.iter().find(|name| !programs.join(name).is_file()) {
        println!("live llama: skipped: there is no {missing} in {}", programs.display());
        return Ok(());
    }
    let programs = programs.to_string_lossy();
    let dir = root.join("target/live/llama");
    std::fs::create_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let folder = dir.to_string_lossy();
    succeed(cargo(root).args(["build", "--release", "--quiet", "--package", "hone-cli"]))?;
    script(root, SCRIPT, &["ask", &programs, &folder])?;
    let mut test = cargo(root);
    test.args(["test", "--quiet", "--workspace", "--test", "train", "--"])
        .args(["--ignored", "--exact", "live_llama::answers_for_llama_cpp", "--nocapture"])
        .env("HONE_LIVE_LLAMA", &dir);
    succeed(&mut test)?;
    script(root, SCRIPT, &[&["compare", &programs, &folder], cases].concat())
}
