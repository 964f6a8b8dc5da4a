//! Router of a mixture of experts: from each token's logits to the experts that compute it and
//! their weights.
//!
//! One function covers the published ones: softmax over all experts before the choice (Qwen3-MoE,
//! OLMoE); over the chosen ones, which is the same as renormalising (Mixtral, gpt-oss); sigmoids
//! with a bias that decides the choice but not the weight, and a choice of groups first
//! (DeepSeek-V3, section 2.1.2; GLM-4-MoE). Among equal scores the lowest index is chosen.

mod cpu;
pub(crate) mod cuda;
#[cfg(any(test, feature = "reference"))]
pub mod reference;

pub use cpu::{backward, forward, probability_sums};

use crate::processor::Processor;
use crate::view::{View, ViewMut};

/// The most experts that a layer may have.
pub const MAX_EXPERTS: usize = 1024;

/// The most experts that a token may choose.
pub const MAX_TOP_K: usize = 64;

/// How experts are chosen and weighted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Router {
    /// Number of experts, at most [`MAX_EXPERTS`].
    pub num_experts: usize,
    /// Experts of each token, at most [`MAX_TOP_K`].
    pub top_k: usize,
    /// From logits to scores.
    pub scoring: Scoring,
    /// Whether the weights of the chosen experts are divided by their sum.
    pub normalise: bool,
    /// Factor of all weights.
    pub scale: f32,
    /// Groups of experts, of which some are chosen first.
    pub groups: Option<Groups>,
}

/// From logits to scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scoring {
    /// Softmax over all experts. When normalised, this is the softmax over the chosen ones.
    Softmax,
    /// A sigmoid for each expert.
    Sigmoid,
}

/// Experts in groups of equal size, scored by the sum of their two best.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    /// Number of groups, a divisor of the number of experts.
    pub count: usize,
    /// Groups whose experts may be chosen.
    pub kept: usize,
}

/// What a backward pass adds to the gradient of logits so that load becomes balanced: the
/// derivative of a loss by each expert's softmax probability, `[num_experts]`, for the first
/// `num_rows` tokens.
#[derive(Clone, Copy, Debug)]
pub struct Balance<'a> {
    /// One per expert.
    pub d_probabilities: &'a [f32],
    /// The rows it applies to; the others only pad.
    pub num_rows: usize,
}

/// What a backward pass reads.
#[derive(Clone, Copy)]
pub struct Routed<'a> {
    /// `[t, num_experts]`.
    pub logits: View<'a>,
    /// `[t, top_k]`, as the forward pass chose.
    pub chosen: &'a [u32],
    /// The gradient of the weights, `[t, top_k]` f32.
    pub d_weights: View<'a>,
    /// The gradient of an auxiliary loss.
    pub balance: Option<Balance<'a>>,
}

/// Keeps the denominator of normalised sigmoids from zero, as transformers does.
const TINY: f32 = 1e-20;

impl Router {
    /// Panics unless a token can choose as many experts as it should.
    fn check(&self) {
        let Self { num_experts, top_k, groups, .. } = *self;
        assert!(
            num_experts <= MAX_EXPERTS && top_k <= MAX_TOP_K && (1..=num_experts).contains(&top_k)
        );
        if let Some(Groups { count, kept }) = groups {
            assert!(count > 0 && num_experts.is_multiple_of(count) && kept <= count);
            assert!(num_experts / count * kept >= top_k);
        }
    }
}

impl Processor {
    /// `logits [t, num_experts]` → `weights [t, top_k]` f32, and the chosen experts, `[t, top_k]`,
    /// best first. `bias [num_experts]` f32 is added to scores for the choice only. Synchronises
    /// with a GPU.
    ///
    /// # Panics
    /// If the router cannot choose `top_k` experts, or a slice has another length.
    pub fn route(
        &self,
        router: &Router,
        logits: View<'_>,
        bias: Option<View<'_>>,
        weights: ViewMut<'_>,
    ) -> Vec<u32> {
        router.check();
        let t = logits.len() / router.num_experts;
        assert!(logits.len() == t * router.num_experts && weights.len() == t * router.top_k);
        assert!(bias.is_none_or(|bias| bias.len() == router.num_experts));
        match self {
            Self::Cpu(cpu) => forward(cpu, router, logits, bias.map(View::f32), weights.f32()),
            Self::Cuda(gpu) => {
                let bias = bias.map(|bias| bias.cuda().f32());
                cuda::forward(gpu, router, logits.cuda(), bias, weights.cuda().f32())
            }
        }
    }

    /// `d_logits [t, num_experts]`, overwritten, of the type of the logits.
    ///
    /// # Panics
    /// If a slice has another length.
    pub fn route_backward(&self, router: &Router, routed: Routed<'_>, d_logits: ViewMut<'_>) {
        let Routed { logits, chosen, d_weights, balance } = routed;
        let t = logits.len() / router.num_experts;
        assert!(d_logits.len() == logits.len() && d_weights.len() == t * router.top_k);
        assert!(chosen.len() == t * router.top_k);
        assert!(balance.is_none_or(|b| b.d_probabilities.len() == router.num_experts));
        match self {
            Self::Cpu(cpu) => backward(cpu, router, routed, d_logits),
            Self::Cuda(gpu) => cuda::backward(gpu, router, routed, d_logits.cuda()),
        }
    }

    /// `Σ softmax(logits)` over the first `num_rows` rows of `logits [t, num_experts]`.
    /// Synchronises with a GPU.
    pub fn probability_sums(&self, router: &Router, logits: View<'_>, num_rows: usize) -> Vec<f32> {
        let logits = logits.part(0, num_rows * router.num_experts);
        match self {
            Self::Cpu(cpu) => probability_sums(cpu, router, logits),
            Self::Cuda(gpu) => cuda::probability_sums(gpu, router, logits.cuda()),
        }
    }
}

/// Scratch bytes of [`Processor::route`] and its backward pass on a GPU, for `t` tokens.
pub fn scratch_bytes(router: &Router, t: usize) -> usize {
    let words = [t * router.top_k, router.num_experts];
    words.iter().map(|words| (4 * words).next_multiple_of(256)).sum()
}

/// Scratch bytes of [`Processor::probability_sums`] on a GPU, for `t` tokens.
pub fn probability_scratch_bytes(router: &Router, t: usize) -> usize {
    let words = [t * router.num_experts, router.num_experts];
    words.iter().map(|words| (4 * words).next_multiple_of(256)).sum()
}

#[cfg(test)]
mod tests;
