//! Products of bytes, summed exactly in 32-bit integers.
//!
//! `vpdpbusd` multiplies unsigned by signed bytes. Rows of the left operand are read in place, with
//! their zero point of 128; panels hold signed bytes `b`. Since
//! `Σ (a - 128) b = Σ a b - 128 Σ b`, sums start from a correction per column, computed while
//! packing. Each sum is converted to `f32` once, and scaled by its row and its column.

use super::{Lines, Part, Store, Sums};
use crate::format::Int8Rows;

/// Steps of the contraction in a group.
pub(crate) const STEP: usize = 4;
/// Panels are padded with zeros to a multiple of so many groups: those of a tile of AMX.
pub(super) const GROUPS: usize = 16;

/// Rows of a tile and a panel.
#[derive(Clone, Copy)]
pub(crate) struct Segment {
    /// First row of the left operand.
    pub a: *const u8,
    /// Distance between its rows.
    pub a_stride: usize,
    /// Scales of the rows.
    pub scales: *const f32,
    /// For each column: corrections, scales as bits, then `[group][column]` of four signed bytes.
    pub b: *const i32,
    /// Groups of [`STEP`] steps.
    pub groups: usize,
}

impl Segment {
    /// Moves `rows` rows down.
    pub fn skip_rows(&mut self, rows: usize) {
        self.a = self.a.wrapping_add(rows * self.a_stride);
        self.scales = self.scales.wrapping_add(rows);
    }
}

/// Elements of a panel of `width` columns.
pub(crate) fn panel_len(k: usize, width: usize) -> usize {
    (2 + k.div_ceil(STEP).next_multiple_of(GROUPS)) * width
}

/// Scales of the packed columns, as bits: the matrix's row scales, or ones if it has none.
///
/// # Panics
/// If scales vary along the contraction.
pub(super) fn scales(x: Lines<'_>, part: Part, out: &mut [i32]) {
    let (data, rows) = (x.data.packed().int8(), x.rows());
    assert!(x.step == 1 || data.scales.is_empty(), "scales along a contraction cannot be applied");
    for (i, out) in out.iter_mut().enumerate() {
        let scale = match data.scales.is_empty() {
            true => 1.0,
            false if i < part.lines => data.scales[rows.of(part.line + i, 0)],
            false => 0.0,
        };
        *out = scale.to_bits().cast_signed();
    }
}

/// [`super::Tile::pack_int8`] in plain Rust.
#[inline(always)]
pub(super) fn pack_panel(x: Lines<'_>, part: Part, width: usize, panel: &mut [i32]) {
    let data = x.data.packed().int8();
    let (head, lanes) = panel[..panel_len(part.k, width)].split_at_mut(2 * width);
    let (corrections, scale_bits) = head.split_at_mut(width);
    scales(x, part, scale_bits);
    corrections.fill(0);
    for (group, lanes) in lanes.chunks_exact_mut(width).enumerate() {
        for (j, (lane, correction)) in lanes.iter_mut().zip(&mut *corrections).enumerate() {
            let bytes: [i8; STEP] = std::array::from_fn(|s| {
                let k = group * STEP + s;
                if j >= part.lines || k >= part.k {
                    return 0;
                }
                let byte = data.values[x.index(part.line + j, part.k0 + k)];
                (byte ^ Int8Rows::ZERO_POINT).cast_signed()
            });
            *lane = i32::from_le_bytes(bytes.map(i8::cast_unsigned));
            let sum: i32 = bytes.iter().map(|&b| i32::from(b)).sum();
            *correction -= i32::from(Int8Rows::ZERO_POINT) * sum;
        }
    }
}

/// [`super::Tile::run_int8`] in plain Rust.
///
/// # Safety
/// `segment` and `sums` must point to valid memory.
#[inline(always)]
pub(super) unsafe fn run<const LANES: usize>(
    rows: usize,
    vectors: usize,
    segment: Segment,
    sums: Sums,
) {
    let width = vectors * LANES;
    // SAFETY: the caller promises that the panel is valid.
    let panel = unsafe { std::slice::from_raw_parts(segment.b, (2 + segment.groups) * width) };
    let (head, lanes) = panel.split_at(2 * width);
    for i in 0..rows {
        // SAFETY: the caller promises that rows, scales and sums are valid.
        let (a, row_scale, out) = unsafe {
            (
                std::slice::from_raw_parts(
                    segment.a.add(i * segment.a_stride),
                    segment.groups * STEP,
                ),
                *segment.scales.add(i),
                std::slice::from_raw_parts_mut(sums.start.add(i * sums.stride), width),
            )
        };
        for v in (0..width).step_by(LANES) {
            let mut acc = [0i32; LANES];
            acc.copy_from_slice(&head[v..v + LANES]);
            for (a, lanes) in a.chunks_exact(STEP).zip(lanes.chunks_exact(width)) {
                for (acc, lane) in acc.iter_mut().zip(&lanes[v..v + LANES]) {
                    for (a, b) in a.iter().zip(lane.to_le_bytes()) {
                        *acc += i32::from(*a) * i32::from(b.cast_signed());
                    }
                }
            }
            for (j, acc) in acc.into_iter().enumerate() {
                let scale = row_scale * f32::from_bits(head[width + v + j].cast_unsigned());
                let out = &mut out[v + j];
                *out = match sums.store {
                    Store::Overwrite => acc as f32 * scale,
                    Store::Continue | Store::Add => (acc as f32).mul_add(scale, *out),
                };
            }
        }
    }
}

/// [`super::Tile::run_int8`] with AVX-512, on machines with VNNI and without.
///
/// # Safety
/// As [`super::Tile::run`].
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) unsafe fn run_avx512(rows: usize, vectors: usize, segment: Segment, sums: Sums) {
    // SAFETY: as the caller promises.
    unsafe {
        if is_x86_feature_detected!("avx512vnni") {
            avx512::run(rows, vectors, segment, sums)
        } else {
            run::<16>(rows, vectors, segment, sums)
        }
    }
}

/// [`super::Tile::run_int8_in_registers`] with AVX-512.
///
/// # Safety
/// As [`super::Tile::run`].
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) unsafe fn run_avx512_in_registers(count: usize) -> Option<usize> {
    // SAFETY: as the caller promises, and as checked.
    is_x86_feature_detected!("avx512vnni").then(|| unsafe { avx512::in_registers::<8, 3>(count) })
}

/// Defines a module with the tiles for one register width.
#[cfg(target_arch = "x86_64")]
macro_rules! vnni {
    ($(#[$doc:meta])* $name:ident, $features:literal, $lanes:literal, [$($r:literal)*],
     ($zero:ident, $load:ident, $set:ident, $dot:ident),
     ($convert:ident, $load_ps:ident, $set_ps:ident, $mul:ident, $fmadd:ident, $store_ps:ident)
    ) => {
        $(#[$doc])*
        pub(super) mod $name {
            use super::super::{Store, Sums, for_size};
            use super::Segment;
            use std::arch::x86_64::*;

            const LANES: usize = $lanes;

            /// # Safety
            /// The machine must have the features; `segment` and `sums` must point to valid memory.
            #[inline(always)]
            pub unsafe fn run(rows: usize, vectors: usize, segment: Segment, sums: Sums) {
                // SAFETY: as the caller promises.
                unsafe { for_size!(rows, vectors, [$($r)*], tile(segment, sums)) }
            }

            /// Multiplies and adds with the accumulators of a tile; the number of operations.
            #[target_feature(enable = $features)]
            pub fn in_registers<const R: usize, const V: usize>(count: usize) -> usize {
                let (mut acc, ones) = ([[$zero(); V]; R], std::hint::black_box($set(0x0101_0101)));
                for _ in 0..count {
                    for acc in acc.as_flattened_mut() {
                        *acc = $dot(*acc, ones, ones);
                    }
                }
                std::hint::black_box(acc);
                2 * count * R * V * LANES * super::STEP
            }

            // Indices name registers: iterators over them are not unrolled.
            #[allow(clippy::needless_range_loop)]
            #[target_feature(enable = $features)]
            unsafe fn tile<const R: usize, const V: usize>(segment: Segment, sums: Sums) {
                // SAFETY: the caller promises that operands and sums are valid.
                unsafe {
                    let mut acc = [[$zero(); V]; R];
                    for v in 0..V {
                        let correction = $load(segment.b.add(v * LANES).cast());
                        for i in 0..R {
                            acc[i][v] = correction;
                        }
                    }
                    let (mut a, mut b) = (segment.a, segment.b.add(2 * V * LANES));
                    for _ in 0..segment.groups {
                        let mut columns = [$zero(); V];
                        for v in 0..V {
                            columns[v] = $load(b.add(v * LANES).cast());
                        }
                        for i in 0..R {
                            let four = a.add(i * segment.a_stride).cast::<i32>();
                            let row = $set(four.read_unaligned());
                            for v in 0..V {
                                acc[i][v] = $dot(acc[i][v], row, columns[v]);
                            }
                        }
                        a = a.add(super::STEP);
                        b = b.add(V * LANES);
                    }
                    for i in 0..R {
                        let row_scale = $set_ps(*segment.scales.add(i));
                        for v in 0..V {
                            let scale = $load_ps(segment.b.add((V + v) * LANES).cast());
                            let scale = $mul(row_scale, scale);
                            let out = sums.start.add(i * sums.stride + v * LANES);
                            let sum = $convert(acc[i][v]);
                            let sum = match sums.store {
                                Store::Overwrite => $mul(sum, scale),
                                Store::Continue | Store::Add => $fmadd(sum, scale, $load_ps(out)),
                            };
                            $store_ps(out, sum);
                        }
                    }
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
vnni!(
    avx512, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,avx512vnni", 16, [1 2 3 4 5 6 7 8],
    (_mm512_setzero_si512, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_dpbusd_epi32),
    (_mm512_cvtepi32_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_mul_ps, _mm512_fmadd_ps,
     _mm512_storeu_ps)
);
#[cfg(target_arch = "x86_64")]
vnni!(
    /// AVX-VNNI, for machines without AVX-512.
    avx_vnni, "avx2,fma,avxvnni", 8, [1 2 3 4 5 6],
    (_mm256_setzero_si256, _mm256_loadu_si256, _mm256_set1_epi32, _mm256_dpbusd_avx_epi32),
    (_mm256_cvtepi32_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_mul_ps, _mm256_fmadd_ps,
     _mm256_storeu_ps)
);
#[cfg(target_arch = "x86_64")]
vnni!(
    /// AVX-VNNI's instructions in their AVX-512 encoding: tests the code above on machines that
    /// have only that.
    avx512_vl, "avx2,fma,avx512f,avx512vl,avx512vnni", 8, [1 2 3 4 5 6],
    (_mm256_setzero_si256, _mm256_loadu_si256, _mm256_set1_epi32, _mm256_dpbusd_epi32),
    (_mm256_cvtepi32_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_mul_ps, _mm256_fmadd_ps,
     _mm256_storeu_ps)
);
