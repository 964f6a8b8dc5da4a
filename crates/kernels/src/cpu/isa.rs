//! Instruction sets: detected once, dispatched at run time, overridden with `HONE_ISA`.
//!
//! Kernels are plain Rust inside a [`Kernel::run`] marked `#[inline(always)]`; [`Isa::run`] builds
//! that body once per instruction set. All give the same bits, because they perform the same
//! operations in the same order.

use super::matrix_unit::MissingAmx;
use super::subnormals::SubnormalsAsZero;
use crate::ceiling;
#[cfg(target_arch = "x86_64")]
use crate::gemm::tile::Configured;
use std::sync::OnceLock;

/// An instruction set that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust, for the baseline of this architecture.
    Scalar,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512 F, BW, DQ, VL.
    Avx512,
    /// AVX-512 with BF16 and VNNI, which speed up matmuls.
    Avx512Bf16,
    /// AVX-512 with BF16 and AMX, whose matrix unit multiplies bf16 and bytes.
    Amx,
    /// NEON, which every AArch64 machine has; with byte dot products if available.
    Neon,
}

/// A computation that is compiled for each instruction set.
pub(crate) trait Kernel {
    /// Type of the result.
    type Output;
    /// Whether it runs tiles of products: subnormals are zero then, and a matrix unit is
    /// configured.
    const RUNS_TILES: bool = false;
    /// The computation. Implementations and everything in their hot loops are `#[inline(always)]`.
    fn run(self) -> Self::Output;
}

/// A closure as a kernel.
pub(crate) struct Apply<F>(pub F);

impl<F: FnOnce()> Kernel for Apply<F> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        (self.0)()
    }
}

impl Isa {
    /// The best instruction set of this machine, or the one named by `HONE_ISA` (`scalar`, `avx2`,
    /// `avx512`, `avx512bf16`, `amx`, `neon`).
    ///
    /// # Panics
    /// If `HONE_ISA` names a set that is unknown or unavailable: it is a switch for tests, and a
    /// test that silently ran something else would prove nothing.
    pub fn detect() -> Self {
        static FOUND: OnceLock<Isa> = OnceLock::new();
        *FOUND.get_or_init(|| {
            let available = Self::available();
            match std::env::var("HONE_ISA") {
                Ok(name) => *available.iter().find(|isa| isa.name() == name).unwrap_or_else(|| {
                    panic!("HONE_ISA={name}: this machine has {available:?} (in lower case)")
                }),
                Err(_) => Self::best_of(&available),
            }
        })
    }

    /// The last, unless it is one that multiplies bf16 slower than `f32` multiply-adds do:
    /// processors of Intel's without AMX run `vdpbf16ps` at half the rate.
    fn best_of(available: &[Self]) -> Self {
        match available {
            [.., Isa::Avx512, Isa::Avx512Bf16] => ceiling::faster([Isa::Avx512Bf16, Isa::Avx512]),
            [.., best] => *best,
            [] => unreachable!("scalar is always available"),
        }
    }

    /// Why this process cannot use AMX, if it cannot.
    pub fn missing_amx() -> Option<MissingAmx> {
        #[cfg(target_arch = "x86_64")]
        return super::matrix_unit::missing()
            .or_else(|| (!Self::available().contains(&Self::Amx)).then_some(MissingAmx::Vectors));
        #[cfg(not(target_arch = "x86_64"))]
        Some(MissingAmx::Processor)
    }

    /// The instruction sets this machine can run, slowest first.
    pub fn available() -> Vec<Self> {
        let mut found = vec![Isa::Scalar];
        #[cfg(target_arch = "aarch64")]
        found.push(Isa::Neon);
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                found.push(Isa::Avx2);
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                {
                    found.push(Isa::Avx512);
                    if is_x86_feature_detected!("avx512bf16")
                        && is_x86_feature_detected!("avx512vnni")
                    {
                        found.push(Isa::Avx512Bf16);
                        if super::matrix_unit::missing().is_none() {
                            found.push(Isa::Amx);
                        }
                    }
                }
            }
        }
        found
    }

    /// Name as in `HONE_ISA`.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Bf16 => "avx512bf16",
            Isa::Amx => "amx",
            Isa::Neon => "neon",
        }
    }

    /// Runs `kernel` compiled for this set.
    #[inline(always)]
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        let _as_zero = K::RUNS_TILES.then(SubnormalsAsZero::new);
        match self {
            // NEON is part of the AArch64 baseline.
            Isa::Scalar | Isa::Neon => run_baseline(kernel),
            // SAFETY: `Cpu::with_isa` has checked that the machine has the features, and kernels
            // take the set from a `Cpu`.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { run_avx2(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Bf16 => unsafe { run_avx512(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => unsafe {
                let _configured = K::RUNS_TILES.then(|| Configured::new());
                run_avx512(kernel)
            },
            #[cfg(not(target_arch = "x86_64"))]
            _ => unreachable!("not available on this architecture"),
        }
    }
}

// Never inlined where subnormals are handled in another way.

#[inline(never)]
fn run_baseline<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
#[inline(never)]
unsafe fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
#[inline(never)]
unsafe fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}
