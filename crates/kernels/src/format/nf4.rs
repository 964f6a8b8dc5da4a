//! NF4 with double quantisation (Dettmers et al., "QLoRA", 2023): four bits per weight, an 8-bit
//! absmax per block of 64 weights (less the mean of all), and an `f32` scale per 256 of these.
//!
//! The blocks are those of bitsandbytes' `quantize_nf4(…, compress_statistics=True)`, along the
//! whole matrix and not along rows. Layout: the 256 levels of an absmax, the mean, an `f32` per 256
//! blocks, one byte per block, the weights, two per byte, the first in the upper half.
//!
//! Files may have an `f32` absmax per block instead (`compress_statistics=False`), which is only
//! read: these, then the weights.

use super::{Packed, WeightFormat};
use crate::cpu::{Cpu, Isa, Kernel, Split};
use crate::cuda::arg::Arg;
use crate::cuda::source::Source;
use crate::element::{Address, Element, Floats};
use crate::view::{View, with_elements};
use std::sync::OnceLock;

pub(super) static FORMAT: WeightFormat = WeightFormat {
    name: "nf4",
    block: 1,
    // As with bitsandbytes, embedding and head stay as in the file.
    for_tables: false,
    num_bytes: |[rows, cols]| Sizes::of(rows * cols).end(),
    unpack,
    pack: Some(pack),
    search: None,
    coding: None,
    tiles: None,
    source: &SOURCE,
    parameter,
};

/// With a magnitude of each block as it is.
pub(super) static F32: WeightFormat = WeightFormat {
    name: "nf4_f32",
    num_bytes: |[rows, cols]| 4 * num_blocks(rows * cols) + (rows * cols).div_ceil(2),
    unpack: unpack_f32,
    pack: None,
    source: &SOURCE_F32,
    ..FORMAT
};

static SOURCE_F32: Source =
    super::source!("nf4_f32", include_str!("nf4.cuh"), "typedef Nf4F32 Weights;\n");

static SOURCE: Source = super::source!("nf4", include_str!("nf4.cuh"), "typedef Nf4 Weights;\n");

/// Weights per block.
const BLOCK: usize = 64;
/// Blocks that share a scale.
const BLOCKS: usize = 256;

/// Offsets of the mean and of the scales, which follow the levels of magnitudes.
const MEAN: usize = 4 * 256;
const SCALES: usize = MEAN + 4;

/// Sixteen quantiles of the normal distribution, scaled to ±1.
pub(super) const LEVELS: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The levels of magnitudes ("8-Bit Approximations for Parallelism in Deep Learning", 2015): seven
/// decades, the larger ones divided more finely.
fn dynamic_levels() -> Vec<f32> {
    let mut levels = vec![0.0, 1.0];
    let decades = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0];
    for (decade, size) in decades.into_iter().enumerate() {
        let parts = 1 << decade;
        let boundary = |i: usize| linspace(parts + 1, i);
        for i in 0..parts {
            let level = size * ((boundary(i) + boundary(i + 1)) / 2.0);
            levels.extend([level, -level]);
        }
    }
    levels.sort_by(f32::total_cmp);
    levels
}

/// Element `i` of `torch.linspace(0.1, 1, num)`, which PyTorch computes from the nearer end.
fn linspace(num: usize, i: usize) -> f32 {
    let step = (1.0 - 0.1f32) / (num - 1) as f32;
    match i < num / 2 {
        true => step.mul_add(i as f32, 0.1),
        false => (-step).mul_add((num - 1 - i) as f32, 1.0),
    }
}

/// Offsets of the parts.
#[derive(Clone, Copy)]
struct Sizes {
    blocks: usize,
    magnitudes: usize,
    weights: usize,
    num_weights: usize,
}

impl Sizes {
    fn of(num_weights: usize) -> Self {
        let blocks = num_blocks(num_weights);
        let magnitudes = SCALES + 4 * blocks.div_ceil(BLOCKS);
        Self { blocks, magnitudes, weights: magnitudes + blocks, num_weights }
    }

    fn end(&self) -> usize {
        self.weights + self.num_weights.div_ceil(2)
    }
}

/// How many blocks there are, which have an absmax each.
pub(super) fn num_blocks(num_weights: usize) -> usize {
    num_weights.div_ceil(BLOCK)
}

/// How many bytes of absmax there are, and how many scales of these.
pub(super) fn num_magnitudes_and_scales(num_weights: usize) -> [usize; 2] {
    let blocks = Sizes::of(num_weights).blocks;
    [blocks, blocks.div_ceil(BLOCKS)]
}

fn word(bytes: &[u8], at: usize) -> f32 {
    f32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// The dequantised absmax of a block: product and sum are rounded apart.
#[inline(always)]
fn magnitude(bytes: &[u8], sizes: &Sizes, block: usize) -> f32 {
    let level = word(bytes, 4 * usize::from(bytes[sizes.magnitudes + block]));
    level * word(bytes, SCALES + 4 * (block / BLOCKS)) + word(bytes, MEAN)
}

/// Blocks of NF4, for packing panels straight from them.
#[derive(Clone, Copy)]
pub(crate) struct Nf4Blocks<'a> {
    bytes: &'a [u8],
    sizes: Sizes,
}

impl<'a> Nf4Blocks<'a> {
    /// What the half of a byte stands for.
    pub const LEVELS: [f32; 16] = LEVELS;

    /// The blocks of a matrix; `None` if it has another format.
    pub fn of(packed: Packed<'a>) -> Option<Self> {
        let blocks = || Self { bytes: packed.bytes(), sizes: Sizes::of(packed.len()) };
        std::ptr::eq(packed.format(), &FORMAT).then(blocks)
    }

    /// Number of weights.
    pub fn len(&self) -> usize {
        self.sizes.num_weights
    }

    /// Two weights in each byte.
    pub fn pairs(&self) -> &'a [u8] {
        &self.bytes[self.sizes.weights..]
    }

    /// The absmax that a weight is multiplied with.
    #[inline(always)]
    pub fn magnitude(&self, index: usize) -> f32 {
        magnitude(self.bytes, &self.sizes, index / BLOCK)
    }
}

/// The levels of both weights in a byte.
static PAIRS: [[f32; 2]; 256] = {
    let mut pairs = [[0.0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        pairs[byte] = [LEVELS[byte >> 4], LEVELS[byte & 15]];
        byte += 1;
    }
    pairs
};

fn unpack(weights: &Packed<'_>, first: usize, out: &mut [f32]) {
    let (bytes, sizes) = (weights.bytes(), Sizes::of(weights.len()));
    let magnitude = |block| magnitude(bytes, &sizes, block);
    Isa::detect().run(Unpack { pairs: &bytes[sizes.weights..], magnitude, first, out });
}

fn unpack_f32(weights: &Packed<'_>, first: usize, out: &mut [f32]) {
    let (magnitudes, pairs) = weights.bytes().split_at(4 * num_blocks(weights.len()));
    let magnitude = |block| word(magnitudes, 4 * block);
    Isa::detect().run(Unpack { pairs, magnitude, first, out });
}

struct Unpack<'a, M> {
    /// Of the whole matrix.
    pairs: &'a [u8],
    /// The absmax of a block.
    magnitude: M,
    first: usize,
    out: &'a mut [f32],
}

impl<M: Fn(usize) -> f32> Kernel for Unpack<'_, M> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { pairs, magnitude, first, out } = self;
        let (mut at, mut left) = (first, out);
        while !left.is_empty() {
            let len = (BLOCK - at % BLOCK).min(left.len());
            let (block, rest) = left.split_at_mut(len);
            let mut levels = [[0.0; 2]; BLOCK / 2];
            let pairs = &pairs[at / 2..(at + len).div_ceil(2)];
            levels.iter_mut().zip(pairs).for_each(|(to, &byte)| *to = PAIRS[usize::from(byte)]);
            let magnitude = magnitude(at / BLOCK);
            for (out, level) in block.iter_mut().zip(&levels.as_flattened()[at % 2..]) {
                *out = level * magnitude;
            }
            (at, left) = (at + len, rest);
        }
    }
}

/// The index of the nearest of sorted levels; the lower one on ties, the last one for NaN.
fn nearest(levels: &[f32], x: f32) -> u8 {
    let bounds = |i: usize| (levels[i] + levels[i + 1]) / 2.0;
    let (mut low, mut high) = (0, levels.len() - 1);
    while low < high {
        let middle = (low + high) / 2;
        if x <= bounds(middle) { high = middle } else { low = middle + 1 }
    }
    low as u8
}

/// Between levels; what is on a bound belongs to the lower one.
const BOUNDS: [f32; LEVELS.len() - 1] = {
    let mut bounds = [0.0; LEVELS.len() - 1];
    let mut i = 0;
    while i < bounds.len() {
        bounds[i] = (LEVELS[i] + LEVELS[i + 1]) / 2.0;
        i += 1;
    }
    bounds
};

/// Packs a block in two weights per byte, and returns its absmax. To match bitsandbytes bit for
/// bit, whole blocks are multiplied by the inverse, and partial ones divided by an absmax that is
/// not zero.
struct PackBlock<'a, E> {
    x: &'a [E],
    to: &'a mut [u8],
}

impl<E: Element> Kernel for PackBlock<'_, E> {
    type Output = f32;

    #[inline(always)]
    fn run(self) -> f32 {
        const INFINITY: u32 = f32::INFINITY.to_bits();
        // What is missing of a block is zero, as in bitsandbytes' last byte.
        let mut values = [0.0; BLOCK];
        values.iter_mut().zip(self.x).for_each(|(value, x)| *value = x.to_f32());
        // Non-negative floats sort like their bits; NaN does not count.
        let magnitudes = values.iter().map(|x| x.to_bits() & 0x7fff_ffff);
        let magnitudes = magnitudes.map(|bits| if bits > INFINITY { 0 } else { bits });
        let absmax = f32::from_bits(magnitudes.fold(0, |a, b| if b > a { b } else { a }));
        let divisor = absmax.max(1e-38);
        let is_whole = self.x.len() == BLOCK;
        if is_whole {
            let inverse = 1.0 / divisor;
            values.iter_mut().for_each(|x| *x *= inverse);
        } else {
            values.iter_mut().for_each(|x| *x /= divisor);
        }
        // A search would mispredict each of its branches; NaN has the last level.
        let mut codes = [BOUNDS.len() as u32; BLOCK];
        for bound in BOUNDS {
            let counted = codes.iter_mut().zip(&values);
            counted.for_each(|(code, &x)| *code -= u32::from(x <= bound));
        }
        for (to, [upper, lower]) in self.to.iter_mut().zip(codes.as_chunks().0) {
            *to = (upper << 4 | lower) as u8;
        }
        if is_whole { absmax } else { divisor }
    }
}

/// Steps from -1 to 1 in which bitsandbytes looks up the nearest level on the CPU.
const STEPS: f32 = 65_535.0;

/// The nearest level of each step.
fn nearest_of_steps() -> &'static [u8] {
    static NEAREST: OnceLock<Vec<u8>> = OnceLock::new();
    NEAREST.get_or_init(|| {
        let levels = dynamic_levels();
        (0..=STEPS as u32).map(|i| nearest(&levels, -1.0 + 2.0 * i as f32 / STEPS)).collect()
    })
}

fn pack(cpu: &Cpu, weights: Floats<'_>, _: usize, bytes: &mut [u8]) {
    let weights = View::from(weights);
    let sizes = Sizes::of(weights.len());
    let mut magnitudes = vec![0.0; sizes.blocks];
    let pairs = Split::new(&mut bytes[sizes.weights..]);
    with_elements!(weights, weights => cpu.rows(&mut magnitudes, 1, BLOCK, |block, magnitude| {
        let first = block * BLOCK;
        let x = &weights[first..][..BLOCK.min(sizes.num_weights - first)];
        // SAFETY: each block belongs to one task, and its bytes to no other block.
        let to = unsafe { pairs.slice(first / 2, x.len().div_ceil(2)) };
        magnitude[0] = cpu.isa.run(PackBlock { x, to });
    }));
    pack_magnitudes(&magnitudes, &sizes, bytes);
}

/// The sum of numbers in the order of PyTorch's `sum` on one thread, of which the mean's bits are:
/// eight lanes of each of four chains, in cascades of four levels ("SumKernel.cpp"). A sum of
/// 32,768 and more on several threads depends on their number there.
fn torch_sum(x: &[f32]) -> f32 {
    match x.len() {
        0..8 => cascade(&x.iter().map(|&x| [x]).collect::<Vec<_>>())[0],
        _ => {
            let (lanes, rest) = x.as_chunks::<8>();
            let rest = rest.iter().fold(0.0, |sum, x| sum + x);
            cascade(lanes).iter().fold(rest, |sum, x| sum + x)
        }
    }
}

/// [`torch_sum`] of each lane.
fn cascade<const LANES: usize>(x: &[[f32; LANES]]) -> [f32; LANES] {
    const CHAINS: usize = 4;
    const LEVELS: usize = 4;
    fn add<const LANES: usize>(sum: &mut [f32; LANES], x: &[f32; LANES]) {
        sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += x);
    }
    let (groups, rest) = x.as_chunks::<CHAINS>();
    // How many bits of the count of groups a level spans.
    let bits = (groups.len().max(2).next_power_of_two().ilog2() / LEVELS as u32).max(4);
    let mut sums = [[[0.0; LANES]; CHAINS]; LEVELS];
    for (i, group) in groups.iter().enumerate() {
        sums[0].iter_mut().zip(group).for_each(|(sum, x)| add(sum, x));
        let count = i + 1;
        let full = |level: usize| count.trailing_zeros() >= bits * level as u32;
        for level in (1..LEVELS).take_while(|&level| full(level)) {
            let below = std::mem::replace(&mut sums[level - 1], [[0.0; LANES]; CHAINS]);
            sums[level].iter_mut().zip(&below).for_each(|(sum, x)| add(sum, x));
        }
    }
    let [mut chains, above @ ..] = sums;
    for level in &above {
        chains.iter_mut().zip(level).for_each(|(sum, x)| add(sum, x));
    }
    rest.iter().for_each(|x| add(&mut chains[0], x));
    let [mut sum, others @ ..] = chains;
    others.iter().for_each(|x| add(&mut sum, x));
    sum
}

fn pack_magnitudes(magnitudes: &[f32], sizes: &Sizes, bytes: &mut [u8]) {
    let mean = torch_sum(magnitudes) / magnitudes.len().max(1) as f32;
    let levels = dynamic_levels();
    for (to, x) in bytes.chunks_exact_mut(4).zip(levels.iter().chain([&mean])) {
        to.copy_from_slice(&x.to_le_bytes());
    }
    let centred: Vec<f32> = magnitudes.iter().map(|x| x - mean).collect();
    let nearest = nearest_of_steps();
    for (group, centred) in centred.chunks(BLOCKS).enumerate() {
        let absmax = centred.iter().fold(0.0, |absmax: f32, x| absmax.max(x.abs()));
        bytes[SCALES + 4 * group..][..4].copy_from_slice(&absmax.to_le_bytes());
        let to = &mut bytes[sizes.magnitudes + group * BLOCKS..][..centred.len()];
        if absmax == 0.0 {
            to.fill(0);
            continue;
        }
        let inverse = 1.0 / absmax;
        for (to, x) in to.iter_mut().zip(centred) {
            let step = ((x * inverse).clamp(-1.0, 1.0) + 1.0) * 0.5 * STEPS + 0.5;
            *to = nearest[step as usize];
        }
    }
}

/// `Nf4` and `Nf4F32` in CUDA: address of the bytes and number of weights.
fn parameter(address: Address, [rows, cols]: [usize; 2]) -> Arg {
    Arg::pair(address, (rows * cols) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::tests::PackedMatrix;
    use crate::random::Philox;

    /// Against the bytes that bitsandbytes gives for the same numbers, and the weights that it has
    /// in them (`nf4.py`).
    #[test]
    fn blocks_are_those_of_bitsandbytes() {
        let golden = include_bytes!("nf4.golden");
        let mut at = 0;
        // Whole blocks, more blocks than share a scale, a partial block with a partial pair, fewer
        // blocks than PyTorch sums at a time, nothing but zeros.
        for (stream, len) in [(0, 128), (1, 64 * 300), (2, 64 * 9 + 21), (3, 130), (4, 70)] {
            let random = Philox::new(4, stream);
            // Blocks of different magnitude, and one block of zeros.
            let size = |i: u64| if i / 64 == 1 { 0.0 } else { 0.02 * (1 + i / 64 % 5) as f32 };
            let size = |i: u64| if stream == 4 { 0.0 } else { size(i) };
            let x: Vec<f32> = (0..len as u64).map(|i| random.uniform(i) * size(i)).collect();
            let held = PackedMatrix::new(&FORMAT, &x, len);
            let expected = &golden[at..at + held.bytes().len()];
            at += expected.len();
            assert!(held.bytes() == expected, "{len} weights");
            if len > 1000 {
                continue;
            }
            let values = &golden[at..at + 4 * len];
            at += values.len();
            assert!(le(&held) == values, "{len} weights");
        }
        let shape = [1, 64 * 9 + 21];
        let (bytes, values) = golden[at..].split_at((F32.num_bytes)(shape));
        assert!(le(&PackedMatrix::of_bytes(&F32, bytes, shape)) == values);
    }

    /// Unpacked weights in bytes.
    fn le(held: &PackedMatrix) -> Vec<u8> {
        held.to_vec_f32().iter().flat_map(|x| x.to_le_bytes()).collect()
    }
    /// What lies on a bound between levels, just below and just above it, and what is no number: in
    /// whole blocks and a partial one, of several tasks.
    #[test]
    fn codes_are_those_of_nearest_levels() {
        let around = |bound: f32| [bound.next_down(), bound, bound.next_up()];
        let others = [1.0, -1.0, 0.0, -0.0, f32::NAN];
        let some: Vec<f32> = BOUNDS.into_iter().flat_map(around).chain(others).collect();
        // Each block has a 1, so that nothing is scaled.
        let x: Vec<f32> = some.iter().copied().cycle().take(64 * 700 + some.len()).collect();
        let expected: Vec<u8> = x
            .as_chunks()
            .0
            .iter()
            .map(|[a, b]| nearest(&LEVELS, *a) << 4 | nearest(&LEVELS, *b))
            .collect();
        for isa in Isa::available() {
            let mut bytes = vec![0xff; Sizes::of(x.len()).end()];
            pack(&Cpu::with_isa(3, isa), Floats::F32(&x), x.len(), &mut bytes);
            assert!(bytes[Sizes::of(x.len()).weights..] == expected, "{isa:?}");
        }
    }
}
