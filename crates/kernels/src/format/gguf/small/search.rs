//! Blocks whose scale, and least weight, are searched for.

use super::pack::{fifth_bits, halves};
use super::{Q4_0Block, Q4_1Block, Q5_0Block, Q5_1Block};
use crate::format::gguf::encode::{MAX_WEIGHTS, Parts, Searched};
use crate::format::gguf::fit::{Grid, Offsets};
use crate::format::gguf::{GROUP, half, to_half};

const fn grid(levels: [f32; 2], offsets: Offsets) -> Grid {
    Grid { levels, table: None, scales: None, offsets }
}

fn codes(parts: &Parts) -> &[u8; GROUP] {
    &parts.codes.as_chunks().0[0]
}

/// Codes of a block's weights, with what `fifth` gives above the four bits of each.
pub(in crate::format::gguf) fn codes_of(
    halves: &[u8; GROUP / 2],
    fifth: impl Fn(usize) -> u8,
) -> [u8; MAX_WEIGHTS] {
    let mut codes = [0; MAX_WEIGHTS];
    for (i, code) in codes[..GROUP].iter_mut().enumerate() {
        *code = halves[i % 16] >> (4 * (i / 16)) & 15 | fifth(i) << 4;
    }
    codes
}

fn fifth_bit(bits: [u8; 4], i: usize) -> u8 {
    (u32::from_le_bytes(bits) >> i & 1) as u8
}

impl Searched for Q5_1Block {
    const GRID: Grid = grid([0.0, 31.0], Offsets::Own);
    const GROUP_LEN: usize = GROUP;

    fn assembled(parts: &Parts) -> Self {
        let (scale, least) = (to_half(parts.scale), to_half(-parts.offset));
        let codes = codes(parts);
        Self { scale, least, fifth_bits: fifth_bits(codes), halves: halves(codes) }
    }

    fn parts(&self) -> Parts {
        Parts {
            scale: half(self.scale),
            offset: -half(self.least),
            codes: codes_of(&self.halves, |i| fifth_bit(self.fifth_bits, i)),
            ..Parts::ZERO
        }
    }
}

impl Searched for Q5_0Block {
    const GRID: Grid = grid([-16.0, 15.0], Offsets::None);
    const GROUP_LEN: usize = GROUP;

    fn assembled(parts: &Parts) -> Self {
        let codes = codes(parts);
        let scale = to_half(parts.scale);
        Self { scale, fifth_bits: fifth_bits(codes), halves: halves(codes) }
    }

    fn parts(&self) -> Parts {
        Parts {
            scale: half(self.scale),
            codes: codes_of(&self.halves, |i| fifth_bit(self.fifth_bits, i)),
            ..Parts::ZERO
        }
    }
}

impl Searched for Q4_1Block {
    const GRID: Grid = grid([0.0, 15.0], Offsets::Own);
    const GROUP_LEN: usize = GROUP;

    fn assembled(parts: &Parts) -> Self {
        let (scale, least) = (to_half(parts.scale), to_half(-parts.offset));
        Self { scale, least, halves: halves(codes(parts)) }
    }

    fn parts(&self) -> Parts {
        Parts {
            scale: half(self.scale),
            offset: -half(self.least),
            codes: codes_of(&self.halves, |_| 0),
            ..Parts::ZERO
        }
    }
}

impl Searched for Q4_0Block {
    const GRID: Grid = grid([-8.0, 7.0], Offsets::None);
    const GROUP_LEN: usize = GROUP;

    fn assembled(parts: &Parts) -> Self {
        Self { scale: to_half(parts.scale), halves: halves(codes(parts)) }
    }

    fn parts(&self) -> Parts {
        Parts { scale: half(self.scale), codes: codes_of(&self.halves, |_| 0), ..Parts::ZERO }
    }
}
