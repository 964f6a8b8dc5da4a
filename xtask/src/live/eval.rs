//! `cargo xtask live eval`: tasks by Hone and by lm-evaluation-harness.

use super::script;
use std::path::Path;
use std::process::Command;

/// The harness, which is installed beside the other peers when it is missing.
const HARNESS: &str = "lm_eval[hf]==0.4.13";

/// Runs `scripts/live_eval.py` with the release build on SmolLM2; `args` are more of its options.
pub fn run(root: &Path, args: &[&str]) -> Result<(), String> {
    let python = crate::bench::peer::venv(root)?;
    let has = |module: &str| {
        let import = format!("import {module}");
        Command::new(&python).args(["-c", &import]).output().is_ok_and(|out| out.status.success())
    };
    if !has("lm_eval") {
        let pip = ["-m", "pip", "install", "--quiet", HARNESS];
        super::succeed(Command::new(&python).args(pip))?;
    }
    let path = |name: &str| root.join(name).to_string_lossy().into_owned();
    let model = path("target/models/SmolLM2-135M-Instruct.Q4_1.gguf");
    let [hone, data, work] =
        [path("target/release/hone"), path("../shared/data"), path("target/live/eval")];
    script(root, "live_eval.py", &[&[&*hone, &*model, &*data, &*work], args].concat())
}
