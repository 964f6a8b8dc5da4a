//! A mixture of experts in place of a block's MLP: router, experts, and a shared one if there is.

use crate::config::ExpertsConfig;
use crate::weights::{ExpertPart, Linear};
use hone_tensor::ops::{self, Activation, Router, RowOrder, Scoring};
use hone_tensor::{Projection, Tape, Var, Weight};

/// The weights of a mixture, but for the shared expert's, which are its block's own.
#[derive(Clone)]
pub(crate) struct Mixture {
    /// Gate of the shared expert; none if its output is added as it is.
    shared_gate: Vec<Projection>,
    router: Vec<Projection>,
    /// Added to the router's scores for the choice alone.
    pub(crate) bias: Option<Weight>,
    /// Factors of the experts' weights.
    pub(crate) scales: Option<Weight>,
    /// gate, up of each expert.
    gate_up: Vec<Vec<Projection>>,
    /// down of each expert.
    down: Vec<Vec<Projection>>,
}

/// The projections of an MLP.
#[derive(Clone, Copy)]
pub(crate) struct Mlp<'a> {
    /// gate, up.
    pub(crate) gate_up: &'a [Projection],
    /// down.
    pub(crate) down: &'a [Projection],
}

/// A gate is the router of one expert.
static GATE: Router = Router {
    num_experts: 1,
    top_k: 1,
    scoring: Scoring::Sigmoid,
    normalise: false,
    scale: 1.0,
    groups: None,
};

impl Mixture {
    /// Assembles a mixture from the projections that `group` makes.
    pub(crate) fn new(
        num_experts: usize,
        group: &mut dyn FnMut(&[Linear]) -> Vec<Projection>,
        [bias, scales]: [Option<Weight>; 2],
    ) -> Self {
        let expert = |expert| ExpertPart::ALL.map(|part| Linear::Expert(expert, part));
        let (router, shared_gate) = (group(&[Linear::Router]), group(&[Linear::SharedGate]));
        let mut of_experts = |parts: std::ops::Range<usize>| {
            (0..num_experts).map(|i| group(&expert(i)[parts.clone()])).collect()
        };
        let (gate_up, down) = (of_experts(0..2), of_experts(2..3));
        Self { shared_gate, router, bias, scales, gate_up, down }
    }

    /// Projections that all tokens pass, grouped by the input they read, in model order.
    pub(crate) fn groups(&self) -> impl Iterator<Item = &[Projection]> {
        [&self.shared_gate[..], &self.router].into_iter()
    }

    /// The projections of experts, which follow in model order.
    pub(crate) fn experts(&self) -> impl Iterator<Item = &Projection> {
        let experts = self.gate_up.iter().zip(&self.down);
        experts.flat_map(|(gate_up, down)| gate_up.iter().chain(down))
    }

    pub(crate) fn projections_mut(&mut self) -> impl Iterator<Item = &mut Projection> {
        let experts = self.gate_up.iter_mut().zip(&mut self.down);
        let experts = experts.flat_map(|(gate_up, down)| gate_up.iter_mut().chain(down));
        self.shared_gate.iter_mut().chain(&mut self.router).chain(experts)
    }

    pub(crate) fn projection(&self, linear: Linear) -> Option<&Projection> {
        match linear {
            Linear::SharedGate => self.shared_gate.first(),
            Linear::Router => self.router.first(),
            Linear::Expert(expert, ExpertPart::Gate) => self.gate_up.get(expert)?.first(),
            Linear::Expert(expert, ExpertPart::Up) => self.gate_up.get(expert)?.get(1),
            Linear::Expert(expert, ExpertPart::Down) => self.down.get(expert)?.first(),
            _ => None,
        }
    }

    /// What the experts make of `h [t, hidden_size]`, in the compute type, or in f32 with the
    /// `residual` added; with the `shared` expert's output, if its MLP is not empty.
    pub(crate) fn apply<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        shared: Mlp<'a>,
        (config, activation): (&'a ExpertsConfig, Activation),
        h: Var,
        residual: Option<Var>,
    ) -> Var {
        // Rounded, what sigmoids tell apart would be ties. transformers rounds softmaxes' alone.
        let logits = match config.router.scoring {
            Scoring::Sigmoid => ops::linear_in_f32(tape, h.clone(), &self.router),
            _ => ops::linear(tape, h.clone(), &self.router, None),
        };
        let for_shared = (!shared.down.is_empty()).then(|| h.clone());
        let y = self.experts_of(tape, logits, (config, activation), h, residual);
        match for_shared {
            None => y,
            Some(h) => self.add_shared(tape, shared, activation, h, y),
        }
    }

    /// What the experts alone make of `experts [t, hidden_size]` where they and the router, which
    /// reads `router [t, hidden_size]`, have norms of their own; in the compute type.
    pub(crate) fn apply_apart<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        options: (&'a ExpertsConfig, Activation),
        [router, experts]: [Var; 2],
    ) -> Var {
        let hidden_size = router.value().shape()[1] as f32;
        let logits = ops::linear_in_f32(tape, router, &self.router);
        let logits = ops::scaled(tape, logits, hidden_size.powf(-0.5));
        self.experts_of(tape, logits, options, experts, None)
    }

    /// What the experts that `logits` choose make of `h`.
    fn experts_of<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        logits: Var,
        (config, activation): (&'a ExpertsConfig, Activation),
        h: Var,
        residual: Option<Var>,
    ) -> Var {
        let (mut weights, routing) = ops::route(tape, logits, &config.router, self.bias.as_ref());
        if let Some(scales) = &self.scales {
            weights = ops::scaled_by_expert(tape, weights, &routing, scales);
        }
        let gate_up = ops::expert_linear(tape, h, RowOrder::Tokens, &self.gate_up, &routing);
        let activated = ops::glu(tape, gate_up, activation);
        let down = ops::expert_linear(tape, activated, RowOrder::Experts, &self.down, &routing);
        ops::combine(tape, down, weights, &routing, residual)
    }

    /// Adds the shared expert to `y`, which is f32: no family with one has a norm after it.
    fn add_shared<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        shared: Mlp<'a>,
        activation: Activation,
        h: Var,
        y: Var,
    ) -> Var {
        let gate = (!self.shared_gate.is_empty()).then(|| h.clone());
        let gate_up = ops::linear(tape, h, shared.gate_up, None);
        let activated = ops::glu(tape, gate_up, activation);
        let Some(h) = gate else { return ops::linear(tape, activated, shared.down, Some(y)) };
        let down = ops::linear(tape, activated, shared.down, None);
        let logits = ops::linear(tape, h, &self.shared_gate, None);
        let (weights, routing) = ops::route(tape, logits, &GATE, None);
        ops::combine(tape, down, weights, &routing, Some(y))
    }
}
