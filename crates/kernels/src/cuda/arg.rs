//! Arguments of kernels.

use std::ffi::c_void;

/// An argument of a kernel, as the bytes of its parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Arg([u64; 3]);

impl Arg {
    /// A pointer to each argument, as the driver expects them.
    pub(super) fn pointers(args: &[Self]) -> Vec<*mut c_void> {
        args.iter().map(|arg| arg.0.as_ptr().cast_mut().cast()).collect()
    }

    /// A struct of two words.
    pub(crate) fn pair(first: u64, second: u64) -> Self {
        Self([first, second, 0])
    }

    /// A struct of three words.
    pub(crate) fn words(words: [u64; 3]) -> Self {
        Self(words)
    }
}

impl From<u32> for Arg {
    fn from(x: u32) -> Self {
        Self([u64::from(x), 0, 0])
    }
}

impl From<usize> for Arg {
    fn from(x: usize) -> Self {
        Self([x as u64, 0, 0])
    }
}

impl From<u64> for Arg {
    fn from(x: u64) -> Self {
        Self([x, 0, 0])
    }
}

impl From<f32> for Arg {
    fn from(x: f32) -> Self {
        Self([u64::from(x.to_bits()), 0, 0])
    }
}
