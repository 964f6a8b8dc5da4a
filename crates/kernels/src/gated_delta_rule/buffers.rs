//! Scratch memory of a task of the backward pass.

use super::chunk::{CHUNK, KeyOperands, Keys, STRIDE, max_keys_len, max_sum_stride, sum_stride};
use super::{DeltaHeads, KEPT_CHUNKS};
use crate::cpu::Scratch;
use crate::gemm::WHOLE_PANELS;
use crate::gemm::block::{Typed, max_padded, padded, panel_cols};
use crate::gemm::tile::Tile;

/// Bytes of scratch memory that a thread needs on any instruction set.
pub(super) fn scratch_bytes(heads: &DeltaHeads) -> usize {
    let (dk, dv, c) = (heads.key_dim, heads.value_dim, CHUNK);
    let [wk, wv] = [dk, dv].map(|d| d.next_multiple_of(WHOLE_PANELS));
    let [sk, sv] = [dk, dv].map(max_sum_stride);
    let keys = max_keys_len(dk) + 2 * dk * c + 2 * c * wk + 2 * c * sk + 2 * c;
    let rows = c * max_padded(dv) * 3 + 5 * c * dv;
    let panels = c * wv + max_padded(dk).max(c) * wv + max_padded(dv) * (STRIDE + wk) + c * wv;
    let squares = 2 * c * c + 2 * c * STRIDE + 3 * c * c + c * c;
    let sums = 2 * c * sv + 3 * c * sk;
    let states = (KEPT_CHUNKS + 1) * heads.group() * dk * sv;
    4 * (keys + rows + panels + squares + sums + states) + 64 * 64
}

/// Buffers of a key head.
pub(super) struct OfKeys<'a, T, M: Tile> {
    pub keys: Keys<'a, T>,
    /// Reciprocal norms of queries and keys.
    pub norms: [&'a mut [f32]; 2],
    /// Columns of queries and keys as left operands, and as right ones.
    pub left: [&'a mut [M::Elem]; 2],
    pub right: [&'a mut [M::Elem]; 2],
    /// Gradients of normalised queries and keys, `[CHUNK, sum_stride]`.
    pub d: [&'a mut [f32]; 2],
}

/// Buffers of a value head.
pub(super) struct OfValues<'a, T, M: Tile> {
    pub keys: KeyOperands<'a, M>,
    /// Rows of `dO`, `dR` and `U` as left operands.
    pub rows: [&'a mut [M::Elem]; 3],
    pub o_panels: &'a mut [M::Elem],
    /// A state's rows, and `U`'s, contracted over dimensions of values; and a state's columns.
    pub row_panels: &'a mut [M::Elem],
    pub u_panels: &'a mut [M::Elem],
    pub s_panels: &'a mut [M::Elem],
    pub square_rows: &'a mut [M::Elem],
    /// `[CHUNK, CHUNK]`: `D`, `L`, and left operands.
    pub decays: &'a mut [f32],
    pub l: &'a mut [f32],
    pub squares: [&'a mut [T]; 2],
    /// `dO Uᵀ` and `dR Uᵀ`, `[CHUNK, STRIDE]`.
    pub d_squares: [&'a mut [f32]; 2],
    /// `[CHUNK, value_dim]`: `dO`, `dR`, `U`, and one of them with factors.
    pub d_o: &'a mut [T],
    pub d_r: &'a mut [T],
    pub u: &'a mut [T],
    pub scaled: &'a mut [T],
    /// `K dS'` and then `dR`.
    pub d_u: &'a mut [f32],
    /// `dO Sᵀ`, `dR Sᵀ`, `U dS'ᵀ`, `[CHUNK, sum_stride]`.
    pub reads: [&'a mut [f32]; 3],
}

impl<'a, T: Typed, M: Tile> OfKeys<'a, T, M> {
    #[inline(always)]
    pub fn take(scratch: &mut Scratch<'a>, dk: usize) -> Self {
        let (depth, stride) = (padded::<M>(CHUNK), sum_stride::<M>(dk));
        Self {
            keys: Keys::take(scratch, dk),
            norms: [scratch.take(CHUNK), scratch.take(CHUNK)],
            left: [scratch.take(dk * depth), scratch.take(dk * depth)],
            right: [0; 2].map(|_| scratch.take(depth * panel_cols::<M>(dk))),
            d: [scratch.take(CHUNK * stride), scratch.take(CHUNK * stride)],
        }
    }
}

impl<'a, T: Typed, M: Tile> OfValues<'a, T, M> {
    #[inline(always)]
    pub fn take(scratch: &mut Scratch<'a>, (dk, dv): (usize, usize)) -> Self {
        let (depth, wide) = (padded::<M>(dv), panel_cols::<M>(dv));
        Self {
            keys: KeyOperands::take(scratch, dk),
            rows: [0; 3].map(|_| scratch.take(CHUNK * depth)),
            o_panels: scratch.take(padded::<M>(CHUNK) * wide),
            row_panels: scratch.take(depth * panel_cols::<M>(dk)),
            u_panels: scratch.take(depth * STRIDE),
            s_panels: scratch.take(padded::<M>(dk).max(padded::<M>(CHUNK)) * wide),
            square_rows: scratch.take(CHUNK * padded::<M>(CHUNK)),
            decays: scratch.take(CHUNK * CHUNK),
            l: scratch.take(CHUNK * CHUNK),
            squares: [0; 2].map(|_| scratch.take(CHUNK * CHUNK)),
            d_squares: [0; 2].map(|_| scratch.take(CHUNK * STRIDE)),
            d_o: scratch.take(CHUNK * dv),
            d_r: scratch.take(CHUNK * dv),
            u: scratch.take(CHUNK * dv),
            scaled: scratch.take(CHUNK * dv),
            d_u: scratch.take(CHUNK * sum_stride::<M>(dv)),
            reads: [0; 3].map(|_| scratch.take(CHUNK * sum_stride::<M>(dk))),
        }
    }
}
