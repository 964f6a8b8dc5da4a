//! A model against another that it was made of: what was lost on the way, token by token.

use crate::statistics::{Estimate, Group, mean, quantile, share, sign_flips};
use hone_data::{Dataset, IGNORE, MicroBatch, Unit};
use hone_model::{Batch, Divergence, Pass, divergences};
use hone_tensor::DeviceError;
use serde::Serialize;
use sha2::{Digest, Sha256};

/// Packed rows to compare on.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// The rows.
    pub dataset: &'a Dataset,
    /// How they are packed.
    pub units: &'a [Unit],
    /// Slots of a batch, at least those of a unit.
    pub batch_tokens: usize,
    /// Units of a batch.
    pub units_per_batch: usize,
}

/// How far a model's predictions are from a reference's. Intervals, standard errors and the test of
/// flips take the tokens of a row as one observation; fewer than ten rows have no intervals.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Against {
    /// KL divergence of the model from the reference, in nats per target.
    pub kl: Spread,
    /// Share of targets at which both hold the same token for the most likely.
    pub same_top: Estimate,
    /// Mean nats per target: of the reference, of the model, and how much more the model has.
    pub loss: Losses,
    /// Targets that one holds for the most likely token and the other does not.
    pub flips: Flips,
    /// Targets compared.
    pub num_target_tokens: usize,
}

/// A distribution over targets.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Its mean.
    pub mean: f64,
    /// The mean's standard error.
    pub stderr: Option<f64>,
    /// The mean's 95 % interval.
    pub interval: Option<[f64; 2]>,
    /// Median.
    pub median: f64,
    /// What 99 % are not above.
    pub p99: f64,
    /// What 99.9 % are not above.
    pub p999: f64,
    /// Its largest value.
    pub max: f64,
}

/// Mean negative log-likelihoods per target, in nats.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Losses {
    /// Of the reference.
    pub reference: f64,
    /// Of the model.
    pub model: f64,
    /// The model's less the reference's, of the same tokens: surer than either.
    pub difference: Estimate,
}

/// Paired answers that are right with one model alone.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Flips {
    /// Right with the reference alone.
    pub lost: usize,
    /// Right with the model alone.
    pub gained: usize,
    /// How likely a sum of the rows' differences, gained less lost, at least as far from zero is if
    /// neither is better, so that each row's could as well have the other sign.
    pub p_value: f64,
}

impl Flips {
    /// Of rows of pairs, the reference's first, that are right or wrong.
    fn of(rows: impl Iterator<Item = Vec<[bool; 2]>>) -> Self {
        let (mut lost, mut gained, mut differences) = (0, 0, Vec::new());
        for hits in rows {
            let count = |of| hits.iter().filter(|hit| **hit == of).count();
            let [of_lost, of_gained] = [count([true, false]), count([false, true])];
            (lost, gained) = (lost + of_lost, gained + of_gained);
            differences.push(of_gained as i64 - of_lost as i64);
        }
        Self { lost, gained, p_value: sign_flips(&differences) }
    }
}

/// Compares `model` with `reference` on all targets of `rows`; `None` if a logit of either is not
/// finite. `done` is told of the rows of each batch.
///
/// # Errors
/// If a device failed.
pub fn against(
    [reference, model]: [Pass<'_>; 2],
    rows: Rows<'_>,
    done: &mut dyn FnMut(usize),
) -> Result<Option<Against>, DeviceError> {
    let config = &model.model.decoder.config;
    let mut found: Vec<Vec<Divergence>> = Vec::with_capacity(rows.dataset.len());
    for units in rows.units.chunks(rows.units_per_batch) {
        let packed = MicroBatch::assemble(rows.dataset, units, rows.batch_tokens);
        let MicroBatch { tokens, positions, cu_seqlens, targets, .. } = &packed;
        let batch = Batch::new(config, tokens, positions, cu_seqlens, targets, IGNORE);
        let of_batch = divergences([reference, model], &batch)?;
        if of_batch.iter().any(|of| !of.kl.is_finite()) {
            return Ok(None);
        }
        found.extend(batch.target_ranges.iter().map(|range| of_batch[range.clone()].to_vec()));
        done(packed.rows.len());
    }
    Ok(Some(summary(&found)))
}

/// Digest of the tokens of all rows and of which are targets: figures of other ones are not to be
/// compared.
pub fn digest(dataset: &Dataset) -> String {
    let mut digest = Sha256::new();
    for row in (0..dataset.len()).map(|i| dataset.row(i)) {
        digest.update((row.tokens.len() as u64).to_le_bytes());
        row.tokens.iter().for_each(|id| digest.update(id.to_le_bytes()));
        row.is_target.iter().for_each(|is| digest.update([u8::from(*is)]));
    }
    format!("{:x}", digest.finalize())
}

/// Of the targets of each row.
fn summary(rows: &[Vec<Divergence>]) -> Against {
    let each = || rows.iter().flatten();
    let groups = |value: fn(&Divergence) -> f64| -> Vec<Group> {
        let group = |row: &Vec<Divergence>| {
            let mut group = Group::default();
            row.iter().for_each(|of| group.add(value(of)));
            group
        };
        rows.iter().map(group).collect()
    };
    let grouped = |value| mean(&groups(value));
    let mut ascending: Vec<f64> = each().map(|of| of.kl).collect();
    ascending.sort_unstable_by(f64::total_cmp);
    let Estimate { value, stderr, interval } = grouped(|of| of.kl);
    let [median, p99, p999, max] = [0.5, 0.99, 0.999, 1.0].map(|q| quantile(&ascending, q));
    Against {
        kl: Spread { mean: value, stderr, interval, median, p99, p999, max },
        same_top: share(&groups(|of| f64::from(u8::from(of.top[0] == of.top[1])))),
        loss: Losses {
            reference: grouped(|of| -of.log_probs[0]).value,
            model: grouped(|of| -of.log_probs[1]).value,
            difference: grouped(|of| of.log_probs[0] - of.log_probs[1]),
        },
        flips: Flips::of(rows.iter().map(|row| row.iter().map(Divergence::hits).collect())),
        num_target_tokens: ascending.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two rows of unlike lengths, by hand.
    #[test]
    fn figures_are_per_target_and_their_errors_per_row() {
        let of =
            |kl, top: [u32; 2]| Divergence { kl, top, target: 1, log_probs: [-1.0, -1.0 - kl] };
        let rows = [vec![of(0.0, [1, 1]), of(0.1, [1, 2]), of(0.2, [2, 1])], vec![of(0.5, [3, 3])]];
        let found = summary(&rows);
        assert!((found.kl.mean - 0.2).abs() < 1e-12 && found.kl.max == 0.5);
        assert!((found.kl.median - 0.15).abs() < 1e-12);
        assert_eq!(found.same_top.value, 0.5);
        assert!((found.loss.reference - 1.0).abs() < 1e-12);
        assert!((found.loss.difference.value - 0.2).abs() < 1e-12);
        assert_eq!((found.flips.lost, found.flips.gained), (1, 1));
        assert_eq!(found.num_target_tokens, 4);
        // Row sums 0.3 of 3 and 0.5 of 1: residuals -0.3 and 0.3 about the mean.
        let expected = (2.0 * 0.09 * 2.0_f64).sqrt() / 4.0;
        assert!((found.kl.stderr.unwrap() - expected).abs() < 1e-12);
    }
    /// Of two rows, and of any whose tokens all agree, a bootstrap would say that nothing else was
    /// possible.
    #[test]
    fn few_rows_have_no_interval_and_equal_ones_wilson_s() {
        let of =
            |kl, top: [u32; 2]| Divergence { kl, top, target: 1, log_probs: [-1.0, -1.0 - kl] };
        let few = summary(&[vec![of(0.1, [1, 1]); 99], vec![of(0.2, [1, 1]); 99]]);
        let intervals = [few.kl.interval, few.same_top.interval, few.loss.difference.interval];
        assert_eq!(intervals, [None; 3]);
        let same = summary(&vec![vec![of(0.0, [1, 1]); 99]; 12]);
        let [low, high] = same.same_top.interval.unwrap();
        assert!((0.7..0.8).contains(&low) && high == 1.0, "{low} {high}");
        assert_eq!((same.kl.interval, same.loss.difference.interval), (None, None));
    }

    /// All that one row's tokens lost may have one cause.
    #[test]
    fn flips_are_tested_by_rows() {
        let of = |top| Divergence { kl: 0.1, top, target: 1, log_probs: [-1.0; 2] };
        let (lost, same) = (of([1, 2]), of([1, 1]));
        let mut rows = vec![vec![same; 50]; 12];
        rows[3] = vec![lost; 50];
        let flips = summary(&rows).flips;
        assert_eq!((flips.lost, flips.gained, flips.p_value), (50, 0, 1.0));
        // The same number from all rows is no chance.
        let rows = vec![[vec![lost; 4], vec![same; 46]].concat(); 12];
        let flips = summary(&rows).flips;
        assert!(flips.lost == 48 && (flips.p_value - 2.0 / 4096.0).abs() < 1e-12, "{flips:?}");
    }
}
