//! Gradients in f16 within its range.

use hone_tensor::Compute;
use serde::{Deserialize, Serialize};

/// Steps without an overflow after which the factor is doubled.
const GROWTH_INTERVAL: u32 = 2000;

/// The greatest factor, and the first that is tried.
const MOST: u32 = 16;

/// A power of two that the loss's derivative is multiplied by, and gradients divided by again, so
/// that small ones do not vanish in f16 (Micikevicius et al., "Mixed Precision Training", 2018).
/// A step whose gradients overflow is done again with half of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LossScale {
    log2: u32,
    steps_without_overflow: u32,
}

impl LossScale {
    /// The first factor of a run that computes in `compute`: one, except in f16.
    pub fn of(compute: Compute) -> Self {
        let log2 = if compute == Compute::F16 { MOST } else { 0 };
        Self { log2, steps_without_overflow: 0 }
    }

    /// The factor.
    pub fn factor(self) -> f64 {
        f64::from(1 << self.log2)
    }

    /// After gradients that overflowed: whether there is a smaller factor to try.
    pub fn halve(&mut self) -> bool {
        let can = self.log2 > 0;
        *self = Self { log2: self.log2.saturating_sub(1), steps_without_overflow: 0 };
        can
    }

    /// After gradients without an overflow, in a run that computes in `compute`.
    pub fn update(&mut self, compute: Compute) {
        self.steps_without_overflow += 1;
        if self.steps_without_overflow >= GROWTH_INTERVAL {
            let most = Self::of(compute).log2;
            *self = Self { log2: (self.log2 + 1).min(most), steps_without_overflow: 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overflow_halves_and_a_quiet_interval_doubles() {
        let mut scale = LossScale::of(Compute::F16);
        assert_eq!(scale.factor(), 65536.0);
        assert!(scale.halve() && scale.halve());
        assert_eq!(scale.factor(), 16384.0);
        (1..GROWTH_INTERVAL).for_each(|_| scale.update(Compute::F16));
        assert_eq!(scale.factor(), 16384.0);
        scale.update(Compute::F16);
        assert_eq!(scale.factor(), 32768.0);
        (0..3 * GROWTH_INTERVAL).for_each(|_| scale.update(Compute::F16));
        assert_eq!(scale.factor(), 65536.0);
        assert_eq!((0..20).filter(|_| scale.halve()).count(), 16);
        assert_eq!(scale.factor(), 1.0);
    }

    #[test]
    fn other_types_need_none() {
        let mut scale = LossScale::of(Compute::Bf16);
        (0..3 * GROWTH_INTERVAL).for_each(|_| scale.update(Compute::Bf16));
        assert_eq!(scale.factor(), 1.0);
        assert!(!scale.halve());
    }
}
