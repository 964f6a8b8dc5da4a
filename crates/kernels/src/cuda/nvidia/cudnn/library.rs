//! cuDNN's functions, from wherever users have it.
//!
//! Statuses are plain numbers here: a newer cuDNN may return some that no list has.

use super::super::libraries;
use libloading::Library as Loaded;
use std::ffi::{CStr, c_char, c_void};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The oldest that serves packed sequences without known mistakes.
const OLDEST: Version = Version(91002);

/// A descriptor, or a handle.
pub(super) type Opaque = *mut c_void;

/// As cuDNN 9 counts: `major * 10000 + minor * 100 + patch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(pub(super) usize);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.0 / 10_000, self.0 / 100 % 100, self.0 % 100)
    }
}

/// What is called of it. `0` is success.
#[derive(Clone, Copy)]
pub(super) struct Library {
    pub(super) version: Version,
    pub(super) error_string: unsafe extern "C" fn(i32) -> *const c_char,
    pub(super) last_error_string: unsafe extern "C" fn(*mut c_char, usize),
    pub(super) create: unsafe extern "C" fn(*mut Opaque) -> i32,
    pub(super) set_stream: unsafe extern "C" fn(Opaque, Opaque) -> i32,
    pub(super) create_descriptor: unsafe extern "C" fn(i32, *mut Opaque) -> i32,
    pub(super) destroy_descriptor: unsafe extern "C" fn(Opaque) -> i32,
    pub(super) set_attribute: unsafe extern "C" fn(Opaque, i32, i32, i64, *const c_void) -> i32,
    pub(super) get_attribute:
        unsafe extern "C" fn(Opaque, i32, i32, i64, *mut i64, *mut c_void) -> i32,
    pub(super) finalize: unsafe extern "C" fn(Opaque) -> i32,
    pub(super) execute: unsafe extern "C" fn(Opaque, Opaque, Opaque) -> i32,
}

impl Library {
    /// The library for this process, or why there is none.
    pub(super) fn get() -> Result<&'static Self, String> {
        static FOUND: OnceLock<Result<Library, String>> = OnceLock::new();
        FOUND.get_or_init(|| Self::find(&folders())).as_ref().map_err(String::clone)
    }

    /// The first of `folders` that has one to use, or what the system finds by the name.
    pub(super) fn find(folders: &[PathBuf]) -> Result<Self, String> {
        const NAME: &str = "libcudnn.so.9";
        let in_folders = folders.iter().map(|folder| folder.join(NAME));
        let candidates = in_folders.filter(|path| path.exists()).chain([PathBuf::from(NAME)]);
        let mut refused = None;
        for path in candidates {
            // SAFETY: loads NVIDIA's library, as any use of CUDA does.
            match unsafe { Loaded::new(&path) } {
                Ok(loaded) => match Self::of(loaded, &path) {
                    Ok(library) => return Ok(library),
                    Err(reason) => refused = refused.or(Some(reason)),
                },
                Err(error) if path != Path::new(NAME) => {
                    refused = refused.or(Some(format!("cuDNN cannot be loaded: {error}")));
                }
                Err(_) => (),
            }
        }
        Err(refused.unwrap_or_else(|| {
            "cuDNN 9 was not found; it comes as `nvidia-cudnn-cu13` or `-cu12` from PyPI, and \
             CUDNN_PATH can say where"
                .to_owned()
        }))
    }

    fn of(loaded: Loaded, path: &Path) -> Result<Self, String> {
        let failed = |error: libloading::Error| format!("this is no cuDNN 9: {error}");
        // SAFETY: in every cuDNN, with these types.
        let (version, cuda) = unsafe {
            type Number = unsafe extern "C" fn() -> usize;
            let number = |name: &[u8]| loaded.get::<Number>(name).map(|number| number());
            let version = number(b"cudnnGetVersion\0").map_err(failed)?;
            let cuda = number(b"cudnnGetCudartVersion\0").map_err(failed)?;
            (Version(version), cuda / 1000)
        };
        if version.0 / 10_000 != OLDEST.0 / 10_000 || version < OLDEST {
            return Err(format!("cuDNN {version} is not 9.10.2 or a later 9"));
        }
        // Without the one it ends the process where it looks for it itself, without the other it
        // has no kernels to offer.
        for (name, major) in [("cublasLt", cuda), ("nvrtc-builtins", cuda), ("nvrtc", cuda)] {
            let there = libraries::preload_major(&beside(path), name, major);
            if !there && name != "nvrtc-builtins" {
                return Err(format!("cuDNN {version} needs lib{name}.so.{major}, not found"));
            }
        }
        // SAFETY: what cuDNN 9's header declares, statuses being numbers of 32 bits; the library
        // is never unloaded.
        unsafe {
            let new = Self {
                version,
                error_string: *loaded.get(b"cudnnGetErrorString\0").map_err(failed)?,
                last_error_string: *loaded.get(b"cudnnGetLastErrorString\0").map_err(failed)?,
                create: *loaded.get(b"cudnnCreate\0").map_err(failed)?,
                set_stream: *loaded.get(b"cudnnSetStream\0").map_err(failed)?,
                create_descriptor: *loaded
                    .get(b"cudnnBackendCreateDescriptor\0")
                    .map_err(failed)?,
                destroy_descriptor: *loaded
                    .get(b"cudnnBackendDestroyDescriptor\0")
                    .map_err(failed)?,
                set_attribute: *loaded.get(b"cudnnBackendSetAttribute\0").map_err(failed)?,
                get_attribute: *loaded.get(b"cudnnBackendGetAttribute\0").map_err(failed)?,
                finalize: *loaded.get(b"cudnnBackendFinalize\0").map_err(failed)?,
                execute: *loaded.get(b"cudnnBackendExecute\0").map_err(failed)?,
            };
            std::mem::forget(loaded);
            Ok(new)
        }
    }

    /// `Ok` for success, or what failed in cuDNN's own words.
    pub(super) fn check(&self, doing: &str, status: i32) -> Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        let mut reason = [0 as c_char; 1024];
        // SAFETY: the first returns a text that lives as long as the library, the second writes one
        // with its zero into so many bytes.
        let (name, reason) = unsafe {
            (self.last_error_string)(reason.as_mut_ptr(), reason.len());
            let name = CStr::from_ptr((self.error_string)(status));
            (name.to_string_lossy(), CStr::from_ptr(reason.as_ptr()).to_string_lossy())
        };
        Err(format!("{doing}: {name} ({status}) {}", reason.trim_end()).trim_end().to_owned())
    }
}

/// Where cuDNN may be, beside where the system looks by itself.
fn folders() -> Vec<PathBuf> {
    let given = std::env::var_os("CUDNN_PATH").map(PathBuf::from).into_iter();
    let own = given.flat_map(|root| [root.join("lib64"), root.join("lib"), root]);
    // PyPI's packages for CUDA stand side by side.
    let roots = libraries::roots(None).into_iter();
    let siblings = roots.filter_map(|root| Some(root.parent()?.join("cudnn/lib")));
    own.chain(libraries::folders(None)).chain(siblings).collect()
}

/// Where the libraries may be that a cuDNN there needs.
fn beside(cudnn: &Path) -> Vec<PathBuf> {
    let mut folders = libraries::folders(None);
    // From PyPI: `nvidia/cudnn/lib/libcudnn.so.9` beside `nvidia/cu13/lib` or a folder for each.
    if let Some(packages) = cudnn.ancestors().nth(3) {
        let names = ["cu13/lib", "cublas/lib", "cuda_nvrtc/lib"];
        folders.extend(names.map(|name| packages.join(name)));
    }
    let roots = libraries::roots(None).into_iter();
    let parents = roots.filter_map(|root| root.parent().map(Path::to_path_buf));
    folders.extend(parents.flat_map(|root| [root.join("cublas/lib"), root.join("cuda_nvrtc/lib")]));
    folders
}
