//! `cargo xtask live files`: training and generation on real files, beside PyTorch.

use super::script;
use std::path::Path;

/// Runs `scripts/live_files.py`, which says what is compared.
pub fn run(root: &Path, cases: &[&str]) -> Result<(), String> {
    script(root, "live_files.py", cases)
}
