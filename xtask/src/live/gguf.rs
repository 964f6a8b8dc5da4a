//! `cargo xtask live gguf`: golden models as llama.cpp's own converter writes them, and texts as
//! its vocabularies cut them.

use super::{script, succeed};
use crate::test::cargo;
use std::path::Path;

/// `args` are a checkout of llama.cpp.
pub fn run(root: &Path, args: &[&str]) -> Result<(), String> {
    let [llama_cpp] = args else {
        return Err("give a checkout of llama.cpp, or vendor/llama.cpp of the sdist of \
                    llama-cpp-python"
            .to_owned());
    };
    let llama_cpp = std::path::absolute(llama_cpp).map_err(|error| error.to_string())?;
    let dir = root.join("target/live/gguf");
    if dir.exists() {
        std::fs::remove_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    }
    let test = |name: &str| {
        let mut test = cargo(root);
        test.args(["test", "--quiet", "--workspace", "--test", "model", "--"])
            .args(["--ignored", "--exact", name, "--nocapture"])
            .env("HONE_LIVE_GGUF", &dir)
            .env("HONE_LLAMA_CPP", &llama_cpp);
        succeed(&mut test)
    };
    test("live_gguf::directories_for_the_converter")?;
    script(root, "live_gguf.py", &[&llama_cpp.to_string_lossy(), &dir.to_string_lossy()])?;
    test("live_gguf::files_of_the_converter")?;
    test("live_gguf::texts_of_its_vocabularies")
}
