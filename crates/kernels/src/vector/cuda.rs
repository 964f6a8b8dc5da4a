//! Launches of elementwise kernels, and of kernels with one block per row.

use super::{Scaled, SumOfSquares};
use crate::cuda::arg::Arg;
use crate::cuda::{Gpu, Launch, MultiTensor, Slice, Source, args};
use crate::format::{Storage, Tiles};
use std::ops::Range;

pub(crate) static SOURCE: Source = Source {
    name: "vector",
    texts: &[include_str!("kernel.cu")],
    kernels: &[
        "vector_add_assign<float,float>",
        "vector_add_assign<float,bf16>",
        "vector_add_assign<bf16,float>",
        "vector_add_assign<bf16,bf16>",
        "vector_add_assign<float,f16>",
        "vector_add_assign<f16,float>",
        "vector_add_assign<f16,f16>",
        "vector_convert<float,float>",
        "vector_convert<float,bf16>",
        "vector_convert<bf16,float>",
        "vector_convert<bf16,bf16>",
        "vector_convert<float,f16>",
        "vector_convert<bf16,f16>",
        "vector_convert<f16,float>",
        "vector_convert<f16,f16>",
        "vector_convert<f16,bf16>",
        "vector_scale<float>",
        "vector_scale<bf16>",
        "vector_scale<f16>",
        "vector_scale_all<bf16>",
        "vector_scale_all<f16>",
        "vector_add_scaled",
        "vector_zero",
        "vector_sum_of_squares",
        "vector_add_column_sums<float>",
        "vector_add_column_sums<bf16>",
        "vector_add_column_sums<f16>",
        "vector_gather_rows<float>",
        "vector_gather_rows<bf16>",
        "vector_gather_rows<f16>",
        "vector_scatter_rows<float>",
        "vector_scatter_rows<bf16>",
        "vector_scatter_rows<f16>",
        "vector_add_bias<float>",
        "vector_add_bias<bf16>",
        "vector_add_bias<f16>",
        "vector_init_rows<float>",
        "vector_init_rows<bf16>",
        "vector_init_rows<f16>",
    ],
};

/// Threads per block in kernels with one block per row.
const THREADS: u32 = 128;

/// A launch with one thread per four elements.
fn elements(n: usize) -> Launch {
    Launch::elements(n.div_ceil(4))
}

pub(super) fn add_assign(gpu: &Gpu, x: Slice<'_>, y: Slice<'_>) {
    assert!(x.len() >= y.len());
    let kernel = format!("vector_add_assign<{},{}>", x.type_name(), y.type_name());
    gpu.launch(&SOURCE, &kernel, elements(y.len()), args![x, y, y.len()]);
}

pub(crate) fn convert(gpu: &Gpu, x: Slice<'_>, y: Slice<'_>) {
    assert!(x.len() >= y.len());
    if let Storage::Packed(_) = x.storage() {
        return convert_rows(gpu, x, (0, x.cols()), y);
    }
    let kernel = format!("vector_convert<{},{}>", x.type_name(), y.type_name());
    gpu.launch(&SOURCE, &kernel, elements(y.len()), args![x, y, y.len()]);
}

/// Converts rows of `x`, of `h` elements each, beginning with row `first`, to `y`.
pub(crate) fn convert_rows(gpu: &Gpu, x: Slice<'_>, (first, h): (usize, usize), y: Slice<'_>) {
    let Storage::Packed(format) = x.storage() else {
        return convert(gpu, x.part(first * h, y.len()), y);
    };
    assert!(x.cols() == h && first * h + y.len() <= x.len());
    let kernel = format!("weights_unpack<{}>", y.type_name());
    let at = Launch::blocks(y.len() / h.max(1), THREADS);
    let tiles = format.tiles.unwrap_or(Tiles { groups: 1, per_group: 1, len: h });
    gpu.launch(format.source, &kernel, at, args![x, first, h, tiles, y]);
}

impl From<Tiles> for Arg {
    /// `Tiles` in CUDA.
    fn from(tiles: Tiles) -> Self {
        let Tiles { groups, per_group, len } = tiles;
        Self::pair(groups as u64 | (per_group as u64) << 32, len as u64)
    }
}

pub(super) fn scale(gpu: &Gpu, x: Slice<'_>, scale: f32, y: Slice<'_>) {
    assert!(x.len() >= y.len());
    let kernel = format!("vector_scale<{}>", y.type_name());
    gpu.launch(&SOURCE, &kernel, elements(y.len()), args![x, scale, y, y.len()]);
}

pub(super) fn scale_all(gpu: &Gpu, arrays: Vec<Scaled<'_>>) {
    let (mut rows, mut dtype) = (Vec::new(), None);
    for Scaled { parts, y } in arrays {
        let (y, mut at) = (y.cuda(), 0);
        assert!(*dtype.get_or_insert(y.dtype()) == y.dtype(), "results are of one type");
        for (x, by) in parts {
            let part = y.part(at, x.len());
            rows.push(([x.cuda()], [part.address(), u64::from(by.to_bits())]));
            at += x.len();
        }
    }
    let Some(dtype) = dtype else { return };
    let table = MultiTensor::with_words(gpu, rows.into_iter());
    table.launch(gpu, &SOURCE, &format!("vector_scale_all<{}>", dtype.in_kernels()), &[]);
}

pub(super) fn add_scaled(gpu: &Gpu, x: Slice<'_>, scale: f32, y: Slice<'_>) {
    assert!(x.len() >= y.len());
    gpu.launch(&SOURCE, "vector_add_scaled", elements(y.len()), args![x, scale, y, y.len()]);
}

pub(super) fn zero(gpu: &Gpu, arrays: Vec<[Slice<'_>; 1]>) {
    MultiTensor::new(gpu, &arrays).launch(gpu, &SOURCE, "vector_zero", &[]);
}

pub(super) fn sum_of_squares(gpu: &Gpu, arrays: &[[Slice<'_>; 1]]) -> SumOfSquares {
    let table = MultiTensor::new(gpu, arrays);
    let partial = gpu.scratch(4 * table.num_chunks());
    table.launch(gpu, &SOURCE, "vector_sum_of_squares", &[partial.into()]);
    let partial: Vec<f32> = gpu.download(partial, table.num_chunks());
    let sum = |sums: &[f32]| sums.iter().map(|&sum| f64::from(sum)).sum();
    let mut rest = &partial[..];
    let of_array = |[array]: &[Slice<'_>; 1]| {
        let (own, others) = rest.split_at(MultiTensor::chunks_of(array.len()));
        rest = others;
        sum(own)
    };
    SumOfSquares { of_arrays: arrays.iter().map(of_array).collect(), total: sum(&partial) }
}

pub(crate) fn add_column_sums(gpu: &Gpu, x: Slice<'_>, width: usize, col: usize, sums: Slice<'_>) {
    let (rows, n) = (x.len() / width, sums.len());
    assert!(col + n <= width);
    let kernel = format!("vector_add_column_sums<{}>", x.type_name());
    gpu.launch(&SOURCE, &kernel, Launch::columns(n), args![x, rows, width, col, n, sums]);
}

pub(super) fn gather_rows(gpu: &Gpu, x: Slice<'_>, h: usize, rows: &[u32], y: Slice<'_>) {
    assert!(x.dtype() == y.dtype() && y.len() >= rows.len() * h);
    assert!(rows.iter().all(|&row| (row as usize + 1) * h <= x.len()));
    let kernel = format!("vector_gather_rows<{}>", x.type_name());
    let at = Launch::blocks(rows.len(), THREADS);
    gpu.launch(&SOURCE, &kernel, at, args![x, h, gpu.upload(rows), y]);
}

pub(super) fn scatter_rows(
    gpu: &Gpu,
    x: Slice<'_>,
    stride: usize,
    cols: Range<usize>,
    rows: &[u32],
    y: Slice<'_>,
) {
    let width = cols.len();
    assert!(x.dtype() == y.dtype() && cols.end <= stride && rows.len() * stride <= x.len());
    assert!(rows.iter().all(|&row| (row as usize + 1) * width <= y.len()));
    let kernel = format!("vector_scatter_rows<{}>", x.type_name());
    let args = args![x, stride, cols.start, gpu.upload(rows), width, y];
    gpu.launch(&SOURCE, &kernel, Launch::blocks(rows.len(), THREADS), args);
}

/// Rows of elements, `stride` apart, beginning at `offset`.
#[derive(Clone, Copy)]
pub(crate) struct Rows {
    pub(crate) count: usize,
    pub(crate) stride: usize,
    pub(crate) offset: usize,
}

/// Sets the first `n` elements of `rows` to those of `x`, which is laid out like `y`, or to zero.
pub(crate) fn init_rows(gpu: &Gpu, y: Slice<'_>, rows: Rows, n: usize, x: Option<Slice<'_>>) {
    let Rows { count, stride, offset } = rows;
    assert!(x.is_none_or(|x| x.dtype() == y.dtype() && x.len() >= y.len()));
    let kernel = format!("vector_init_rows<{}>", y.type_name());
    let x = x.map_or(0, |x| x.address());
    gpu.launch(&SOURCE, &kernel, Launch::blocks(count, THREADS), args![y, x, stride, offset, n]);
}

/// `y[i, j] += bias[j]` for `rows` of `y`.
pub(crate) fn add_bias(gpu: &Gpu, y: Slice<'_>, rows: Rows, bias: Slice<'_>) {
    let Rows { count, stride, offset } = rows;
    let kernel = format!("vector_add_bias<{}>", y.type_name());
    let args = args![y, stride, offset, bias, bias.len()];
    gpu.launch(&SOURCE, &kernel, Launch::blocks(count, THREADS), args);
}
