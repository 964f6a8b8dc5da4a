//! What can be known of kernels without a GPU: that they compile for every generation, and that the
//! emulation finds mistakes that a GPU would not report.

use super::nvidia::compile_for;
use super::*;
use std::path::PathBuf;

/// Turing has no bf16; Ampere, Ada, Hopper and Blackwell do.
const ARCHITECTURES: [&str; 4] = ["sm_80", "sm_89", "sm_90a", "sm_100a"];

/// Every kernel in every type, as NVRTC compiles it; no spilled register escapes its log.
#[test]
fn kernels_compile_for_every_generation() {
    if let Err(error) = nvidia::find_compiler(nvrtc_folder()) {
        eprintln!("skipped: {error}");
        return;
    }
    for source in SOURCES {
        for architecture in ARCHITECTURES {
            let compiled = compile_for(source, architecture).unwrap_or_else(|error| {
                panic!("{} for {architecture}: {error}", source.name);
            });
            assert_eq!(compiled.names.len(), source.kernels.len());
            assert!(compiled.cubin.starts_with(b"\x7fELF"));
        }
    }
}

/// Where `cargo xtask test` puts NVRTC.
fn nvrtc_folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/nvrtc/nvidia/cu13")
}
