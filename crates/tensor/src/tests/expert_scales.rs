//! Factors of experts' weights.

use super::check_op::{Kind, Operands, Operation, check_op};
use super::experts::uneven;
use crate::ops::{self, Routing};
use crate::{DType, Tape, Var, Weight};

struct ExpertScales {
    given: Operands,
    scales: Weight,
    routing: Routing,
    /// `[t, top_k]`.
    chosen: Vec<u32>,
}

impl Operation for ExpertScales {
    fn operands(&self) -> &Operands {
        &self.given
    }
    fn weights_mut(&mut self) -> Vec<&mut Weight> {
        vec![&mut self.scales]
    }
    fn run<'a>(&'a self, tape: &mut Tape<'a>, mut leaves: Vec<Var>) -> Var {
        ops::scaled_by_expert(tape, leaves.remove(0), &self.routing, &self.scales)
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<f64> {
        let pairs = x[0].iter().zip(&self.chosen);
        pairs.map(|(weight, &expert)| weight * x[1][expert as usize]).collect()
    }
    fn backward(&self, x: &[Vec<f64>], d_y: &[f64]) -> Vec<Vec<f64>> {
        let mut d_scales = vec![0.0; x[1].len()];
        let chosen = self.chosen.iter().map(|&expert| expert as usize);
        for ((expert, weight), d_y) in chosen.clone().zip(&x[0]).zip(d_y) {
            d_scales[expert] += weight * d_y;
        }
        vec![chosen.zip(d_y).map(|(expert, d_y)| x[1][expert] * d_y).collect(), d_scales]
    }
}

#[test]
fn scaled_by_expert_passes() {
    for (tokens, num_experts, top_k) in [(1, 4, 2), (40, 9, 3)] {
        for kind in [Kind::Trained, Kind::Frozen(DType::F32.into())] {
            let chosen = uneven(num_experts, top_k, tokens);
            let routing = Routing::new(num_experts, top_k, &chosen);
            let mut given = Operands::default();
            given.add(Kind::Stream, &[tokens, top_k]);
            let scales = given.add(kind, &[num_experts]);
            let scales = given.weight(scales);
            let case = format!("scales of {num_experts} experts, {tokens} tokens");
            check_op(&case, &mut ExpertScales { given, scales, routing, chosen });
        }
    }
}
