//! An adapter of a quantised model can be shipped in two ways: beside the model, whose file stays
//! as it is, or merged into it, which is then quantised again. Held-out text tells which is better.

use super::super::Opened;
use super::super::export::is_adapted;
use hone_compress::Window;
use hone_data::IGNORE;
use hone_eval::statistics::{Estimate, Group, mean};
use hone_model::{Model, Pass, divergences};
use hone_tensor::{Compute, DeviceError};
use serde::{Deserialize, Serialize};

/// What was measured of both ways, on the same tokens.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(in super::super) struct Ways {
    /// Mean nats per token of the model with its adapter.
    pub(in super::super) loss: f64,
    /// Of the file that was written.
    pub(in super::super) loss_merged: f64,
    /// How much more the file has, and the 95 % interval of that, if there is text enough.
    pub(super) difference: f64,
    pub(super) interval: Option<[f64; 2]>,
}

impl Ways {
    /// Measures the model that is open, with its adapter, and what was written of it; `None` if it
    /// has no adapter or is not quantised, or there is no text that was held out.
    pub(super) fn measure(
        opened: &Opened,
        held_out: &[Window],
        written: &Model,
    ) -> Result<Option<Self>, DeviceError> {
        let (device, model) = (&opened.device, &opened.model);
        if !is_adapted(model) || super::packed_in(model).is_none() || held_out.is_empty() {
            return Ok(None);
        }
        let passes = [model, written].map(|model| Pass { device, model, compute: Compute::F32 });
        let (mut losses, mut differences) = ([Group::default(); 2], Vec::new());
        for window in held_out {
            let next =
                |row: &Vec<u32>| row[1..].iter().copied().chain([IGNORE]).collect::<Vec<_>>();
            let labels = window.rows.iter().flat_map(next).collect::<Vec<_>>();
            let batch = window.labelled(&model.decoder.config, &labels);
            let found = device.reusing_memory(|| divergences(passes, &batch))?;
            for range in &batch.target_ranges {
                let mut of_row = Group::default();
                for at in &found[range.clone()] {
                    let [own, merged] = at.log_probs;
                    losses[0].add(-own);
                    losses[1].add(-merged);
                    of_row.add(own - merged);
                }
                differences.push(of_row);
            }
        }
        let [loss, loss_merged] = losses.map(|group| mean(&[group]).value);
        let Estimate { value: difference, interval, .. } = mean(&differences);
        Ok(Some(Self { loss, loss_merged, difference, interval }))
    }

    /// Which way is better, where the interval says so.
    pub(super) fn better(&self) -> Option<&'static str> {
        match self.interval? {
            [low, _] if low > 0.0 => Some("adapter"),
            [_, high] if high < 0.0 => Some("merged"),
            _ => None,
        }
    }
}
