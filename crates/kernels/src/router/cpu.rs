//! CPU kernels: rows are distributed over the threads.

use super::{Balance, Groups, MAX_EXPERTS, MAX_TOP_K, Routed, Router, Scoring, TINY};
use crate::cpu::{Cpu, Kernel, Scratch, Split, with_scratch};
use crate::element::Element;
use crate::math::{exp, max, sigmoid, sum};
use crate::view::{View, ViewMut, with_elements};

/// Rows whose probabilities are summed by one task; a constant, since it shows in the bits.
const SUMMED_ROWS: usize = 64;

/// Bytes of scratch memory of a task: three rows, less than any product takes.
const SCRATCH_BYTES: usize = 3 * 4 * MAX_EXPERTS;

/// See [`crate::Processor::route`].
pub fn forward(
    cpu: &Cpu,
    router: &Router,
    logits: View<'_>,
    bias: Option<&[f32]>,
    weights: &mut [f32],
) -> Vec<u32> {
    let (n, k) = (router.num_experts, router.top_k);
    let mut chosen = vec![0; weights.len()];
    let split = Split::new(&mut chosen);
    with_elements!(logits, logits => cpu.rows(weights, k, n * (k + 8), |t, weights| {
        // SAFETY: each row belongs to one task.
        let chosen = unsafe { split.slice(t * k, k) };
        let logits = &logits[t * n..][..n];
        with_scratch(SCRATCH_BYTES, |scratch| {
            cpu.isa.run(Forward { router, logits, bias, weights, chosen, scratch });
        });
    }));
    chosen
}

struct Forward<'a, E> {
    router: &'a Router,
    logits: &'a [E],
    bias: Option<&'a [f32]>,
    weights: &'a mut [f32],
    chosen: &'a mut [u32],
    scratch: Scratch<'a>,
}

impl<E: Element> Kernel for Forward<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { router, logits, bias, weights, chosen, mut scratch } = self;
        let row = read(logits, &mut scratch);
        let keys = scratch.take(row.len());
        keys.copy_from_slice(row);
        if router.scoring == Scoring::Sigmoid || bias.is_some() {
            scores(router.scoring, keys);
        }
        if let Some(bias) = bias {
            keys.iter_mut().zip(bias).for_each(|(key, bias)| *key += bias);
        }
        // Every comparison with NaN is false, so the choice would depend on what came before.
        keys.iter_mut().filter(|key| key.is_nan()).for_each(|key| *key = f32::NEG_INFINITY);
        if let Some(groups) = router.groups {
            keep_groups(groups, keys);
        }
        choose(keys, chosen);
        weigh(router, row, chosen, weights);
    }
}

/// The row as f32.
#[inline(always)]
fn read<'a, E: Element>(x: &[E], scratch: &mut Scratch<'a>) -> &'a mut [f32] {
    let row = scratch.take::<f32>(x.len());
    row.iter_mut().zip(x).for_each(|(row, x)| *row = x.to_f32());
    row
}

/// Logits → scores, in place.
#[inline(always)]
fn scores(scoring: Scoring, row: &mut [f32]) {
    match scoring {
        Scoring::Softmax => softmax(row),
        Scoring::Sigmoid => row.iter_mut().for_each(|x| *x = sigmoid(*x)),
    }
}

#[inline(always)]
fn softmax(row: &mut [f32]) {
    let greatest = max(row);
    row.iter_mut().for_each(|x| *x = exp(*x - greatest));
    let total = sum(row);
    row.iter_mut().for_each(|x| *x /= total);
}

/// Leaves only the experts of the best groups in the running.
#[inline(always)]
fn keep_groups(groups: Groups, keys: &mut [f32]) {
    let size = keys.len() / groups.count;
    let mut of_groups = [f32::NEG_INFINITY; MAX_EXPERTS];
    for (score, group) in of_groups.iter_mut().zip(keys.chunks(size)) {
        let mut two = [f32::NEG_INFINITY; 2];
        for &key in group {
            if key > two[0] {
                two = [key, two[0]];
            } else if key > two[1] {
                two[1] = key;
            }
        }
        *score = if size > 1 { two[0] + two[1] } else { two[0] };
    }
    let mut kept = [0; MAX_EXPERTS];
    choose(&of_groups[..groups.count], &mut kept[..groups.kept]);
    for (group, keys) in keys.chunks_mut(size).enumerate() {
        if !kept[..groups.kept].contains(&(group as u32)) {
            keys.fill(f32::NEG_INFINITY);
        }
    }
}

/// The indices of the greatest keys, best first, the lowest of equals first.
#[inline(always)]
fn choose(keys: &[f32], chosen: &mut [u32]) {
    for i in 0..chosen.len() {
        let (earlier, mut best) = (&chosen[..i], None);
        for (e, &key) in keys.iter().enumerate() {
            if best.is_none_or(|(_, greatest)| key > greatest) && !earlier.contains(&(e as u32)) {
                best = Some((e, key));
            }
        }
        chosen[i] = best.expect("fewer are chosen than there are").0 as u32;
    }
}

/// The weights of the chosen experts.
#[inline(always)]
fn weigh(router: &Router, logits: &mut [f32], chosen: &[u32], weights: &mut [f32]) {
    let pick = |row: &[f32], weights: &mut [f32]| {
        weights.iter_mut().zip(chosen).for_each(|(w, &e)| *w = row[e as usize]);
    };
    match (router.scoring, router.normalise) {
        (Scoring::Softmax, true) => {
            pick(logits, weights);
            softmax(weights);
        }
        (Scoring::Softmax, false) => {
            softmax(logits);
            pick(logits, weights);
        }
        (Scoring::Sigmoid, normalise) => {
            pick(logits, weights);
            scores(Scoring::Sigmoid, weights);
            if normalise {
                let total = sum(weights) + TINY;
                weights.iter_mut().for_each(|w| *w /= total);
            }
        }
    }
    weights.iter_mut().for_each(|w| *w *= router.scale);
}

/// See [`crate::Processor::route_backward`].
pub fn backward(cpu: &Cpu, router: &Router, routed: Routed<'_>, d_logits: ViewMut<'_>) {
    match (routed.logits, d_logits) {
        (View::F32(logits), ViewMut::F32(d)) => backward_typed(cpu, router, routed, logits, d),
        (View::Bf16(logits), ViewMut::Bf16(d)) => backward_typed(cpu, router, routed, logits, d),
        _ => panic!("logits and their gradient have the same element type"),
    }
}

fn backward_typed<E: Element>(
    cpu: &Cpu,
    router: &Router,
    routed: Routed<'_>,
    logits: &[E],
    d_logits: &mut [E],
) {
    let (n, k, d_weights) = (router.num_experts, router.top_k, routed.d_weights.f32());
    cpu.rows(d_logits, n, 16 * n, |t, d_logits| {
        let balance = routed.balance.filter(|Balance { num_rows, .. }| t < *num_rows);
        with_scratch(SCRATCH_BYTES, |scratch| {
            cpu.isa.run(Backward {
                router,
                logits: &logits[t * n..][..n],
                chosen: &routed.chosen[t * k..][..k],
                d_weights: &d_weights[t * k..][..k],
                d_probabilities: balance.map(|balance| balance.d_probabilities),
                d_logits,
                scratch,
            });
        });
    });
}

struct Backward<'a, E> {
    router: &'a Router,
    logits: &'a [E],
    chosen: &'a [u32],
    d_weights: &'a [f32],
    d_probabilities: Option<&'a [f32]>,
    d_logits: &'a mut [E],
    scratch: Scratch<'a>,
}

impl<E: Element> Kernel for Backward<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { router, logits, chosen, d_weights, d_probabilities, d_logits, mut scratch } =
            self;
        let row = read(logits, &mut scratch);
        let d = scratch.take::<f32>(row.len());
        d.fill(0.0);
        let needs_all = router.scoring == Scoring::Softmax && !router.normalise;
        let probabilities = scratch.take(row.len());
        if needs_all || d_probabilities.is_some() {
            probabilities.copy_from_slice(row);
            softmax(probabilities);
        }
        // Weights without the scale.
        let (mut weights, mut products) = ([0.0; MAX_TOP_K], [0.0; MAX_TOP_K]);
        let (weights, products) = (&mut weights[..chosen.len()], &mut products[..chosen.len()]);
        weigh(&Router { scale: 1.0, ..*router }, row, chosen, weights);
        let triples = products.iter_mut().zip(&*weights).zip(d_weights);
        triples.for_each(|((product, w), d_w)| *product = w * d_w);
        let dot = sum(products);
        if needs_all {
            d.iter_mut().zip(&*probabilities).for_each(|(d, p)| *d = -router.scale * p * dot);
        }
        for ((&expert, &w), d_w) in chosen.iter().zip(&*weights).zip(d_weights) {
            let expert = expert as usize;
            d[expert] += router.scale
                * match (router.scoring, router.normalise) {
                    (Scoring::Softmax, true) => w * (d_w - dot),
                    (Scoring::Softmax, false) => w * d_w,
                    // `w = s / Σ s`, so `s` times the derivative by `s` is `w (d_w - dot)`.
                    (Scoring::Sigmoid, true) => {
                        w * (d_w - dot) * (1.0 - sigmoid(logits[expert].to_f32()))
                    }
                    (Scoring::Sigmoid, false) => w * d_w * (1.0 - w),
                };
        }
        if let Some(d_probabilities) = d_probabilities {
            let pairs = probabilities.iter().zip(d_probabilities);
            let dot: f32 = pairs.map(|(p, d_p)| p * d_p).sum();
            for ((d, p), d_p) in d.iter_mut().zip(&*probabilities).zip(d_probabilities) {
                *d += p * (d_p - dot);
            }
        }
        d_logits.iter_mut().zip(&*d).for_each(|(d_logit, d)| *d_logit = E::from_f32(*d));
    }
}

/// See [`crate::Processor::probability_sums`]: sums of [`SUMMED_ROWS`], added in order.
pub fn probability_sums(cpu: &Cpu, router: &Router, logits: View<'_>) -> Vec<f32> {
    let n = router.num_experts;
    let rows = logits.len() / n;
    let mut partial = vec![0.0f32; rows.div_ceil(SUMMED_ROWS) * n];
    with_elements!(logits, logits => cpu.rows(&mut partial, n, SUMMED_ROWS * 8 * n, |i, sums| {
        let first = i * SUMMED_ROWS;
        let rows = first..rows.min(first + SUMMED_ROWS);
        with_scratch(SCRATCH_BYTES, |scratch| {
            cpu.isa.run(Sums { logits: &logits[rows.start * n..rows.end * n], sums, scratch });
        });
    }));
    let mut sums = vec![0.0; n];
    for partial in partial.chunks(n) {
        sums.iter_mut().zip(partial).for_each(|(sum, x)| *sum += x);
    }
    sums
}

struct Sums<'a, E> {
    logits: &'a [E],
    sums: &'a mut [f32],
    scratch: Scratch<'a>,
}

impl<E: Element> Kernel for Sums<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { logits, sums, mut scratch } = self;
        for logits in logits.chunks(sums.len()) {
            let row = read(logits, &mut scratch.reborrow());
            softmax(row);
            sums.iter_mut().zip(&*row).for_each(|(sum, p)| *sum += p);
        }
    }
}
