//! Subnormal numbers as zero.
//!
//! Matrix units, and instructions that multiply bf16, take subnormal operands for zero and give
//! zero for subnormal results, whatever a thread has chosen. So that all instruction sets give the
//! same bits, every kernel that runs tiles of products does.
//!
//! Rust takes the default for granted: it may fold constants as if subnormals existed, and move
//! operations across the switch. These kernels have no such constants, and are functions of their
//! own, compiled for an instruction set, which nothing is moved into or out of.

use std::arch::asm;

/// While it lives, this thread's operations take subnormals for zero, and give zero for them.
pub(super) struct SubnormalsAsZero {
    before: u64,
}

impl SubnormalsAsZero {
    pub fn new() -> Self {
        let before = control();
        set_control(before | AS_ZERO);
        Self { before }
    }
}

impl Drop for SubnormalsAsZero {
    fn drop(&mut self) {
        set_control(self.before);
    }
}

/// Flush to zero, and denormals are zero, of MXCSR.
#[cfg(target_arch = "x86_64")]
const AS_ZERO: u64 = 0x8040;
/// FZ of FPCR, which is for operands and results.
#[cfg(target_arch = "aarch64")]
const AS_ZERO: u64 = 1 << 24;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const AS_ZERO: u64 = 0;

/// The register that controls floating-point arithmetic.
fn control() -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        let mut mxcsr = 0u32;
        // SAFETY: writes the four bytes of `mxcsr`.
        unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut mxcsr, options(nostack, preserves_flags)) };
        u64::from(mxcsr)
    }
    #[cfg(target_arch = "aarch64")]
    {
        let fpcr;
        // SAFETY: reads a register.
        unsafe { asm!("mrs {}, fpcr", out(reg) fpcr, options(nomem, nostack, preserves_flags)) };
        fpcr
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    0
}

fn set_control(to: u64) {
    #[cfg(target_arch = "x86_64")]
    {
        let mxcsr = to as u32;
        // SAFETY: reads the four bytes of `mxcsr`; rounding and exceptions stay as they were.
        unsafe {
            asm!("ldmxcsr [{}]", in(reg) &raw const mxcsr, options(nostack, preserves_flags))
        };
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: rounding and exceptions stay as they were.
    unsafe {
        asm!("msr fpcr, {}", in(reg) to, options(nostack, preserves_flags))
    };
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = to;
}
