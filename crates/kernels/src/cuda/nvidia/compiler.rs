//! Compiles kernels for the current device with NVRTC, and caches them on disk.

use super::super::cache;
use super::super::source::Source;
use cudarc::nvrtc::result::{self, NvrtcError};
use cudarc::nvrtc::sys;
use std::ffi::{CStr, CString};

/// Machine code of a source, and the names of its kernels there.
pub(crate) struct Compiled {
    /// In the order of [`Source::kernels`].
    pub(crate) names: Vec<String>,
    pub(crate) cubin: Vec<u8>,
}

/// Compiles `source` for a compute capability, or loads it from the cache.
pub(crate) fn compiled(source: &Source, capability: (u32, u32)) -> Result<Compiled, String> {
    let (architecture, version) = (architecture(capability), version());
    let program = source.program();
    let key = format!("{architecture} {version} {:?}\n{program}", source.kernels);
    let path = cache::path(source.name, &key, "cubin");
    let stored = path.as_ref().and_then(|path| std::fs::read(path).ok());
    if let Some(found) = stored.and_then(|bytes| Compiled::from_bytes(&bytes, source)) {
        return Ok(found);
    }
    let compiled = compile(source, &program, &architecture)?;
    // Best effort: without a cache, kernels are compiled each time.
    let _ = path.map(|path| cache::store(&path, &compiled.to_bytes()));
    Ok(compiled)
}

/// `sm_90a` for 9.0: from Hopper on, the architecture-specific target.
pub(crate) fn architecture((major, minor): (u32, u32)) -> String {
    let suffix = if major >= 9 { "a" } else { "" };
    format!("sm_{major}{minor}{suffix}")
}

pub(super) fn version() -> String {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: writes two numbers.
    let _ = unsafe { sys::nvrtcVersion(&mut major, &mut minor) };
    format!("NVRTC {major}.{minor}")
}

fn compile(source: &Source, program: &str, architecture: &str) -> Result<Compiled, String> {
    let failed = |what: &str, error: NvrtcError| format!("{what} {}: {error:?}", source.name);
    let text = CString::new(program).map_err(|_| "a kernel's source holds a zero".to_owned())?;
    let name = CString::new(source.name).map_err(|_| "a source's name holds a zero".to_owned())?;
    let handle = result::create_program(&text, Some(&name));
    let program = Program(handle.map_err(|error| failed("cannot read", error))?);
    let expressions: Vec<CString> =
        source.kernels.iter().filter_map(|name| CString::new(*name).ok()).collect();
    for expression in &expressions {
        // SAFETY: program and expression outlive the call.
        unsafe { sys::nvrtcAddNameExpression(program.0, expression.as_ptr()) }
            .result()
            .map_err(|error| failed("cannot name a kernel of", error))?;
    }
    let options = [format!("--gpu-architecture={architecture}"), "--std=c++17".to_owned()];
    // SAFETY: the program is not destroyed yet.
    if let Err(error) = unsafe { result::compile_program(program.0, &options) } {
        return Err(format!("{}\n{}", failed("cannot compile", error), program.log()));
    }
    let names = expressions.iter().map(|expression| program.lowered(expression));
    let names = names.collect::<Result<_, _>>().map_err(|error| failed("no kernel in", error))?;
    let cubin = program.cubin().map_err(|error| failed("no code of", error))?;
    Ok(Compiled { names, cubin })
}

struct Program(sys::nvrtcProgram);

impl Program {
    fn log(&self) -> String {
        // SAFETY: the program is not destroyed yet.
        let log = unsafe { result::get_program_log(self.0) }.unwrap_or_default();
        let bytes: Vec<u8> = log.into_iter().map(|c| c as u8).filter(|&c| c != 0).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn lowered(&self, expression: &CStr) -> Result<String, NvrtcError> {
        let mut name = std::ptr::null();
        // SAFETY: the program is compiled; the name lives as long as it.
        unsafe {
            sys::nvrtcGetLoweredName(self.0, expression.as_ptr(), &mut name).result()?;
            Ok(CStr::from_ptr(name).to_string_lossy().into_owned())
        }
    }

    fn cubin(&self) -> Result<Vec<u8>, NvrtcError> {
        let mut len = 0;
        // SAFETY: the program is compiled; the buffer is as long as it says.
        unsafe {
            sys::nvrtcGetCUBINSize(self.0, &mut len).result()?;
            let mut cubin = vec![0u8; len];
            sys::nvrtcGetCUBIN(self.0, cubin.as_mut_ptr().cast()).result()?;
            Ok(cubin)
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: destroyed once.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

impl Compiled {
    /// The code's length in eight bytes, the names separated by newlines, a zero, the code.
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = (self.cubin.len() as u64).to_le_bytes().to_vec();
        bytes.extend(self.names.join("\n").into_bytes());
        bytes.push(0);
        bytes.extend(&self.cubin);
        bytes
    }

    /// `None` if the bytes are incomplete.
    fn from_bytes(bytes: &[u8], source: &Source) -> Option<Self> {
        let (len, bytes) = bytes.split_first_chunk::<8>()?;
        let end = bytes.iter().position(|&byte| byte == 0)?;
        let (names, cubin) = (std::str::from_utf8(&bytes[..end]).ok()?, &bytes[end + 1..]);
        let names: Vec<String> = names.lines().map(str::to_owned).collect();
        let is_whole =
            names.len() == source.kernels.len() && cubin.len() as u64 == u64::from_le_bytes(*len);
        is_whole.then(|| Self { names, cubin: cubin.to_vec() })
    }
}
