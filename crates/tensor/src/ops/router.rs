//! Routing tokens to experts.

use super::rows_cols;
use crate::{Cost, DType, Tape, Var, Weight, Work};
use hone_kernels::router::{self, Balance, Routed, Router};
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// Floating-point operations per logit, most of them for the exponential.
const FLOPS: usize = 24;

/// Which rows each expert computes. Rows are sorted by (expert, token), so an expert's are
/// consecutive, and each token is in as many rows as it has experts.
///
/// The host knows it, since it determines the sizes of products; sizes of memory it never
/// determines, so the dry device, which knows no choice, assumes a balanced one.
#[derive(Clone, Debug)]
pub struct Routing(Arc<Sorted>);

#[derive(Debug)]
struct Sorted {
    top_k: usize,
    /// The token of each row.
    tokens: Vec<u32>,
    /// `[t, top_k]`: the row of each token's choices, in the order of its choice.
    rows: Vec<u32>,
    /// Where the rows of each expert begin, and where the last one's end.
    bounds: Vec<usize>,
}

impl Routing {
    /// Sorts `chosen [t, top_k]`.
    ///
    /// # Panics
    /// If an expert does not exist.
    pub fn new(num_experts: usize, top_k: usize, chosen: &[u32]) -> Self {
        let mut bounds = vec![0; num_experts + 1];
        chosen.iter().for_each(|&expert| bounds[expert as usize + 1] += 1);
        (0..num_experts).for_each(|expert| bounds[expert + 1] += bounds[expert]);
        let mut next = bounds.clone();
        let mut tokens = vec![0; chosen.len()];
        let row = |(i, &expert): (usize, &u32)| {
            let row = next[expert as usize];
            next[expert as usize] += 1;
            tokens[row] = (i / top_k) as u32;
            row as u32
        };
        let rows = chosen.iter().enumerate().map(row).collect();
        Self(Arc::new(Sorted { top_k, tokens, rows, bounds }))
    }

    /// As many rows for each expert as possible, without knowing what tokens choose.
    fn balanced(num_experts: usize, top_k: usize, t: usize) -> Self {
        let chosen: Vec<u32> = (0..t * top_k).map(|i| (i % num_experts) as u32).collect();
        Self::new(num_experts, top_k, &chosen)
    }

    /// Number of rows: `top_k` for each token.
    pub fn num_rows(&self) -> usize {
        self.0.tokens.len()
    }

    /// Number of tokens.
    pub fn num_tokens(&self) -> usize {
        self.num_rows() / self.0.top_k
    }

    /// Number of experts.
    pub fn num_experts(&self) -> usize {
        self.0.bounds.len() - 1
    }

    /// Experts of each token.
    pub fn top_k(&self) -> usize {
        self.0.top_k
    }

    /// The rows of an expert.
    pub fn rows_of(&self, expert: usize) -> Range<usize> {
        self.0.bounds[expert]..self.0.bounds[expert + 1]
    }

    /// The expert of each row.
    pub(crate) fn experts(&self) -> Vec<u32> {
        let of = |expert| std::iter::repeat_n(expert as u32, self.rows_of(expert).len());
        (0..self.num_experts()).flat_map(of).collect()
    }

    /// The token of each row.
    pub(crate) fn tokens(&self) -> &[u32] {
        &self.0.tokens
    }

    /// `[t, top_k]`: the row of each token's choices.
    pub(crate) fn rows(&self) -> &[u32] {
        &self.0.rows
    }
}

/// What the routers of a pass are told, and where they note what they did.
#[derive(Clone, Default)]
pub struct Routers {
    /// Rows that are not padding; `None`: all.
    pub num_rows: Option<usize>,
    /// The derivative of an auxiliary loss by each expert's probability, the same for all tokens
    /// and layers; added to the gradient of logits.
    pub balance: Option<Arc<[f32]>>,
    /// An entry for each router of the pass, in their order.
    pub loads: Option<Arc<Mutex<Vec<RouterLoad>>>>,
    /// Whether loads have sums of probabilities.
    pub sums_probabilities: bool,
}

/// What a router did with the rows that are not padding.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RouterLoad {
    /// Rows of each expert.
    pub counts: Vec<u64>,
    /// Sum of each expert's softmax probability, if asked for.
    pub probability_sums: Vec<f64>,
    /// Number of tokens.
    pub num_tokens: u64,
}

impl RouterLoad {
    /// Adds what a router did in another pass.
    pub fn add(&mut self, other: &Self) {
        let len = self.counts.len().max(other.counts.len());
        self.counts.resize(len, 0);
        self.probability_sums.resize(len, 0.0);
        self.counts.iter_mut().zip(&other.counts).for_each(|(sum, x)| *sum += x);
        let sums = self.probability_sums.iter_mut().zip(&other.probability_sums);
        sums.for_each(|(sum, x)| *sum += x);
        self.num_tokens += other.num_tokens;
    }

    /// The auxiliary loss of Switch Transformer (Fedus et al., 2021, equations 4 to 6), as
    /// transformers computes it: the number of experts times the sum over them of their share of
    /// tokens times their mean probability. Of several layers, it is that of the sum of their
    /// loads.
    pub fn balancing_loss(&self) -> f64 {
        let tokens = self.num_tokens.max(1) as f64;
        let pairs = self.counts.iter().zip(&self.probability_sums);
        let sum: f64 = pairs.map(|(&count, sum)| count as f64 * sum).sum();
        self.counts.len() as f64 * sum / (tokens * tokens)
    }

    /// Its derivative by each expert's probability of a token: see [`Routers::balance`]. Counts
    /// have no derivative.
    pub fn balancing_gradient(&self) -> Vec<f32> {
        let tokens = self.num_tokens.max(1) as f64;
        let factor = self.counts.len() as f64 / (tokens * tokens);
        self.counts.iter().map(|&count| (factor * count as f64) as f32).collect()
    }
}

/// `logits [t, num_experts]` → the weights of each token's experts, `[t, top_k]` f32, and who they
/// are. `bias [num_experts]` is added to scores for the choice only; it has no gradient.
///
/// On a GPU the host waits for the choice.
pub fn route<'a>(
    tape: &mut Tape<'a>,
    logits: Var,
    router: &'a Router,
    bias: Option<&'a Weight>,
) -> (Var, Routing) {
    let (t, n) = rows_cols(logits.value().shape());
    assert_eq!(n, router.num_experts);
    let k = router.top_k;
    let mut weights = tape.activation(DType::F32, &[t, k]);
    let bytes = logits.value().num_bytes() + 2 * weights.num_bytes();
    let cost = Cost::memory_bound("route", bytes)
        .with_scratch(router::scratch_bytes(router, t))
        .with(Work::Elementwise, FLOPS * t * n);
    let chosen = tape.device().begin(cost).map(|on| {
        let bias = bias.map(|bias| tape.params().resolve(bias).view());
        on.route(router, logits.value().view(), bias, weights.view_mut())
    });
    let routing = match &chosen {
        Some(chosen) => Routing::new(n, k, chosen),
        None => Routing::balanced(n, k, t),
    };
    note_load(tape, &logits, router, chosen.as_deref());
    let requires_grad = logits.requires_grad();
    let num_rows = tape.routers().num_rows.unwrap_or(t).min(t);
    // A gate has no choice.
    let balance = tape.routers().balance.clone().filter(|_| n > 1);
    let weights = tape.push(weights, requires_grad, move |sweep, d_weights| {
        let mut d = sweep.activation(logits.value().dtype(), &[t, n]);
        let bytes = 2 * d.num_bytes() + d_weights.num_bytes();
        let cost = Cost::memory_bound("d_route", bytes)
            .with_scratch(router::scratch_bytes(router, t))
            .with(Work::Elementwise, FLOPS * t * n);
        if let Some(on) = sweep.device.begin(cost) {
            let balance = balance.as_ref();
            let balance = balance.map(|d_probabilities| Balance { d_probabilities, num_rows });
            // Without the device's choice there was a failure, so nothing runs here.
            let (logits, chosen) = (logits.value().view(), chosen.as_deref().unwrap_or(&[]));
            let routed = Routed { logits, chosen, d_weights: d_weights.view(), balance };
            on.route_backward(router, routed, d.view_mut());
        }
        drop(d_weights);
        sweep.add(logits.id(), d);
    });
    (weights, routing)
}

/// Notes what the router does, if somebody wants to know.
fn note_load(tape: &Tape<'_>, logits: &Var, router: &Router, chosen: Option<&[u32]>) {
    let Some(loads) = &tape.routers().loads else { return };
    let (t, n) = rows_cols(logits.value().shape());
    let num_rows = tape.routers().num_rows.unwrap_or(t).min(t);
    if n == 1 {
        // A gate; there is no choice.
        return;
    }
    let mut sums = Vec::new();
    if tape.routers().sums_probabilities {
        let cost = Cost::memory_bound("router_load", logits.value().num_bytes())
            .with_scratch(router::probability_scratch_bytes(router, t))
            .with(Work::Elementwise, FLOPS * num_rows * n);
        if let Some(on) = tape.device().begin(cost) {
            sums = on.probability_sums(router, logits.value().view(), num_rows);
        }
    }
    let mut counts = vec![0; n];
    let chosen = chosen.map_or(&[][..], |chosen| &chosen[..num_rows * router.top_k]);
    chosen.iter().for_each(|&expert| counts[expert as usize] += 1);
    let probability_sums = sums.into_iter().map(f64::from).collect();
    let load = RouterLoad { counts, probability_sums, num_tokens: num_rows as u64 };
    hone_kernels::lock(loads).push(load);
}
