//! Finding NVIDIA's libraries where users have them.

use super::CudaError;
use libloading::Library;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// The driver's library comes with the driver, into the system's own folders.
pub(super) fn find_driver() -> Result<(), CudaError> {
    // SAFETY: loads NVIDIA's library, as any use of CUDA does.
    let present = unsafe { cudarc::driver::sys::is_culib_present() };
    if present { Ok(()) } else { Err(CudaError::NoDriver) }
}

/// NVRTC and cuBLASLt come with the toolkit or from PyPI, and may be anywhere.
pub(super) fn find_compiler_and_blas() -> Result<(), CudaError> {
    find_compiler(&folders(None))?;
    preload(&folders(None), "cublasLt");
    // SAFETY: loads NVIDIA's library, as any use of CUDA does.
    if unsafe { cudarc::cublaslt::sys::is_culib_present() } {
        return Ok(());
    }
    Err(CudaError::NoLibrary { library: "libcublasLt", package: "nvidia-cublas" })
}

/// NVRTC from a toolkit at `root` or where it is else.
#[cfg(test)]
pub(crate) fn find_compiler_in(root: PathBuf) -> Result<(), CudaError> {
    find_compiler(&folders(Some(root)))
}

fn find_compiler(folders: &[PathBuf]) -> Result<(), CudaError> {
    preload(folders, "nvrtc-builtins");
    preload(folders, "nvrtc");
    // SAFETY: loads NVIDIA's library, as any use of CUDA does.
    if unsafe { cudarc::nvrtc::sys::is_culib_present() } {
        return Ok(());
    }
    Err(CudaError::NoLibrary { library: "libnvrtc", package: "nvidia-cuda-nvrtc" })
}

/// Once a library is loaded, whoever asks for its name with the version is given it. A library
/// without a version in its name, where the system has one, still goes first.
fn preload(folders: &[PathBuf], name: &str) {
    static LOADED: Mutex<Vec<Library>> = Mutex::new(Vec::new());
    LOADED
        .lock()
        .expect("no panic while loading")
        .extend(load_from(folders, &format!("lib{name}.so")));
}

/// Where toolkits may be.
fn roots(first: Option<PathBuf>) -> Vec<PathBuf> {
    let given = ["CUDA_PATH", "CUDA_HOME"].into_iter().filter_map(std::env::var_os);
    let usual = given.map(PathBuf::from).chain([PathBuf::from("/usr/local/cuda")]);
    first.into_iter().chain(usual).collect()
}

/// Where the toolkit's libraries may be, beside where the system looks by itself.
fn folders(first: Option<PathBuf>) -> Vec<PathBuf> {
    let roots = roots(first).into_iter();
    roots.flat_map(|root| [root.join("lib64"), root.join("lib"), root]).collect()
}

/// A file whose name starts with `prefix` from the first folder that has it.
fn load_from(folders: &[PathBuf], prefix: &str) -> Option<Library> {
    let load = |folder: &PathBuf| {
        let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
            .ok()?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| is_named(path, prefix))
            .collect();
        files.sort();
        // SAFETY: loads NVIDIA's library, as any use of CUDA does.
        files.iter().rev().find_map(|path| unsafe { Library::new(path) }.ok())
    };
    folders.iter().find_map(load)
}

fn is_named(path: &Path, prefix: &str) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(prefix))
}
