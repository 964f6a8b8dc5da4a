//! How long a run takes, by what it does.

use crate::setup::Setup;
use serde::{Deserialize, Serialize};

/// Seconds by use.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TimeUse {
    /// All optimizer steps; the last of an epoch is often a short one.
    pub training_seconds: f64,
    /// Evaluations during the run, the first and the last included.
    pub num_evaluations: u64,
    /// All of them.
    pub evaluation_seconds: f64,
    /// Answering the samples, before and after, with as many tokens as they may have.
    pub sample_seconds: f64,
}

impl TimeUse {
    /// All of it.
    pub fn total_seconds(&self) -> f64 {
        self.training_seconds + self.evaluation_seconds + self.sample_seconds
    }
}

/// Seconds of all steps, where one of so many units takes `seconds`. Every epoch is taken to have
/// as many units as the first; they differ a little, as each is packed anew.
pub(super) fn training_seconds(setup: &Setup, seconds: impl Fn(usize) -> f64) -> f64 {
    let (of_epoch, of_step) = (setup.units_in_epoch, setup.units_per_step);
    let num_short = match of_epoch % of_step {
        0 => 0,
        _ => setup.num_steps / of_epoch.div_ceil(of_step) as u64,
    };
    let num_full = setup.num_steps - num_short;
    num_full as f64 * seconds(of_step) + num_short as f64 * seconds(of_epoch % of_step)
}

/// Before the first step, every so many, and after the last.
pub(super) fn num_evaluations(setup: &Setup) -> u64 {
    let within = match setup.run.train.eval_every_steps {
        0 => 1,
        every => setup.num_steps.div_ceil(every),
    };
    if setup.eval.is_some() { within + 1 } else { 0 }
}
