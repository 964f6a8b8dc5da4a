//! Columns of a gated delta net whose projections are two matrices, as in Qwen3-Next: rows are, key
//! head by key head, its query, its key, the values and the output gates of its value heads, and
//! after those of all key heads again key head by key head `b` and `a` of its value heads. The
//! operations that follow read queries of all heads, keys, values, output gates, `b` and `a`.

mod cpu;
pub(crate) mod cuda;
#[cfg(any(test, feature = "reference"))]
pub mod reference;

use crate::gated_delta_rule::DeltaHeads;
use crate::processor::Processor;
use crate::view::{View, ViewMut};
use std::ops::Range;

/// Elements of a row.
pub fn width(heads: &DeltaHeads) -> usize {
    heads.qkv_width() + heads.out_width() + 2 * heads.num_value_heads
}

/// Where the columns of one key head are: by key head, and by kind.
fn parts(heads: &DeltaHeads, head: usize) -> [(Range<usize>, Range<usize>); 6] {
    let (values, gates) = (heads.group() * heads.value_dim, heads.group());
    let sizes = [heads.key_dim, heads.key_dim, values, values, gates, gates];
    let of_head = |sizes: &[usize]| sizes.iter().sum::<usize>();
    let (mut kind_at, mut part) = (0, 0);
    sizes.map(|size| {
        let (before, block) = match part < 4 {
            true => (0, 0..4),
            false => (heads.num_key_heads * of_head(&sizes[..4]), 4..6),
        };
        let within = of_head(&sizes[block.start..part]);
        let from = before + head * of_head(&sizes[block]) + within;
        let to = kind_at + head * size;
        (kind_at, part) = (kind_at + heads.num_key_heads * size, part + 1);
        (from..from + size, to..to + size)
    })
}

impl Processor {
    /// `x [t, width]`, by key head → `y [t, width]`, by kind.
    pub fn delta_columns(&self, heads: &DeltaHeads, x: View<'_>, y: ViewMut<'_>) {
        match self {
            Self::Cpu(cpu) => cpu::forward(cpu, heads, x, y),
            Self::Cuda(gpu) => cuda::forward(gpu, heads, x.cuda(), y.cuda()),
        }
    }

    /// `d_y [t, width]`, by kind → `d_x [t, width]`, by key head.
    pub fn delta_columns_backward(&self, heads: &DeltaHeads, d_y: View<'_>, d_x: ViewMut<'_>) {
        match self {
            Self::Cpu(cpu) => cpu::backward(cpu, heads, d_y, d_x),
            Self::Cuda(gpu) => cuda::backward(gpu, heads, d_y.cuda(), d_x.cuda()),
        }
    }
}
