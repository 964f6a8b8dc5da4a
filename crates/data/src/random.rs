//! Philox4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy
//! as 1, 2, 3" (SC 2011), and the shuffle made from it.
//!
//! A number depends on key and counter alone, so any epoch's order can be had without the ones
//! before it. Not for secrets.

/// One block of Philox4x32 with ten rounds.
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    const M: [u64; 2] = [0xD251_1F53, 0xCD9E_8D57];
    const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
    let (mut c, mut k) = (counter, key);
    for _ in 0..10 {
        let p0 = M[0] * u64::from(c[0]);
        let p1 = M[1] * u64::from(c[2]);
        let high = [(p1 >> 32) as u32, (p0 >> 32) as u32];
        c = [high[0] ^ c[1] ^ k[0], p1 as u32, high[1] ^ c[3] ^ k[1], p0 as u32];
        k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
    }
    c
}

/// A stream of numbers for one purpose (`domain`) in one epoch of one seed.
pub struct Stream {
    key: [u32; 2],
    domain: u32,
    epoch: u32,
    /// Index of the next 64-bit number; two of them come from each block.
    next: u64,
}

impl Stream {
    /// Streams of different domains or epochs share no numbers.
    pub fn new(seed: u64, epoch: u64, domain: u16) -> Self {
        // The counter's last two words hold domain and epoch; 2^48 epochs are enough.
        let domain = (u32::from(domain) << 16) | ((epoch >> 32) as u32 & 0xffff);
        Self { key: [seed as u32, (seed >> 32) as u32], domain, epoch: epoch as u32, next: 0 }
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        let block = self.next / 2;
        let c = [block as u32, (block >> 32) as u32, self.epoch, self.domain];
        let out = philox4x32(c, self.key);
        let half = 2 * (self.next % 2) as usize;
        self.next += 1;
        u64::from(out[half]) | (u64::from(out[half + 1]) << 32)
    }

    /// A number below `bound`, by multiply and shift; its bias is at most `bound` / 2^64.
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next_u64()) * bound as u128) >> 64) as usize
    }

    /// Fisher-Yates, from the end.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

#[cfg(test)]
mod tests;
