//! The gated delta rule over packed sequences, and from where they stopped.

use super::{grow, rows_cols};
use crate::{
    Category, Cost, DType, Device, DeviceError, Sequence, Tape, Target, Tensor, Var, Work,
};
use hone_kernels::gated_delta_rule::{
    self as kernel, CHUNK, Inputs, Kept, OpenChunk, Saved, State,
};

pub use kernel::{DeltaHeads, MAX_KEY_DIM};

/// `qkv [t, qkv_width]` in the compute type, as the convolution leaves it: queries and keys are
/// normalised here; `gates [t, 2 num_value_heads]` f32, see [`super::delta_gates`] →
/// `[t, out_width]`. Sequences are contiguous from row 0 on; rows after the last give zeros.
pub fn gated_delta_rule<'a>(
    tape: &mut Tape<'a>,
    qkv: Var,
    gates: Var,
    heads: &DeltaHeads,
    sequences: &'a [Sequence],
) -> Var {
    let ((t, width), heads, dtype) = (rows_cols(qkv.value().shape()), *heads, qkv.value().dtype());
    let requires_grad = qkv.requires_grad() || gates.requires_grad();
    let records = tape.is_recording() && requires_grad;
    let mut out = tape.activation(dtype, &[t, heads.out_width()]);
    let num_kept = kernel::num_kept_states(tape.device().target(), t);
    let mut kept = records.then(|| {
        let states = tape.activation(DType::F32, &[num_kept, heads.state_len()]);
        (tape.activation(dtype, &[t, heads.out_width()]), states)
    });
    let bytes = qkv.value().num_bytes() + (1 + usize::from(records)) * out.num_bytes();
    let cost = cost("gated_delta_rule", &heads, sequences, Pass::Forward, bytes);
    if let Some(on) = tape.device().begin(cost) {
        let kept = kept.as_mut().map(|(written, states)| Kept {
            written: written.view_mut(),
            states: states.view_mut(),
        });
        let inputs = inputs(&qkv, &gates);
        on.gated_delta_rule(inputs, &heads, sequences, (kept, None), out.view_mut());
    }
    let Some((written, states)) = kept else {
        return tape.push(out, requires_grad, |_, _| {});
    };
    tape.push(out, requires_grad, move |sweep, d_out| {
        let mut d_qkv = sweep.activation(dtype, &[t, width]);
        let mut d_gates = sweep.activation(DType::F32, &[t, 2 * heads.num_value_heads]);
        let len = kernel::workspace_len(sweep.device.target(), &heads, t);
        let mut workspace = sweep.workspace(DType::F32, &[len]);
        let bytes = 2 * d_qkv.num_bytes() + 2 * d_out.num_bytes() + 8 * len;
        let cost = self::cost("d_gated_delta_rule", &heads, sequences, Pass::Backward, bytes);
        if let Some(on) = sweep.device.begin(cost) {
            let saved = Saved { written: written.view(), states: states.view() };
            let (of, d) = ((inputs(&qkv, &gates), saved), (d_qkv.view_mut(), d_gates.view_mut()));
            let workspace = workspace.view_mut();
            on.gated_delta_rule_backward(of, &heads, sequences, d_out.view(), d, workspace);
        }
        drop((written, states, workspace, d_out));
        for (of, d) in [(qkv, d_qkv), (gates, d_gates)] {
            if of.requires_grad() {
                sweep.add(of.id(), d);
            }
        }
    })
}

/// States of sequences in the making, of one layer.
pub struct DeltaState {
    states: Tensor,
    keys: Tensor,
    written: Tensor,
    decays: Tensor,
}

impl DeltaState {
    /// For `num_slots` sequences.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn new(
        device: &Device,
        dtype: DType,
        heads: &DeltaHeads,
        num_slots: usize,
    ) -> Result<Self, DeviceError> {
        let rows = num_slots * kernel::open_rows(device.target());
        let zeros = |dtype, rows, width| device.persistent(Category::Cache, dtype, &[rows, width]);
        Ok(Self {
            states: zeros(DType::F32, num_slots, heads.state_len())?,
            keys: zeros(dtype, rows, heads.num_key_heads * heads.key_dim)?,
            written: zeros(dtype, rows, heads.out_width())?,
            decays: zeros(DType::F32, rows, heads.num_value_heads)?,
        })
    }

    /// Bytes for each sequence.
    pub fn bytes(target: Target, dtype: DType, heads: &DeltaHeads) -> usize {
        let rows = kernel::open_rows(target);
        let row = heads.num_key_heads * heads.key_dim + heads.out_width();
        let floats = heads.state_len() + rows * heads.num_value_heads;
        DType::F32.num_bytes(&[floats]) + dtype.num_bytes(&[rows, row])
    }

    /// Gives more sequences a slot; those that have one keep their state.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn grow(&mut self, device: &Device, num_slots: usize) -> Result<(), DeviceError> {
        let rows = num_slots * kernel::open_rows(device.target());
        for tensor in [&mut self.keys, &mut self.written, &mut self.decays] {
            grow(device, tensor, rows)?;
        }
        // Last, since their number says how many slots there are.
        grow(device, &mut self.states, num_slots)
    }

    /// Sequences that have a slot.
    pub fn num_slots(&self) -> usize {
        self.states.shape()[0]
    }
}

/// [`gated_delta_rule`] of sequences that go on: the first `k_len - q_len` rows of a sequence went
/// before and left their state in its slot. Gives the bits of the whole sequence at once. Inference
/// only.
///
/// # Panics
/// If the tape records, two sequences have one slot, or a slot does not exist.
pub fn gated_delta_rule_step(
    tape: &mut Tape<'_>,
    qkv: Var,
    gates: Var,
    heads: &DeltaHeads,
    (sequences, slots): (&[Sequence], &[u32]),
    state: &mut DeltaState,
) -> Var {
    assert!(!tape.is_recording(), "states that go on have no backward pass");
    assert!(slots.iter().all(|&slot| (slot as usize) < state.num_slots()));
    let (t, _) = rows_cols(qkv.value().shape());
    let mut out = tape.activation(qkv.value().dtype(), &[t, heads.out_width()]);
    let states = 2 * sequences.len() * DType::F32.num_bytes(&[heads.state_len()]);
    let bytes = qkv.value().num_bytes() + out.num_bytes() + states;
    let cost = cost("gated_delta_rule", heads, sequences, Pass::Forward, bytes);
    if let Some(on) = tape.device().begin(cost) {
        let DeltaState { states, keys, written, decays } = state;
        let open = OpenChunk {
            keys: keys.view_mut(),
            written: written.view_mut(),
            decays: decays.view_mut(),
        };
        let state = State { slots, states: states.view_mut(), open };
        let inputs = inputs(&qkv, &gates);
        on.gated_delta_rule(inputs, heads, sequences, (None, Some(state)), out.view_mut());
    }
    tape.push(out, false, |_, _| {})
}

/// Bytes of scratch memory that each thread keeps once it has run [`gated_delta_rule`].
pub fn delta_scratch_bytes_per_thread(heads: &DeltaHeads) -> usize {
    kernel::scratch_bytes(heads)
}

fn inputs<'v>(qkv: &'v Var, gates: &'v Var) -> Inputs<'v> {
    Inputs { qkv: qkv.value().view(), gates: gates.value().view() }
}

#[derive(Clone, Copy, PartialEq)]
enum Pass {
    Forward,
    Backward,
}

/// Products with the states that are not zero or no longer needed, and of pairs of a chunk's
/// tokens. The backward pass runs at attention's rate if all of these count, the forward pass if
/// only those that are needed do: measured on 1,024 tokens.
fn cost(
    name: &'static str,
    heads: &DeltaHeads,
    sequences: &[Sequence],
    pass: Pass,
    bytes: usize,
) -> Cost {
    let DeltaHeads { num_key_heads, num_value_heads, key_dim: dk, value_dim: dv } = *heads;
    let rows: usize = sequences.iter().map(|s| s.q_len).sum();
    let with_a_state = |s: &Sequence| s.k_len.saturating_sub(CHUNK).min(s.q_len);
    let rows_with_a_state: usize = sequences.iter().map(with_a_state).sum();
    let of_whole_chunks = |s: &Sequence| s.q_len.saturating_sub(1) / CHUNK * CHUNK;
    let rows_of_whole_chunks: usize = sequences.iter().map(of_whole_chunks).sum();
    // Products of a value head with the state before a row's chunk, with that after it, and, of
    // half a chunk's tokens, of a value head's and of a key head's.
    let (before, after, of_values, of_keys) = match pass {
        Pass::Forward => (2, 1, 2 * dv, 2 * dk),
        Pass::Backward => (4, 3, 4 * dv + 4 * dk, 2 * dk),
    };
    let with_states = (before * rows_with_a_state + after * rows_of_whole_chunks) * dk * dv;
    let of_pairs = rows * CHUNK / 2 * (num_value_heads * of_values + num_key_heads * of_keys);
    let padding = if pass == Pass::Backward { of_pairs } else { 0 };
    Cost::memory_bound(name, bytes)
        .with(Work::Attention, 2 * (num_value_heads * with_states + of_pairs))
        .with_padding(Work::Attention, 2 * padding)
}
