//! What the stages of `cargo xtask test` start, checked before any of them.
//!
//! Missing toolchain components are added through `rustup` where there is one; anything else that
//! is missing is named with the command that installs it. Nothing here touches the network once
//! the crates are in cargo's cache and NVRTC, which is optional, is in the target directory.

use super::cargo;
use std::path::Path;
use std::process::{Command, Stdio};

/// The requirement of NVRTC, for pip.
const NVRTC: &str = "xtask/nvrtc.txt";

/// Checks for everything the later stages start. Prints one line for each thing.
pub fn are_there(root: &Path) -> bool {
    let fmt = component(root, "rustfmt", "fmt");
    let clippy = component(root, "clippy", "clippy");
    let compiler = c_compiler();
    cpp_compiler();
    nvrtc(root);
    fmt && clippy && compiler
}

/// A C++ compiler, for the emulated GPU; its tests are skipped without one.
fn cpp_compiler() {
    let compilers = ["c++", "g++", "clang++"].into_iter();
    match compilers.clone().find(|name| answers(Command::new(name).arg("--version"))) {
        Some(name) => println!("C++ compiler: found ({name})"),
        None => println!(
            "C++ compiler: absent: tests on an emulated GPU are skipped \
             (Debian, Ubuntu: apt-get install g++)"
        ),
    }
}

/// NVIDIA's compiler for kernels, from PyPI, in the version and with the digests that
/// [`NVRTC`] names. It needs no GPU, and a test compiles every kernel with it; where it cannot be
/// had, that test is skipped.
fn nvrtc(root: &Path) {
    let folder = root.join("target/nvrtc");
    let wanted = std::fs::read(root.join(NVRTC)).unwrap_or_default();
    let receipt = folder.join("installed.txt");
    if std::fs::read(&receipt).is_ok_and(|installed| installed == wanted) {
        return println!("NVRTC: found");
    }
    // Another version, or what half an installation left.
    let _ = std::fs::remove_dir_all(&folder);
    let python = if cfg!(windows) { "python" } else { "python3" };
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--target"]);
    pip.arg(&folder).arg("--requirement").arg(root.join(NVRTC));
    let installed = match pip.stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => std::fs::write(&receipt, &wanted).is_ok(),
        Ok(output) => {
            eprint!("{}", String::from_utf8_lossy(&output.stderr));
            false
        }
        Err(_) => false,
    };
    if installed {
        println!("NVRTC: installed into target/nvrtc");
    } else {
        println!(
            "NVRTC: absent, and pip could not install it: kernels are not compiled for GPUs \
             (Debian, Ubuntu: apt-get install python3-pip)"
        );
    }
}

/// A component of the Rust toolchain, added through `rustup` when it is absent.
fn component(root: &Path, name: &str, subcommand: &str) -> bool {
    if answers(cargo(root).args([subcommand, "--version"])) {
        println!("{name}: found");
        return true;
    }
    println!("{name}: missing, trying `rustup component add {name}`");
    let added = Command::new("rustup").args(["component", "add", name]).current_dir(root).status();
    if added.is_ok_and(|status| status.success())
        && answers(cargo(root).args([subcommand, "--version"]))
    {
        println!("{name}: added");
        return true;
    }
    eprintln!(
        "{name} is missing and could not be added. Install it with\n    \
         rustup component add {name}\nor, where Rust comes from the system's packages, install \
         its package `{name}` (Debian, Ubuntu: apt-get install rustfmt rust-clippy)"
    );
    false
}

/// The C compiler, which links every Rust binary and compiles the TLS library's assembly.
fn c_compiler() -> bool {
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    // CC may carry arguments or a wrapper ("ccache gcc").
    let mut words = compiler.split_whitespace();
    let program = words.next().unwrap_or("cc");
    if answers(Command::new(program).args(words).arg("--version")) {
        println!("C compiler: found ({compiler})");
        return true;
    }
    eprintln!(
        "a C compiler is missing (`{compiler} --version` does not run). Install one:\n    \
         Debian, Ubuntu: apt-get install gcc libc6-dev\n    \
         Fedora: dnf install gcc\n    \
         macOS: xcode-select --install\nor name yours in CC"
    );
    false
}

fn answers(command: &mut Command) -> bool {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}
