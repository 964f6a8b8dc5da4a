//! The policies that a run may be carried out with.

use crate::run_file;
use crate::scoring::Packing;
use crate::setup::Setup;
use hone_model::Recompute;
use serde::{Deserialize, Serialize};

/// What the planner chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Units of a micro-batch.
    pub units: usize,
    /// What the backward pass computes again.
    pub recompute: Recompute,
}

impl Policy {
    /// How rows become micro-batches of a run with this policy.
    pub fn packing(self, setup: &Setup) -> Packing {
        let (max_seq_len, unit_tokens) = (setup.max_seq_len, setup.unit_tokens());
        Packing { max_seq_len, unit_tokens, units_per_batch: self.units }
    }
}

/// Names of [`Recompute`] in plans, as in run files.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Recompute", rename_all = "lowercase")]
pub(super) enum RecomputeName {
    None,
    Block,
}

/// Tokens of a micro-batch beyond which products gain no more speed.
const ENOUGH_TOKENS: usize = 4096;

/// The policies that the run file leaves open, larger micro-batches first.
pub(super) fn candidates(setup: &Setup) -> Vec<Policy> {
    let all = setup.first_step.len();
    let most = all.min(ENOUGH_TOKENS / setup.unit_tokens()).max(1);
    let units: Vec<usize> = match setup.run.budget.micro_batch_tokens {
        // More than a step has would only be padding.
        Some(tokens) => vec![(tokens / setup.unit_tokens()).clamp(1, all.max(1))],
        None => {
            let halvings = std::iter::successors(Some(most), |&n| (n > 1).then(|| n.div_ceil(2)));
            // As many micro-batches, as equal as can be: the last one's padding costs time as well.
            halvings.map(|units| all.div_ceil(all.div_ceil(units))).collect()
        }
    };
    let recompute: &[Recompute] = match setup.run.budget.recompute {
        run_file::Recompute::Auto => &[Recompute::None, Recompute::Block],
        run_file::Recompute::None => &[Recompute::None],
        run_file::Recompute::Block => &[Recompute::Block],
    };
    let with = |&units: &usize| recompute.iter().map(move |&recompute| Policy { units, recompute });
    units.iter().flat_map(with).collect()
}
