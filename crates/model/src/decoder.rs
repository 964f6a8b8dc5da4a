//! The decoder: embedding, blocks of attention and gated MLP, norm, head.

use crate::batch::Batch;
use crate::config::DecoderConfig;
use hone_tensor::ops::{self, KvCache};
use hone_tensor::{Lora, Offloaded, Projection, Tape, Tensor, Var, Weight};

/// What the forward pass keeps for the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recompute {
    /// All activations.
    None,
    /// The input of each block; the rest is computed again.
    Block,
}

/// The weights of a decoder. Projections that read the same input stand together.
#[derive(Clone)]
pub struct Decoder {
    /// Shape.
    pub config: DecoderConfig,
    pub(crate) embed_tokens: Weight,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Weight,
    /// `None`: tied to the embedding.
    pub(crate) lm_head: Option<Weight>,
}

/// One block.
#[derive(Clone)]
pub(crate) struct Layer {
    pub(crate) input_layernorm: Weight,
    /// q, k, v.
    pub(crate) qkv: Vec<Projection>,
    /// o.
    pub(crate) o: Vec<Projection>,
    pub(crate) post_attention_layernorm: Weight,
    /// gate, up.
    pub(crate) gate_up: Vec<Projection>,
    /// down.
    pub(crate) down: Vec<Projection>,
    /// Where the projections' weights are fetched from, if they are not on the device.
    pub(crate) offloaded: Option<Offloaded>,
}

/// Names of a block's projections within it, in the order of [`Layer::projections`].
pub(crate) const PROJECTIONS: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

impl Layer {
    pub(crate) fn projections(&self) -> impl Iterator<Item = &Projection> {
        self.qkv.iter().chain(&self.o).chain(&self.gate_up).chain(&self.down)
    }

    /// Those that read the same input, together.
    fn groups(&self) -> [&[Projection]; 4] {
        [&self.qkv, &self.o, &self.gate_up, &self.down]
    }

    pub(crate) fn projections_mut(&mut self) -> impl Iterator<Item = &mut Projection> {
        let attention = self.qkv.iter_mut().chain(&mut self.o);
        attention.chain(&mut self.gate_up).chain(&mut self.down)
    }
}

impl Decoder {
    /// The head's weight `[vocab_size, hidden_size]`.
    pub fn head(&self) -> &Weight {
        self.lm_head.as_ref().unwrap_or(&self.embed_tokens)
    }

    /// Most bytes that a block's projections take, as their tensors are held.
    pub fn projection_bytes(&self) -> usize {
        let held = |p: &Projection| match &p.weight {
            Weight::Frozen(tensor) => tensor.num_bytes(),
            Weight::Trained { .. } => 0,
        };
        let of_layer = |layer: &Layer| layer.projections().map(held).sum();
        self.layers.iter().map(of_layer).max().unwrap_or(0)
    }

    /// Module names (`model.layers.0.self_attn.q_proj`, …) and projections.
    pub fn projections(&self) -> impl Iterator<Item = (String, &Projection)> {
        let names = module_names(self.layers.len());
        names.zip(self.layers.iter().flat_map(Layer::projections))
    }

    pub(crate) fn projections_mut(&mut self) -> impl Iterator<Item = (String, &mut Projection)> {
        let names = module_names(self.layers.len());
        names.zip(self.layers.iter_mut().flat_map(Layer::projections_mut))
    }

    /// The adapters, by module name.
    pub fn adapters_mut(&mut self) -> impl Iterator<Item = (String, &mut Lora)> {
        self.projections_mut().filter_map(|(name, p)| p.lora.as_mut().map(|lora| (name, lora)))
    }

    /// Log-probabilities of a batch's targets: `[t]` f32, entry `i` for `batch.rows[i]`.
    pub fn log_probs<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        batch: &'a Batch,
        recompute: Recompute,
    ) -> Var {
        let hidden = self.hidden(tape, batch, recompute);
        ops::log_probs(tape, hidden, self.head(), &batch.rows, &batch.targets)
    }

    /// Hidden states after the last norm, `[t, hidden_size]`.
    pub fn hidden<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        batch: &'a Batch,
        recompute: Recompute,
    ) -> Var {
        ops::round_adapters(tape, self.layers.iter().flat_map(Layer::groups));
        let mut x = ops::embedding(tape, &self.embed_tokens, &batch.tokens);
        for layer in &self.layers {
            let block = move |tape: &mut Tape<'a>, x: Var| {
                self.block(tape, layer, x, &mut |tape, qkv| {
                    let qkv = ops::rope(tape, qkv, &self.config.heads, &batch.angles);
                    ops::attention(tape, qkv, &self.config.heads, &batch.sequences)
                })
            };
            x = match recompute {
                Recompute::Block => tape.recompute(x, block),
                Recompute::None => block(tape, x),
            };
        }
        ops::rms_norm(tape, &x, &self.norm, self.config.rms_norm_eps)
    }

    /// Hidden states `[t, hidden_size]` of tokens that follow what `caches` (one per layer) hold.
    /// Inference only.
    pub fn hidden_cached<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        tokens: &'a [u32],
        angles: &'a ops::Angles,
        caches: &mut [KvCache],
    ) -> Var {
        ops::round_adapters(tape, self.layers.iter().flat_map(Layer::groups));
        let mut x = ops::embedding(tape, &self.embed_tokens, tokens);
        for (layer, cache) in self.layers.iter().zip(caches) {
            x = self.block(tape, layer, x, &mut |tape, qkv| {
                let qkv = ops::rope(tape, qkv, &self.config.heads, angles);
                ops::attend_cached(tape, qkv, &self.config.heads, cache)
            });
        }
        ops::rms_norm(tape, &x, &self.norm, self.config.rms_norm_eps)
    }

    /// Logits `[t, vocab_size]` of a whole batch, for comparisons. Inference only.
    pub fn logits<'a>(&'a self, tape: &mut Tape<'a>, batch: &'a Batch) -> Tensor {
        let hidden = self.hidden(tape, batch, Recompute::None);
        ops::logits(tape, hidden.value(), self.head())
    }

    fn block<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        layer: &'a Layer,
        x: Var,
        attend: &mut dyn FnMut(&mut Tape<'a>, Var) -> Var,
    ) -> Var {
        let eps = self.config.rms_norm_eps;
        ops::with_offloaded(tape, layer.offloaded.as_ref(), x, |tape, x| {
            let h = ops::rms_norm(tape, &x, &layer.input_layernorm, eps);
            let qkv = ops::linear(tape, h, &layer.qkv, None);
            let attended = attend(tape, qkv);
            let x = ops::linear(tape, attended, &layer.o, Some(x));
            let h = ops::rms_norm(tape, &x, &layer.post_attention_layernorm, eps);
            let gate_up = ops::linear(tape, h, &layer.gate_up, None);
            let activated = ops::swiglu(tape, gate_up);
            ops::linear(tape, activated, &layer.down, Some(x))
        })
    }
}

fn module_names(num_layers: usize) -> impl Iterator<Item = String> {
    let of_layer = |i| PROJECTIONS.iter().map(move |name| format!("model.layers.{i}.{name}"));
    (0..num_layers).flat_map(of_layer)
}
