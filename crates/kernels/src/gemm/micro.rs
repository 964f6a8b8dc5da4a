//! The innermost product: a tile of the output in registers.
//!
//! Written with intrinsics because left to itself the compiler spills the tile. All versions do the
//! same fused multiply-adds in the same order.

/// `c[MR, NR] += aᵀ · b` for packed `a[k][MR]`, `b[k][NR]`; rows of `c` are `stride` apart.
pub(super) trait Micro<const MR: usize, const NR: usize> {
    /// Does it.
    ///
    /// # Safety
    /// The machine must have the instruction set that the type is named after, and `c` must hold
    /// `(MR - 1) * stride + NR` elements.
    unsafe fn run(a: &[f32], b: &[f32], c: &mut [f32], stride: usize);
}

/// Plain Rust; on AArch64 this is NEON.
pub(super) struct Scalar;

impl<const MR: usize, const NR: usize> Micro<MR, NR> for Scalar {
    #[inline(always)]
    unsafe fn run(a: &[f32], b: &[f32], c: &mut [f32], stride: usize) {
        let mut acc = [[0.0f32; NR]; MR];
        for (i, acc) in acc.iter_mut().enumerate() {
            acc.copy_from_slice(&c[i * stride..i * stride + NR]);
        }
        let (a, _) = a.as_chunks::<MR>();
        let (b, _) = b.as_chunks::<NR>();
        for (a, b) in a.iter().zip(b) {
            for i in 0..MR {
                for j in 0..NR {
                    acc[i][j] = a[i].mul_add(b[j], acc[i][j]);
                }
            }
        }
        for (i, acc) in acc.iter().enumerate() {
            c[i * stride..i * stride + NR].copy_from_slice(acc);
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Micro;
    use std::arch::x86_64::*;

    /// A micro-kernel of `MR` rows by `$vectors` registers.
    macro_rules! micro_kernel {
        ($(#[$doc:meta])* $name:ident, $features:literal, $rows:literal, $vectors:literal,
         $lanes:literal, $zero:ident, $load:ident, $store:ident, $set1:ident, $fma:ident) => {
            $(#[$doc])*
            pub(in super::super) struct $name;

            impl $name {
                #[target_feature(enable = $features)]
                #[inline]
                unsafe fn tile(a: &[f32], b: &[f32], c: &mut [f32], stride: usize) {
                    const NR: usize = $vectors * $lanes;
                    assert!(c.len() >= ($rows - 1) * stride + NR);
                    let mut acc = [[$zero(); $vectors]; $rows];
                    let c = c.as_mut_ptr();
                    for i in 0..$rows {
                        for v in 0..$vectors {
                            // SAFETY: inside `c`, as asserted above.
                            acc[i][v] = unsafe { $load(c.add(i * stride + v * $lanes)) };
                        }
                    }
                    let (a, _) = a.as_chunks::<$rows>();
                    let (b, _) = b.as_chunks::<NR>();
                    for (a, b) in a.iter().zip(b) {
                        let mut columns = [$zero(); $vectors];
                        for v in 0..$vectors {
                            // SAFETY: `b` has `NR` elements.
                            columns[v] = unsafe { $load(b.as_ptr().add(v * $lanes)) };
                        }
                        for i in 0..$rows {
                            let row = $set1(a[i]);
                            for v in 0..$vectors {
                                acc[i][v] = $fma(row, columns[v], acc[i][v]);
                            }
                        }
                    }
                    for i in 0..$rows {
                        for v in 0..$vectors {
                            // SAFETY: inside `c`, as asserted above.
                            unsafe { $store(c.add(i * stride + v * $lanes), acc[i][v]) };
                        }
                    }
                }
            }

            impl Micro<$rows, { $vectors * $lanes }> for $name {
                #[inline(always)]
                unsafe fn run(a: &[f32], b: &[f32], c: &mut [f32], stride: usize) {
                    // SAFETY: the caller promises the instruction set.
                    unsafe { Self::tile(a, b, c, stride) }
                }
            }
        };
    }

    micro_kernel!(
        /// 8 rows by 32 columns in 16 of 32 registers.
        Avx512, "avx512f", 8, 2, 16,
        _mm512_setzero_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_set1_ps, _mm512_fmadd_ps
    );
    micro_kernel!(
        /// 6 rows by 16 columns in 12 of 16 registers.
        Avx2, "avx2,fma", 6, 2, 8,
        _mm256_setzero_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_set1_ps, _mm256_fmadd_ps
    );
}
