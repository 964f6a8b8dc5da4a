//! Python's `random.Random`: the Mersenne Twister MT19937 (Matsumoto and Nishimura, 1998), seeded
//! by a whole number, with `sample` and what `choices` draws, so that examples and bootstraps are
//! those of lm-evaluation-harness.

const N: usize = 624;
const M: usize = 397;

/// The generator.
pub struct Random {
    state: Vec<u32>,
    index: usize,
}

impl Random {
    /// As `random.Random(seed)`.
    pub fn new(seed: u32) -> Self {
        let mut state = vec![0u32; N];
        state[0] = 19_650_218;
        for i in 1..N {
            let last = state[i - 1] ^ (state[i - 1] >> 30);
            state[i] = 1_812_433_253u32.wrapping_mul(last).wrapping_add(i as u32);
        }
        let mut i = 1;
        // The key has one word.
        for _ in 0..N {
            let last = state[i - 1] ^ (state[i - 1] >> 30);
            state[i] = (state[i] ^ last.wrapping_mul(1_664_525)).wrapping_add(seed);
            i += 1;
            if i >= N {
                state[0] = state[N - 1];
                i = 1;
            }
        }
        for _ in 0..N - 1 {
            let last = state[i - 1] ^ (state[i - 1] >> 30);
            state[i] = (state[i] ^ last.wrapping_mul(1_566_083_941)).wrapping_sub(i as u32);
            i += 1;
            if i >= N {
                state[0] = state[N - 1];
                i = 1;
            }
        }
        state[0] = 0x8000_0000;
        Self { state, index: N }
    }

    /// The next 32 bits.
    fn next(&mut self) -> u32 {
        if self.index == N {
            let mixed = |a: u32, b: u32| {
                let y = (a & 0x8000_0000) | (b & 0x7fff_ffff);
                (y >> 1) ^ (if y & 1 == 1 { 0x9908_b0df } else { 0 })
            };
            for i in 0..N {
                let next = mixed(self.state[i], self.state[(i + 1) % N]);
                self.state[i] = self.state[(i + M) % N] ^ next;
            }
            self.index = 0;
        }
        let mut y = self.state[self.index];
        self.index += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// A number from 0 to below 1, of 53 bits.
    pub fn uniform(&mut self) -> f64 {
        let (a, b) = (f64::from(self.next() >> 5), f64::from(self.next() >> 6));
        (a * 67_108_864.0 + b) / 9_007_199_254_740_992.0
    }

    /// A whole number below `n`, which is at least 1.
    fn below(&mut self, n: usize) -> usize {
        let bits = usize::BITS - n.leading_zeros();
        loop {
            // Documents are fewer than 2³².
            let drawn = (self.next() >> (32 - bits.clamp(1, 32))) as usize;
            if drawn < n {
                return drawn;
            }
        }
    }

    /// `k` different numbers below `n`, as `sample(range(n), k)` draws them; `k` is at most `n`.
    pub fn sample(&mut self, n: usize, k: usize) -> Vec<usize> {
        let mut set_size = 21.0;
        if k > 5 {
            set_size += 4f64.powf(((k * 3) as f64).log(4.0).ceil());
        }
        if n as f64 <= set_size {
            let mut pool: Vec<usize> = (0..n).collect();
            let draw = |i: usize| {
                let j = self.below(n - i);
                let chosen = pool[j];
                pool[j] = pool[n - i - 1];
                chosen
            };
            return (0..k).map(draw).collect();
        }
        let mut chosen = Vec::with_capacity(k);
        while chosen.len() < k {
            let drawn = self.below(n);
            if !chosen.contains(&drawn) {
                chosen.push(drawn);
            }
        }
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What CPython 3.11 draws.
    #[test]
    fn draws_are_those_of_python() {
        let mut random = Random::new(1234);
        assert_eq!(random.uniform(), 0.966_453_535_692_138_8);
        assert_eq!(random.uniform(), 0.440_732_599_175_352_7);
        let mut random = Random::new(1234);
        assert_eq!(random.sample(10, 3), [7, 1, 0]);
        assert_eq!(random.sample(1000, 5), [92, 932, 965, 961, 826]);
        assert_eq!(random.sample(100, 8), [74, 4, 85, 88, 10, 12, 98, 45]);
        assert_eq!(random.sample(7473, 6), [1939, 142, 252, 6461, 129, 2835]);
    }
}
