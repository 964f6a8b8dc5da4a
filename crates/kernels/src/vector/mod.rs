//! Operations on flat slices: sums, squares, scaling, column sums, conversion.

pub(crate) mod cuda;

use crate::cpu::{Apply, Cpu, Kernel, Piece, Split, pieces};
use crate::element::{Element, f16};
use crate::format::{Int8Rows, Int8RowsMut, Packed, WeightFormat};
use crate::math::dot;
use crate::processor::Processor;
use crate::view::{View, ViewMut, with_elements};
use std::ops::Range;

impl Processor {
    /// `y += x`, elementwise.
    pub fn add_assign(&self, x: View<'_>, y: ViewMut<'_>) {
        match self {
            Self::Cpu(cpu) => add_assign(cpu, x, y),
            Self::Cuda(gpu) => cuda::add_assign(gpu, x.cuda(), y.cuda()),
        }
    }

    /// `y = x`, elementwise, rounded to nearest.
    pub fn convert(&self, x: View<'_>, y: ViewMut<'_>) {
        match self {
            Self::Cpu(cpu) => convert(cpu, x, y),
            Self::Cuda(gpu) => cuda::convert(gpu, x.cuda(), y.cuda()),
        }
    }

    /// `y = x`, elementwise, rounded to nearest, on the CPU: weights are converted before they are
    /// copied to a GPU.
    ///
    /// # Panics
    /// On a GPU.
    pub fn convert_to_f16(&self, x: View<'_>, y: &mut [f16]) {
        match self {
            Self::Cpu(cpu) => convert_to_f16(cpu, x, y),
            Self::Cuda(_) => panic!("weights are converted to f16 on the CPU"),
        }
    }

    /// Packs floats in rows of `cols` into `bytes`.
    ///
    /// # Panics
    /// On a GPU: weights are packed before they are copied there. If the format is only read.
    pub fn pack(&self, x: View<'_>, cols: usize, format: &WeightFormat, bytes: &mut [u8]) {
        let pack = format.pack.unwrap_or_else(|| panic!("{} is only read from files", format.name));
        match self {
            Self::Cpu(cpu) => pack(cpu, x.floats(), cols, bytes),
            Self::Cuda(_) => panic!("weights are packed on the CPU"),
        }
    }

    /// Packs floats in rows of `cols` into `bytes` so that columns count by their importance.
    ///
    /// # Panics
    /// On a GPU, as above. If the format has nothing to search for.
    pub fn pack_by_importance(
        &self,
        x: View<'_>,
        importance: &[f32],
        format: &WeightFormat,
        bytes: &mut [u8],
    ) {
        let search = format.search.unwrap_or_else(|| panic!("{} has no search", format.name));
        match self {
            Self::Cpu(cpu) => search(cpu, x.floats(), importance.len(), importance, bytes),
            Self::Cuda(_) => panic!("weights are packed on the CPU"),
        }
    }

    /// See [`quantise_rows`].
    ///
    /// # Panics
    /// On a GPU: weights are quantised before they are copied there.
    pub fn quantise_rows(&self, x: Columns<'_>, factors: Option<&[f32]>, y: Int8RowsMut<'_>) {
        match self {
            Self::Cpu(cpu) => quantise_rows(cpu, x, factors, y),
            Self::Cuda(_) => panic!("rows are quantised on the CPU"),
        }
    }

    /// `y = scale · x`, elementwise, rounded to nearest; `x` f32.
    pub fn scale(&self, x: View<'_>, by: f32, y: ViewMut<'_>) {
        match self {
            Self::Cpu(cpu) => scale(cpu, x.f32(), by, y),
            Self::Cuda(gpu) => cuda::scale(gpu, x.cuda().f32(), by, y.cuda()),
        }
    }

    /// [`Processor::scale`] for all arrays in one launch; results have one type other than f32.
    ///
    /// # Panics
    /// On the CPU.
    pub fn scale_all(&self, arrays: Vec<Scaled<'_>>) {
        match self {
            Self::Cpu(_) => panic!("only a GPU scales many arrays in one launch"),
            Self::Cuda(gpu) => cuda::scale_all(gpu, arrays),
        }
    }

    /// `y += scale · x`, elementwise; both f32.
    pub fn add_scaled(&self, x: View<'_>, scale: f32, y: ViewMut<'_>) {
        match self {
            Self::Cpu(cpu) => add_scaled(cpu, x.f32(), scale, y.f32()),
            Self::Cuda(gpu) => cuda::add_scaled(gpu, x.cuda().f32(), scale, y.cuda().f32()),
        }
    }

    /// `y = 0`.
    pub fn zero(&self, y: ViewMut<'_>) {
        match self {
            Self::Cpu(cpu) => zero(cpu, y),
            Self::Cuda(gpu) => gpu.zero(y.cuda()),
        }
    }

    /// `y = 0` for all arrays, which are f32.
    pub fn zero_all(&self, arrays: Vec<ViewMut<'_>>) {
        match self {
            Self::Cpu(cpu) => zero_all(cpu, arrays.into_iter().map(ViewMut::f32).collect()),
            Self::Cuda(gpu) => cuda::zero(gpu, arrays.into_iter().map(|y| [y.cuda()]).collect()),
        }
    }

    /// `Σ x²` over all elements of all arrays, which are f32: partial sums in f32, added in order
    /// in `f64`. Synchronises with a GPU once.
    pub fn sum_of_squares(&self, arrays: &[View<'_>]) -> SumOfSquares {
        match self {
            Self::Cpu(cpu) => {
                sum_of_squares(cpu, &arrays.iter().map(|x| x.f32()).collect::<Vec<_>>())
            }
            Self::Cuda(gpu) => {
                let arrays: Vec<_> = arrays.iter().map(|x| [x.cuda()]).collect();
                cuda::sum_of_squares(gpu, &arrays)
            }
        }
    }

    /// `sums[n] += Σ_m x[m, col + n]` for row-major `x` with `width` columns; `sums` f32.
    pub fn add_column_sums(&self, x: View<'_>, width: usize, col: usize, sums: ViewMut<'_>) {
        match self {
            Self::Cpu(cpu) => add_column_sums(cpu, x, width, col, sums.f32()),
            Self::Cuda(gpu) => cuda::add_column_sums(gpu, x.cuda(), width, col, sums.cuda().f32()),
        }
    }

    /// Copies the given rows of `x [_, h]` to `y [rows.len(), h]`.
    pub fn gather_rows(&self, x: View<'_>, h: usize, rows: &[u32], y: ViewMut<'_>) {
        match self {
            Self::Cpu(cpu) => gather_rows(cpu, x, h, rows, y),
            Self::Cuda(gpu) => cuda::gather_rows(gpu, x.cuda(), h, rows, y.cuda()),
        }
    }

    /// See [`scatter_rows`].
    ///
    /// # Panics
    /// If a row does not exist in `y`, or a column not in `x`.
    pub fn scatter_rows(
        &self,
        x: View<'_>,
        stride: usize,
        cols: Range<usize>,
        rows: &[u32],
        y: ViewMut<'_>,
    ) {
        match self {
            Self::Cpu(_) => scatter_rows(x, stride, cols, rows, y),
            Self::Cuda(gpu) => cuda::scatter_rows(gpu, x.cuda(), stride, cols, rows, y.cuda()),
        }
    }
}

/// Arrays that are scaled into one.
pub struct Scaled<'a> {
    /// f32 arrays and their factors; their results are concatenated.
    pub parts: Vec<(View<'a>, f32)>,
    /// The results, rounded to nearest.
    pub y: ViewMut<'a>,
}

/// Elements per task and per partial sum; fixed, so that sums do not depend on thread count.
const CHUNK: usize = 8192;

/// `y += x`, elementwise.
pub fn add_assign(cpu: &Cpu, x: View<'_>, y: ViewMut<'_>) {
    with_elements!(x, x => with_elements!(mut y, y => chunks(cpu, y, |start, y| {
        for (y, x) in y.iter_mut().zip(&x[start..]) {
            *y = Element::from_f32(y.to_f32() + x.to_f32());
        }
    })));
}

/// `y = x`, elementwise, rounded to nearest.
pub fn convert(cpu: &Cpu, x: View<'_>, y: ViewMut<'_>) {
    if let View::Packed(x) = x {
        return with_elements!(mut y, y => unpack(cpu, x, y));
    }
    with_elements!(x, x => with_elements!(mut y, y => chunks(cpu, y, |start, y| {
        for (y, x) in y.iter_mut().zip(&x[start..]) {
            *y = Element::from_f32(x.to_f32());
        }
    })));
}

/// `y = x`, unpacked and rounded to nearest.
fn unpack<Y: Element>(cpu: &Cpu, x: Packed<'_>, y: &mut [Y]) {
    cpu.rows(y, x.cols(), x.cols(), |row, y| {
        let mut values = [0.0; 256];
        for (piece, y) in y.chunks_mut(values.len()).enumerate() {
            let values = &mut values[..y.len()];
            x.unpack(row * x.cols() + piece * 256, values);
            y.iter_mut().zip(values).for_each(|(y, x)| *y = Element::from_f32(*x));
        }
    });
}

/// `y = x`, elementwise, rounded to nearest.
pub fn convert_to_f16(cpu: &Cpu, x: View<'_>, y: &mut [f16]) {
    if let View::Packed(x) = x {
        return unpack(cpu, x, y);
    }
    with_elements!(x, x => chunks(cpu, y, |start, y| {
        for (y, x) in y.iter_mut().zip(&x[start..]) {
            *y = Element::from_f32(x.to_f32());
        }
    }));
}

/// Columns of a row-major matrix, beginning at `col`.
#[derive(Clone, Copy)]
pub struct Columns<'a> {
    /// The matrix.
    pub x: View<'a>,
    /// Length of its rows.
    pub width: usize,
    /// First column.
    pub col: usize,
}

/// Quantises `y [rows, cols] = x · factors` to int8, with a scale per row that maps its largest
/// magnitude to 127; rows that are not finite get a NaN scale. `factors [cols]` are one per column,
/// or ones.
///
/// # Panics
/// If there are not `cols` values for each scale, or not as many factors.
pub fn quantise_rows(cpu: &Cpu, x: Columns<'_>, factors: Option<&[f32]>, y: Int8RowsMut<'_>) {
    let (Columns { x, width, col }, Int8RowsMut { values, scales }) = (x, y);
    let cols = values.len() / scales.len().max(1);
    assert_eq!(values.len(), cols * scales.len());
    assert!(factors.is_none_or(|factors| factors.len() == cols));
    let values = Split::new(values);
    with_elements!(x, x => cpu.rows(scales, 1, 2 * cols, |row, scale| {
        // SAFETY: each row belongs to one task.
        let values = unsafe { values.slice(row * cols, cols) };
        let x = &x[row * width + col..][..cols];
        scale[0] = cpu.isa.run(QuantiseRow { x, factors, values });
    }));
}

/// Quantises a row and returns its scale.
struct QuantiseRow<'a, E> {
    x: &'a [E],
    factors: Option<&'a [f32]>,
    values: &'a mut [u8],
}

impl<E: Element> Kernel for QuantiseRow<'_, E> {
    type Output = f32;

    #[inline(always)]
    fn run(self) -> f32 {
        match self.factors {
            None => quantise_row(self.x.iter().map(|x| x.to_f32()), self.values),
            Some(factors) => {
                let products = self.x.iter().zip(factors).map(|(x, f)| x.to_f32() * f);
                quantise_row(products, self.values)
            }
        }
    }
}

/// Quantises a row to as many bytes, and returns its scale.
#[inline(always)]
pub(crate) fn quantise_row(x: impl Iterator<Item = f32> + Clone, values: &mut [u8]) -> f32 {
    // Adding 1.5 · 2^23 rounds to the nearest integer and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    /// Rows below this are set to zero, since the inverse would be infinite.
    const MIN: f32 = 1e-35;
    // Non-negative floats sort like their bits, with NaN last.
    let magnitudes = x.clone().map(|x| x.to_bits() & 0x7fff_ffff);
    let amax = f32::from_bits(magnitudes.fold(0, |a, b| if b > a { b } else { a }));
    if !amax.is_finite() {
        return f32::NAN;
    }
    let inverse = if amax > MIN { 127.0 / amax } else { 0.0 };
    for (value, x) in values.iter_mut().zip(x) {
        *value = x.mul_add(inverse, ROUND).to_bits() as u8 ^ Int8Rows::ZERO_POINT;
    }
    amax / 127.0
}

/// `y = scale · x`, elementwise, rounded to nearest.
pub fn scale(cpu: &Cpu, x: &[f32], scale: f32, y: ViewMut<'_>) {
    with_elements!(mut y, y => chunks(cpu, y, |start, y| {
        for (y, x) in y.iter_mut().zip(&x[start..]) {
            *y = Element::from_f32(scale * x);
        }
    }));
}

/// `y += scale · x`, elementwise.
pub fn add_scaled(cpu: &Cpu, x: &[f32], scale: f32, y: &mut [f32]) {
    chunks(cpu, y, |start, y| {
        for (y, x) in y.iter_mut().zip(&x[start..]) {
            *y += scale * x;
        }
    });
}

/// `y = 0`.
pub fn zero(cpu: &Cpu, y: ViewMut<'_>) {
    with_elements!(mut y, y => chunks(cpu, y, |_, y| y.fill(Element::from_f32(0.0))));
}

/// `y = 0` for all arrays, whose pieces are handed out to the threads together.
pub fn zero_all(cpu: &Cpu, arrays: Vec<&mut [f32]>) {
    let arrays: Vec<_> = arrays.into_iter().map(|y| (y.len(), Split::new(y))).collect();
    let pieces = pieces(arrays.iter().map(|(len, _)| *len), CHUNK);
    cpu.pool.run(pieces.len(), &|task| {
        let Piece { array, range } = &pieces[task];
        // SAFETY: pieces do not overlap.
        unsafe { arrays[*array].1.slice(range.start, range.len()) }.fill(0.0);
    });
}

/// `Σ x²` of several arrays.
#[derive(Clone, Debug, PartialEq)]
pub struct SumOfSquares {
    /// Over all elements.
    pub total: f64,
    /// Over those of each array.
    pub of_arrays: Vec<f64>,
}

/// `Σ x²` of each array: partial sums of `CHUNK` elements in `f32`, added in order in `f64`; then
/// of all, in their order. Pieces of all arrays are handed out to the threads together.
pub fn sum_of_squares(cpu: &Cpu, arrays: &[&[f32]]) -> SumOfSquares {
    let pieces = pieces(arrays.iter().map(|x| x.len()), CHUNK);
    let mut partial = vec![0.0f32; pieces.len()];
    cpu.rows(&mut partial, 1, CHUNK, |i, sum| {
        let Piece { array, range } = &pieces[i];
        sum[0] = cpu.isa.run(Squares(&arrays[*array][range.clone()]));
    });
    let mut of_arrays = vec![0.0; arrays.len()];
    for (Piece { array, .. }, sum) in pieces.iter().zip(partial) {
        of_arrays[*array] += f64::from(sum);
    }
    SumOfSquares { total: of_arrays.iter().sum(), of_arrays }
}

struct Squares<'a>(&'a [f32]);

impl Kernel for Squares<'_> {
    type Output = f32;

    #[inline(always)]
    fn run(self) -> f32 {
        dot(self.0, self.0)
    }
}

/// `sums[n] += Σ_m x[m, col + n]` for row-major `x` with `width` columns, rows summed in order.
pub fn add_column_sums(cpu: &Cpu, x: View<'_>, width: usize, col: usize, sums: &mut [f32]) {
    let rows = x.len() / width;
    let per_task = crate::cpu::rows_per_task(rows) * 16;
    with_elements!(x, x => {
        let n = sums.len();
        let split = Split::new(sums);
        cpu.pool.run(n.div_ceil(per_task), &|task| {
            let (start, end) = (task * per_task, ((task + 1) * per_task).min(n));
            // SAFETY: ranges of different tasks do not overlap.
            let sums = unsafe { split.slice(start, end - start) };
            cpu.isa.run(Apply(|| {
                for row in x.chunks_exact(width) {
                    for (sum, x) in sums.iter_mut().zip(&row[col + start..col + end]) {
                        *sum += x.to_f32();
                    }
                }
            }));
        });
    });
}

/// Copies the given rows of `x [_, h]` to `y [rows.len(), h]`.
pub fn gather_rows(cpu: &Cpu, x: View<'_>, h: usize, rows: &[u32], y: ViewMut<'_>) {
    match (x, y) {
        (View::F32(x), ViewMut::F32(y)) => gather_typed(cpu, x, h, rows, y),
        (View::Bf16(x), ViewMut::Bf16(y)) => gather_typed(cpu, x, h, rows, y),
        (x, _) => panic!("rows of {} cannot be gathered into another type", x.dtype().name()),
    }
}

fn gather_typed<T: Element>(cpu: &Cpu, x: &[T], h: usize, rows: &[u32], y: &mut [T]) {
    cpu.rows(&mut y[..rows.len() * h], h, h, |i, y| {
        let start = rows[i] as usize * h;
        y.copy_from_slice(&x[start..start + h]);
    });
}

/// Runs `body` for each chunk of `y`, given where it starts, with the instruction set of the CPU. A
/// body of more than a few instructions may be left out of line, where it has none: that belongs in
/// a [`Kernel`](crate::cpu::Kernel), and to [`by_chunk`].
pub(crate) fn chunks<T: Element>(cpu: &Cpu, y: &mut [T], body: impl Fn(usize, &mut [T]) + Sync) {
    by_chunk(cpu, y, |start, y| cpu.isa.run(Apply(|| body(start, y))));
}

/// Runs `body` for each chunk of `y`, given where it starts.
pub(crate) fn by_chunk<T: Element>(cpu: &Cpu, y: &mut [T], body: impl Fn(usize, &mut [T]) + Sync) {
    let n = y.len();
    let split = Split::new(y);
    cpu.pool.run(n.div_ceil(CHUNK), &|task| {
        let start = task * CHUNK;
        // SAFETY: ranges of different tasks do not overlap.
        body(start, unsafe { split.slice(start, CHUNK.min(n - start)) });
    });
}

/// Copies columns `cols` of row `i` of `x`, whose rows have `stride` elements, to row `rows[i]` of
/// `y [_, cols.len()]`, of the same type. Rows of `x` beyond `rows.len()` are not read.
///
/// # Panics
/// If a row does not exist in `y`, or a column not in `x`.
pub fn scatter_rows(x: View<'_>, stride: usize, cols: Range<usize>, rows: &[u32], y: ViewMut<'_>) {
    match (x, y) {
        (View::F32(x), ViewMut::F32(y)) => scatter_typed(x, stride, cols, rows, y),
        (View::Bf16(x), ViewMut::Bf16(y)) => scatter_typed(x, stride, cols, rows, y),
        (x, _) => panic!("rows of {} cannot be copied into another type", x.dtype().name()),
    }
}

fn scatter_typed<T: Element>(
    x: &[T],
    stride: usize,
    cols: Range<usize>,
    rows: &[u32],
    y: &mut [T],
) {
    let width = cols.len();
    for (x, &row) in x.chunks_exact(stride).zip(rows) {
        y[row as usize * width..][..width].copy_from_slice(&x[cols.clone()]);
    }
}

#[cfg(test)]
mod tests;
