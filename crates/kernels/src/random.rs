//! Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy
//! as 1, 2, 3", 2011).
//!
//! A value is a function of its key and its position, so it can be drawn again (recomputation),
//! in any order (threads) and after a restart, and is the same each time.

/// A family of random numbers; each `stream` of a `seed` is independent of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Philox {
    key: [u32; 2],
    stream: u64,
    /// Offset added to positions.
    first: u64,
}

impl Philox {
    /// The numbers of `stream` under `seed`.
    pub fn new(seed: u64, stream: u64) -> Self {
        Self { key: [seed as u32, (seed >> 32) as u32], stream, first: 0 }
    }

    /// The numbers for an adapter's dropout in a micro-batch of a step. They do not overlap as long
    /// as positions are below 2^40, and adapters and micro-batches below 2^28: the low 16 bits of
    /// both are part of the stream, the rest are above the position.
    pub fn for_dropout(seed: u64, step: u64, micro_batch: u32, adapter: u32) -> Self {
        assert!(micro_batch < 1 << 28 && adapter < 1 << 28, "streams would overlap");
        let low = u64::from(micro_batch & 0xffff) << 16 | u64::from(adapter & 0xffff);
        let high = u64::from(micro_batch >> 16) << 12 | u64::from(adapter >> 16);
        Self { first: high << 40, ..Self::new(seed, step << 32 | low) }
    }

    /// Key, stream and offset, in the order in which CUDA kernels read them.
    pub(crate) fn parts(&self) -> ([u32; 2], u64, u64) {
        (self.key, self.stream, self.first)
    }

    /// Four random words at `position`.
    #[inline(always)]
    pub fn words(&self, position: u64) -> [u32; 4] {
        self.words_at([position]).map(|[word]| word)
    }

    /// The four words at each of the positions.
    #[inline(always)]
    fn words_at<const N: usize>(&self, positions: [u64; N]) -> [[u32; N]; 4] {
        let positions = positions.map(|position| self.first + position);
        let counters = [
            positions.map(|position| position as u32),
            positions.map(|position| (position >> 32) as u32),
            [self.stream as u32; N],
            [(self.stream >> 32) as u32; N],
        ];
        philox4x32_10(counters, self.key)
    }

    /// Fills `words` with the words of consecutive positions from `first` on, in lanes, which the
    /// compiler vectorises. Words beyond the last multiple of 64 are left unchanged.
    #[inline(always)]
    pub(crate) fn fill_words(&self, first: u64, words: &mut [u32]) {
        for (block, words) in words.chunks_exact_mut(4 * LANES).enumerate() {
            let at = |lane| first + (block * LANES + lane) as u64;
            let counters = self.words_at::<LANES>(std::array::from_fn(at));
            for (lane, words) in words.chunks_exact_mut(4).enumerate() {
                for (word, counter) in words.iter_mut().zip(&counters) {
                    *word = counter[lane];
                }
            }
        }
    }

    /// A number in `[0, 1)` at `position`, a multiple of 2^-24.
    #[inline(always)]
    pub fn uniform(&self, position: u64) -> f32 {
        unit(self.words(position / 4)[(position % 4) as usize])
    }

    /// A standard normal number at `position` (Box–Muller).
    pub fn normal(&self, position: u64) -> f32 {
        let words = self.words(position);
        let unit = |word: u32| (f64::from(word) + 0.5) / 4_294_967_296.0;
        let radius = (-2.0 * unit(words[0]).ln()).sqrt();
        (radius * (std::f64::consts::TAU * unit(words[1])).cos()) as f32
    }
}

/// Positions computed at a time.
const LANES: usize = 16;

/// A word as a number in `[0, 1)`, a multiple of 2^-24.
#[inline(always)]
pub(crate) fn unit(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / 16_777_216.0)
}

/// Encrypts one counter per lane.
#[inline(always)]
fn philox4x32_10<const N: usize>(mut counters: [[u32; N]; 4], mut key: [u32; 2]) -> [[u32; N]; 4] {
    for _ in 0..10 {
        let [a, b, c, d] = counters;
        for lane in 0..N {
            let low = u64::from(a[lane]) * 0xD251_1F53;
            let high = u64::from(c[lane]) * 0xCD9E_8D57;
            counters[0][lane] = (high >> 32) as u32 ^ b[lane] ^ key[0];
            counters[1][lane] = high as u32;
            counters[2][lane] = (low >> 32) as u32 ^ d[lane] ^ key[1];
            counters[3][lane] = low as u32;
        }
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counters
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers published with Random123.
    #[test]
    fn known_answers() {
        assert_eq!(
            philox4x32_10([[0]; 4], [0; 2]).as_flattened(),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            philox4x32_10([[u32::MAX]; 4], [u32::MAX; 2]).as_flattened(),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
    }

    /// Including numbers above 65,535; streams of numbers below must stay as in earlier versions.
    #[test]
    fn dropout_of_different_adapters_and_micro_batches_does_not_overlap() {
        let numbers = [0, 1, 0xffff, 0x1_0000, 0x1_0001, 0xfff_ffff];
        let pairs = numbers.iter().flat_map(|&micro| numbers.map(|adapter| (micro, adapter)));
        let mut found = std::collections::HashSet::new();
        for (micro_batch, adapter) in pairs {
            let random = Philox::for_dropout(3, 5, micro_batch, adapter);
            assert!(found.insert(random.words(7)), "{micro_batch}, {adapter}");
        }
        let before = Philox::new(3, 5 << 32 | 9 << 16 | 4);
        assert_eq!(Philox::for_dropout(3, 5, 9, 4), before);
    }

    #[test]
    fn uniform_and_normal_have_their_moments() {
        let random = Philox::new(7, 3);
        let n = 40_000;
        let mean = |f: &dyn Fn(u64) -> f64| (0..n).map(f).sum::<f64>() / n as f64;
        assert!((mean(&|i| f64::from(random.uniform(i))) - 0.5).abs() < 0.01);
        assert!(mean(&|i| f64::from(random.normal(i))).abs() < 0.02);
        assert!((mean(&|i| f64::from(random.normal(i)).powi(2)) - 1.0).abs() < 0.03);
    }
}
