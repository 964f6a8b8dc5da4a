//! What a block mixes tokens with: attention, or a gated delta net.

use super::{Decoder, DeltaWeights, Past};
use crate::weights::BlockNorm;
use hone_tensor::ops::{self, DeltaGates, HeadNorms, Part, ShortConv};
use hone_tensor::{Heads, Tape, Var};

impl Decoder {
    /// The convolution of block `i`, if it has a gated delta net.
    pub(crate) fn conv(&self, i: usize) -> Option<ShortConv<'_>> {
        let delta = self.layers[i].delta.as_ref()?;
        Some(ShortConv { weight: &delta.conv, bias: None })
    }

    /// Attention of block `i` over its projections, and over another block's keys if it reads
    /// those. Gives its own queries, keys and values, too, if others read them.
    pub(super) fn attend<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        i: usize,
        angles: &'a [ops::Angles],
        (projected, keys): (Var, Option<Var>),
        past: &mut Past<'a, '_>,
    ) -> (Var, Option<Var>) {
        let (layer, config) = (&self.layers[i], &self.config.layers[i].attention);
        let heads = &config.heads;
        let (of_queries, of_keys) = (heads.out_width(), heads.num_kv_heads * heads.head_dim);
        let part = |of: &Var, first, count| Part { of: of.clone(), first, count };
        let qkv = match config.output_gate {
            true => ops::without_gates(tape, &projected, heads),
            false if config.keys_of.is_none() && config.keys_as_values => {
                let own = Part::whole(projected.clone());
                ops::joined(tape, vec![own, part(&projected, of_queries, of_keys)])
            }
            false => projected.clone(),
        };
        let gates = config.output_gate.then_some(projected);
        // Where the keys are another's, the block's own are queries alone.
        let own = match config.keys_of {
            None => *heads,
            Some(_) => Heads { num_kv_heads: 0, ..*heads },
        };
        let norms = [BlockNorm::Q, BlockNorm::K, BlockNorm::V].map(|norm| layer.norm(norm));
        let norms = match norms.map(|norm| norm.map(|norm| norm.weight)) {
            [Some(q), k, v] => Some(HeadNorms { q, k, v }),
            _ => None,
        };
        let (norm, sinks) = (self.norm(), layer.sinks.as_ref());
        let prepare = move |tape: &mut Tape<'a>, mut qkv: Var| {
            if let Some(norms) = norms {
                qkv = ops::norm_heads(tape, qkv, &own, norms, norm);
            }
            match config.rope {
                Some(rope) => ops::rope(tape, qkv, &own, &angles[rope]),
                None => qkv,
            }
        };
        let lends = self.config.lends_keys(i);
        let mut lent = None;
        let attended = match past {
            // Heads are not normalised in place, as they are rotated.
            Past::None(sequences) if norms.is_some() && !lends && keys.is_none() => {
                ops::attention_over(tape, qkv, prepare, heads, sinks, sequences)
            }
            Past::None(sequences) => {
                let mut qkv = prepare(tape, qkv);
                lent = lends.then(|| qkv.clone());
                if let Some(keys) = keys {
                    let others = part(&keys, of_queries, 2 * of_keys);
                    qkv = ops::joined(tape, vec![Part::whole(qkv), others]);
                }
                ops::attention_with_sinks(tape, qkv, heads, sinks, sequences)
            }
            Past::Cached { rows, cache, .. } => {
                let qkv = prepare(tape, qkv);
                match config.keys_of {
                    None => ops::attend_paged(tape, qkv, heads, sinks, rows, cache.pages()),
                    Some(_) => ops::attend_kept(tape, qkv, heads, sinks, rows, cache.pages()),
                }
            }
        };
        let attended = match gates {
            None => attended,
            Some(gates) => ops::gate_output(tape, attended, gates, heads),
        };
        (attended, lent)
    }

    /// The gated delta net of block `i` over its projections.
    pub(super) fn delta<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        i: usize,
        weights: &'a DeltaWeights,
        projected: Var,
        past: &mut Past<'a, '_>,
    ) -> Var {
        let config = self.config.layers[i].delta.as_ref().expect("a block with a delta net");
        let heads = &config.heads;
        let projected = match config.fused {
            true => ops::delta_columns(tape, projected, heads),
            false => projected,
        };
        let part = |first, count| Part { of: projected.clone(), first, count };
        let (qkv_width, out_width) = (heads.qkv_width(), heads.out_width());
        let x = part(0, qkv_width);
        let b_a = part(qkv_width + out_width, 2 * heads.num_value_heads);
        let conv = ShortConv { weight: &weights.conv, bias: None };
        let gates = DeltaGates { a_log: &weights.a_log, dt_bias: &weights.dt_bias };
        let out = match past {
            Past::None(sequences) => {
                let qkv = ops::short_conv(tape, x, conv, sequences);
                let gates = ops::delta_gates(tape, b_a, gates);
                ops::gated_delta_rule(tape, qkv, gates, heads, sequences)
            }
            Past::Cached { rows, slots, cache } => {
                let (inputs, states) = cache.states();
                let going_on = (&rows.sequences[..], &slots[..]);
                let qkv = ops::short_conv_step(tape, x, conv, going_on, inputs);
                let gates = ops::delta_gates(tape, b_a, gates);
                ops::gated_delta_rule_step(tape, qkv, gates, heads, going_on, states)
            }
        };
        let norm = self.layers[i].norm(BlockNorm::Delta).expect("a norm of its heads");
        let gates = part(qkv_width, out_width);
        ops::gated_rms_norm(tape, out, gates, norm.weight, self.norm().eps)
    }
}
