//! Tiles of `f32` in registers, for any width of these.

/// Defines `tile` and `tile_of_blocks` with the intrinsics of an instruction set: `tile::<R, V>` is
/// [`Tile::run`](super::Tile::run) for `R` rows and `V` vectors, and `tile_of_blocks` is
/// [`Blocks::run_blocks`](super::Blocks::run_blocks).
macro_rules! float_tiles {
    ($features:literal, $lanes:expr, $vector:ty,
     ($zero:ident, $load:ident, $store:ident, $add:ident),
     ($broadcast:expr, $multiply_add:expr)
    ) => {
        /// Accumulators of a tile.
        type Rows<const R: usize, const V: usize> = [[$vector; V]; R];

        #[target_feature(enable = $features)]
        #[inline]
        fn zeros<const R: usize, const V: usize>() -> Rows<R, V> {
            [[$zero(); V]; R]
        }

        /// Adds the products of every `by`-th of `steps`.
        ///
        /// # Safety
        /// The operands must be valid.
        // Indices name registers: iterators over them are not unrolled.
        #[allow(clippy::needless_range_loop)]
        #[target_feature(enable = $features)]
        #[inline]
        unsafe fn chain<const R: usize, const V: usize>(
            mut acc: Rows<R, V>,
            segment: &Segment<f32>,
            steps: std::ops::Range<usize>,
            by: usize,
        ) -> Rows<R, V> {
            for k in steps.step_by(by) {
                // SAFETY: as the caller promises.
                unsafe {
                    let mut b = [$zero(); V];
                    for v in 0..V {
                        b[v] = $load(segment.b.add((k * V + v) * $lanes));
                    }
                    for i in 0..R {
                        let a = $broadcast(*segment.a.add(i * segment.a_stride + k));
                        for v in 0..V {
                            acc[i][v] = $multiply_add(acc[i][v], a, b[v]);
                        }
                    }
                }
            }
            acc
        }

        /// # Safety
        /// Operands and sums must be valid.
        #[target_feature(enable = $features)]
        unsafe fn tile<const R: usize, const V: usize>(segments: &[Segment<f32>], sums: Sums) {
            // SAFETY: as the caller promises.
            unsafe {
                let mut acc = match sums.store {
                    Store::Continue => load(sums),
                    Store::Overwrite | Store::Add => zeros::<R, V>(),
                };
                for segment in segments {
                    acc = chain(acc, segment, 0..segment.groups, 1);
                }
                if sums.store == Store::Add {
                    acc = add(acc, load(sums));
                }
                store(acc, sums);
            }
        }

        /// # Safety
        /// Operands and sums must be valid.
        #[target_feature(enable = $features)]
        unsafe fn tile_of_blocks<const R: usize, const V: usize>(
            segments: &[Segment<f32>],
            sums: Sums,
        ) {
            // SAFETY: as the caller promises.
            unsafe {
                let mut total = match sums.store {
                    Store::Overwrite => zeros::<R, V>(),
                    Store::Continue | Store::Add => load(sums),
                };
                for segment in segments {
                    for first in (0..segment.groups).step_by(BLOCK) {
                        let even = chain(zeros(), segment, first..first + BLOCK, 2);
                        let odd = chain(zeros(), segment, first + 1..first + BLOCK, 2);
                        total = add(total, add(even, odd));
                    }
                }
                store(total, sums);
            }
        }

        /// [`Tile::run_in_registers`](super::Tile::run_in_registers) with accumulators of a tile.
        #[target_feature(enable = $features)]
        fn in_registers<const R: usize, const V: usize>(count: usize) -> usize {
            let (mut acc, ones) = (zeros::<R, V>(), std::hint::black_box($broadcast(1.0)));
            for _ in 0..count {
                for acc in acc.as_flattened_mut() {
                    *acc = $multiply_add(*acc, ones, ones);
                }
            }
            std::hint::black_box(acc);
            2 * count * R * V * $lanes
        }

        #[target_feature(enable = $features)]
        #[inline]
        fn add<const R: usize, const V: usize>(mut x: Rows<R, V>, y: Rows<R, V>) -> Rows<R, V> {
            for (x, y) in x.as_flattened_mut().iter_mut().zip(y.as_flattened()) {
                *x = $add(*x, *y);
            }
            x
        }

        /// # Safety
        /// The sums must be valid.
        #[target_feature(enable = $features)]
        #[inline]
        unsafe fn load<const R: usize, const V: usize>(from: Sums) -> Rows<R, V> {
            let mut rows = zeros();
            for (i, row) in rows.iter_mut().enumerate() {
                for (v, x) in row.iter_mut().enumerate() {
                    // SAFETY: as the caller promises.
                    *x = unsafe { $load(from.start.add(i * from.stride + v * $lanes)) };
                }
            }
            rows
        }

        /// # Safety
        /// The sums must be valid.
        #[target_feature(enable = $features)]
        #[inline]
        unsafe fn store<const R: usize, const V: usize>(rows: Rows<R, V>, to: Sums) {
            for (i, row) in rows.into_iter().enumerate() {
                for (v, x) in row.into_iter().enumerate() {
                    // SAFETY: as the caller promises.
                    unsafe { $store(to.start.add(i * to.stride + v * $lanes), x) };
                }
            }
        }
    };
}
pub(super) use float_tiles;
