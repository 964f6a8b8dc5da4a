//! Finds NVIDIA's libraries.

use super::CudaError;
use libloading::Library;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// The driver's library is installed with the driver, in the system's library folders.
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

/// NVRTC from a toolkit at `root` or elsewhere.
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

/// Loads a library, so that later requests for its versioned name find it. A library without a
/// version in its name still takes precedence, if the system has one.
fn preload(folders: &[PathBuf], name: &str) {
    static LOADED: Mutex<Vec<Library>> = Mutex::new(Vec::new());
    LOADED
        .lock()
        .expect("no panic while loading")
        .extend(load_from(folders, &format!("lib{name}.so")));
}

/// Folders where toolkits may be installed.
fn roots(first: Option<PathBuf>) -> Vec<PathBuf> {
    let given = ["CUDA_PATH", "CUDA_HOME"].into_iter().filter_map(std::env::var_os);
    let usual = given.map(PathBuf::from).chain([PathBuf::from("/usr/local/cuda")]);
    first.into_iter().chain(usual).collect()
}

/// Folders that may contain the toolkit's libraries, in addition to the system's.
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
