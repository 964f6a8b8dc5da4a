//! Learning rate by step, as `get_*_schedule_with_warmup` of transformers.

use crate::run_file::ScheduleSection;
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
            * match self.kind {
                ScheduleSection::Constant => 1.0,
                ScheduleSection::Linear => 1.0 - progress,
                ScheduleSection::Cosine => 0.5 * (1.0 + (PI * progress).cos()),
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warms_up_and_comes_down() {
        let of = |kind: &ScheduleSection| Schedule {
            kind: kind.clone(),
            peak: 2.0,
            warmup_steps: 4,
            num_steps: 12,
        };
        for kind in &[ScheduleSection::Constant, ScheduleSection::Linear, ScheduleSection::Cosine] {
            let rates: Vec<f64> = (0..5).map(|s| of(kind).learning_rate(s)).collect();
            assert_eq!(rates, [0.0, 0.5, 1.0, 1.5, 2.0]);
        }
        assert_eq!(of(&ScheduleSection::Constant).learning_rate(11), 2.0);
        assert_eq!(of(&ScheduleSection::Linear).learning_rate(8), 1.0);
        assert!((of(&ScheduleSection::Cosine).learning_rate(8) - 1.0).abs() < 1e-12);
        assert!((of(&ScheduleSection::Linear).learning_rate(11) - 0.25).abs() < 1e-12);
    }

    #[test]
    fn no_warmup_starts_at_the_peak() {
        let schedule =
            Schedule { kind: ScheduleSection::Cosine, peak: 1.0, warmup_steps: 0, num_steps: 3 };
        assert_eq!(schedule.learning_rate(0), 1.0);
    }
}
