//! Learning rate by step, as `get_*_schedule_with_warmup` of transformers.

use crate::run_file::{CosineSection, ScheduleSection};
use std::f64::consts::PI;

/// The learning rate's course.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// Course after the warm-up.
    pub kind: ScheduleSection,
    /// Highest learning rate.
    pub peak: f64,
    /// Steps of linear growth from zero.
    pub warmup_steps: u64,
    /// Steps in all.
    pub num_steps: u64,
}

impl Schedule {
    /// The learning rate of step `step`, from 0.
    pub fn learning_rate(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.peak * step as f64 / self.warmup_steps as f64;
        }
        let rest = self.num_steps.saturating_sub(self.warmup_steps).max(1);
        let progress = (step - self.warmup_steps) as f64 / rest as f64;
        self.peak
            * match &self.kind {
                ScheduleSection::Constant => 1.0,
                ScheduleSection::Linear => 1.0 - progress,
                ScheduleSection::Cosine(CosineSection { min_ratio }) => {
                    min_ratio + (1.0 - min_ratio) * 0.5 * (1.0 + (PI * progress).cos())
                }
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cosine(min_ratio: f64) -> ScheduleSection {
        ScheduleSection::Cosine(CosineSection { min_ratio })
    }

    #[test]
    fn warms_up_and_comes_down() {
        let of = |kind: &ScheduleSection| Schedule {
            kind: kind.clone(),
            peak: 2.0,
            warmup_steps: 4,
            num_steps: 12,
        };
        for kind in &[ScheduleSection::Constant, ScheduleSection::Linear, cosine(0.0)] {
            let rates: Vec<f64> = (0..5).map(|s| of(kind).learning_rate(s)).collect();
            assert_eq!(rates, [0.0, 0.5, 1.0, 1.5, 2.0]);
        }
        assert_eq!(of(&ScheduleSection::Constant).learning_rate(11), 2.0);
        assert_eq!(of(&ScheduleSection::Linear).learning_rate(8), 1.0);
        assert!((of(&cosine(0.0)).learning_rate(8) - 1.0).abs() < 1e-12);
        assert!((of(&ScheduleSection::Linear).learning_rate(11) - 0.25).abs() < 1e-12);
    }

    #[test]
    fn no_warmup_starts_at_the_peak() {
        let schedule = Schedule { kind: cosine(0.0), peak: 1.0, warmup_steps: 0, num_steps: 3 };
        assert_eq!(schedule.learning_rate(0), 1.0);
    }
    /// As `cosine_with_min_lr` of transformers.
    #[test]
    fn a_cosine_may_end_above_zero() {
        let of = |min_ratio| Schedule {
            kind: cosine(min_ratio),
            peak: 2.0,
            warmup_steps: 2,
            num_steps: 10,
        };
        for (step, rate) in [(1, 1.0), (2, 2.0), (6, 1.1), (10, 0.2)] {
            assert!((of(0.1).learning_rate(step) - rate).abs() < 1e-12, "step {step}");
        }
        assert_eq!(of(1.0).learning_rate(9), 2.0);
    }
}
