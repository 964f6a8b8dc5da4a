//! Builds what is needed where nothing can be built.

use super::suites::SUITES;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Most bytes of all that is packed.
const MOST_BYTES: u64 = 60 << 20;

/// Builds what is needed where nothing can be built.
pub fn pack(root: &Path) -> ExitCode {
    match try_pack(root) {
        Ok(bytes) => {
            println!("target/gpu-check: {:.1} MiB", bytes as f64 / f64::from(1 << 20));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("gpu-check: {error}");
            ExitCode::FAILURE
        }
    }
}

fn try_pack(root: &Path) -> Result<u64, String> {
    let dir = root.join("target/gpu-check");
    std::fs::create_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let put = |from: &Path, name: &str| {
        let to = dir.join(name);
        let io = |error: std::io::Error| format!("{}: {error}", from.display());
        std::fs::copy(from, &to).map_err(io)?;
        // Names of functions are a fifth of it. Without `strip` it is only larger.
        let _ = Command::new("strip").arg(&to).status();
        Ok::<u64, String>(std::fs::metadata(&to).map_err(io)?.len())
    };
    let mut bytes = put(&built(root, &["build", "--package", "hone-cli"])?, "hone")?;
    for suite in &SUITES {
        let args = [&["test", "--no-run", "--package", suite.package], suite.target].concat();
        bytes += put(&built(root, &args)?, suite.package)?;
    }
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    bytes += put(&own, "xtask")?;
    match bytes <= MOST_BYTES {
        true => Ok(bytes),
        false => Err(format!("{bytes} bytes are more than the {MOST_BYTES} that may travel")),
    }
}

/// The executable that a cargo command in the release profile makes.
fn built(root: &Path, args: &[&str]) -> Result<PathBuf, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(args)
        .args(["--release", "--message-format=json"])
        .current_dir(root)
        .stderr(std::process::Stdio::inherit())
        .output()
        .map_err(|error| format!("cannot start cargo: {error}"))?;
    let messages = String::from_utf8_lossy(&output.stdout);
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut executables =
        messages.filter_map(|message| Some(message["executable"].as_str()?.into()));
    executables.next_back().ok_or_else(|| format!("cargo {} made no executable", args.join(" ")))
}
