//! Packs rows into blocks whose scales are searched for ([`super::fit`]).

use super::fit::{Fitted, Grid, Lanes, Offsets, fit};
use super::{Block, GROUP};
use crate::cpu::{Cpu, Kernel};
use crate::element::{Element, Floats};
use crate::format::coding::{Coded, Coding};
use crate::view::{View, with_elements};

/// Most weights of a block, and most groups.
pub(super) const MAX_WEIGHTS: usize = 256;
const MAX_GROUPS: usize = 16;

/// The numbers of a block.
#[derive(Clone, Copy)]
pub(super) struct Parts {
    /// Of the block, or of its only group; both are f16s.
    pub(super) scale: f32,
    pub(super) offset: f32,
    /// Integers of groups, if they have any.
    pub(super) scales: [i32; MAX_GROUPS],
    pub(super) offsets: [i32; MAX_GROUPS],
    /// Of each weight how far its level is above the lowest, or its index in the table.
    pub(super) codes: [u8; MAX_WEIGHTS],
}

impl Parts {
    pub(super) const ZERO: Self = Self {
        scale: 0.0,
        offset: 0.0,
        scales: [0; MAX_GROUPS],
        offsets: [0; MAX_GROUPS],
        codes: [0; MAX_WEIGHTS],
    };
}

/// A block whose scales are searched for.
pub(super) trait Searched: Block {
    /// What its integers stand for.
    const GRID: Grid;
    /// Weights that share a scale.
    const GROUP_LEN: usize;

    /// The block with these numbers.
    fn assembled(parts: &Parts) -> Self;

    /// The numbers of the block.
    fn parts(&self) -> Parts;
}

/// What the blocks of a format consist of.
pub(super) const fn coding<B: Searched>() -> Coding {
    let [lowest, highest] = B::GRID.levels;
    Coding {
        group: B::GROUP_LEN,
        range: [lowest as i8, highest as i8],
        table: B::GRID.table,
        has_offsets: !matches!(B::GRID.offsets, Offsets::None),
        read: read::<B>,
        write: write::<B>,
    }
}

fn read<B: Searched>(bytes: &[u8]) -> Coded {
    let (mut coded, is_shared) = (Coded::default(), B::GRID.scales.is_some());
    for block in bytes.chunks_exact(size_of::<B>()) {
        // SAFETY: any bytes are a block, and here are as many.
        let parts = unsafe { block.as_ptr().cast::<B>().read_unaligned() }.parts();
        coded.shared.push([parts.scale, parts.offset]);
        for group in 0..B::WEIGHTS / B::GROUP_LEN {
            coded.groups.push(match is_shared {
                true => [parts.scales[group] as f32, parts.offsets[group] as f32],
                false => [1.0, 1.0],
            });
        }
        let level = |&code: &u8| match B::GRID.table {
            Some(table) => table[usize::from(code)],
            None => code as i8 + B::GRID.levels[0] as i8,
        };
        coded.levels.extend(parts.codes[..B::WEIGHTS].iter().map(level));
    }
    coded
}

fn write<B: Searched>(coded: &Coded, bytes: &mut [u8]) {
    let per_block = B::WEIGHTS / B::GROUP_LEN;
    let blocks = bytes.chunks_exact_mut(size_of::<B>()).zip(&coded.shared);
    let numbers = coded.groups.chunks_exact(per_block).zip(coded.levels.chunks_exact(B::WEIGHTS));
    for ((to, shared), (groups, levels)) in blocks.zip(numbers) {
        let mut parts = Parts::ZERO;
        [parts.scale, parts.offset] = *shared;
        for (i, [scale, offset]) in groups.iter().enumerate() {
            (parts.scales[i], parts.offsets[i]) = (*scale as i32, *offset as i32);
        }
        for (code, &level) in parts.codes.iter_mut().zip(levels) {
            *code = match B::GRID.table {
                Some(table) => table.iter().position(|of| *of == level).unwrap_or(0) as u8,
                None => (level - B::GRID.levels[0] as i8) as u8,
            };
        }
        // SAFETY: a block consists of bytes, as many as there are here.
        unsafe { to.as_mut_ptr().cast::<B>().write_unaligned(B::assembled(&parts)) };
    }
}

/// Packs whole rows so that the sum of `importance[column] · (weight − unpacked)²` is small; all
/// columns are as important if `importance` is empty. In types of few levels large weights count
/// more than that ([`emphasised`]).
pub(super) fn pack<B: Searched>(
    cpu: &Cpu,
    weights: Floats<'_>,
    cols: usize,
    importance: &[f32],
    bytes: &mut [u8],
) {
    assert!(importance.is_empty() || importance.len() == cols, "one for each column");
    let weights = View::from(weights);
    let row_bytes = cols / B::WEIGHTS * size_of::<B>();
    assert!(cols.is_multiple_of(B::WEIGHTS), "rows of whole blocks");
    let importance = floored(importance, cols);
    // A search takes about as long as this many passes over a row.
    let cost = 64 * cols;
    with_elements!(weights, weights => cpu.rows(bytes, row_bytes, cost, |row, to| {
        let x: Vec<f32> = weights[row * cols..][..cols].iter().map(|x| x.to_f32()).collect();
        let of_large = emphasised::<B>(&x, &importance);
        let mut parts = vec![Parts::ZERO; cols / B::WEIGHTS];
        cpu.isa.run(FitRow {
            grid: &B::GRID,
            group_len: B::GROUP_LEN,
            x: &x,
            importance: of_large.as_deref().unwrap_or(&importance),
            parts: &mut parts,
        });
        for (parts, to) in parts.iter().zip(to.chunks_exact_mut(size_of::<B>())) {
            // SAFETY: a block consists of bytes, as many as there are here.
            unsafe { to.as_mut_ptr().cast::<B>().write_unaligned(B::assembled(parts)) };
        }
    }));
}

/// What a column counts at least, as a share of the mean: one that no text of the calibration used
/// would otherwise be lost.
const LEAST: f32 = 1e-4;

/// The importance of each column.
fn floored(importance: &[f32], cols: usize) -> Vec<f32> {
    let mean = importance.iter().sum::<f32>() / cols as f32;
    match mean > 0.0 {
        true => importance.iter().map(|x| x.max(mean * LEAST)).collect(),
        false => vec![1.0; cols],
    }
}

/// Types of at most so many levels emphasise large weights.
const FEW_LEVELS: f32 = 8.0;
/// The mean square of a row that is added to the squares of weights.
const SHARE_OF_MEAN: f32 = 0.25;

/// Importance times the root of a weight's square and a share of the row's mean square, as
/// llama.cpp has it but for the share; `None` in types of many levels. With four and eight levels
/// models lose less by it, with 16 some lose more (docs/log.md, 2026-12-01).
fn emphasised<B: Searched>(x: &[f32], importance: &[f32]) -> Option<Vec<f32>> {
    let [lowest, highest] = B::GRID.levels;
    if highest - lowest >= FEW_LEVELS {
        return None;
    }
    let mean = x.iter().map(|x| x * x).sum::<f32>() / x.len() as f32;
    let of = |(importance, x): (&f32, &f32)| importance * (SHARE_OF_MEAN * mean + x * x).sqrt();
    Some(importance.iter().zip(x).map(of).collect())
}

/// The blocks of a row.
struct FitRow<'a> {
    grid: &'a Grid,
    group_len: usize,
    x: &'a [f32],
    importance: &'a [f32],
    parts: &'a mut [Parts],
}

impl Kernel for FitRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        match (self.grid.scales.is_some(), self.group_len, self.grid.table.is_some()) {
            (true, 16, false) => self.with::<16, 16, false>(),
            (true, _, false) => self.with::<8, GROUP, false>(),
            (true, _, true) => self.with::<8, GROUP, true>(),
            (false, _, false) => self.with::<16, GROUP, false>(),
            (false, _, true) => self.with::<16, GROUP, true>(),
        }
    }
}

impl FitRow<'_> {
    #[inline(always)]
    fn with<const LANES: usize, const LEN: usize, const TABLE: bool>(self) {
        let Self { grid, x, importance, parts, .. } = self;
        let is_shared = grid.scales.is_some();
        let chunks = x.chunks(LANES * LEN).zip(importance.chunks(LANES * LEN));
        let blocks = parts.chunks_mut(if is_shared { 1 } else { LANES });
        for ((x, importance), parts) in chunks.zip(blocks) {
            let (x, importance) = (lanes::<LANES, LEN>(x), lanes(importance));
            let fitted = fit::<LANES, LEN, TABLE>(grid, &x, &importance);
            for (i, parts) in parts.iter_mut().enumerate() {
                let first = if is_shared { 0 } else { i };
                fitted.write(grid, first, is_shared, parts);
            }
        }
    }
}

/// Groups as lanes; what is missing is 0, and not important.
#[inline(always)]
fn lanes<const LANES: usize, const LEN: usize>(x: &[f32]) -> Lanes<LANES, LEN> {
    let mut lanes = [[0.0; LANES]; LEN];
    for (lane, group) in x.chunks_exact(LEN).enumerate() {
        for (to, x) in lanes.iter_mut().zip(group) {
            to[lane] = *x;
        }
    }
    lanes
}

impl<const LANES: usize, const LEN: usize> Fitted<LANES, LEN> {
    /// The numbers of the block, or of the one that lane `first` is.
    #[inline(always)]
    fn write(&self, grid: &Grid, first: usize, is_shared: bool, parts: &mut Parts) {
        let lanes = if is_shared { LANES } else { 1 };
        match is_shared {
            true => {
                [parts.scale, parts.offset] = self.shared;
                for lane in 0..LANES {
                    parts.scales[lane] = self.scales[lane] as i32;
                    parts.offsets[lane] = self.offsets[lane] as i32;
                }
            }
            false => (parts.scale, parts.offset) = (self.scales[first], self.offsets[first]),
        }
        for lane in 0..lanes {
            for (i, levels) in self.levels.iter().enumerate() {
                let level = levels[first + lane];
                parts.codes[lane * LEN + i] = match grid.table {
                    None => (level - grid.levels[0]) as u8,
                    Some(table) => {
                        let is_level = |of: &i8| f32::from(*of) == level;
                        table.iter().position(is_level).unwrap_or(0) as u8
                    }
                };
            }
        }
    }
}
