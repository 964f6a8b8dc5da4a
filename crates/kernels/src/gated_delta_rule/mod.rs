//! The gated delta rule (Yang, Kautz & Hatamizadeh, 2024), the recurrence of linear attention: a
//! state `S [key_dim, value_dim]` for each value head and sequence, zero at its first token.
//!
//! `S_t = e^g S_{t-1} + k u`, `u = β (v - kᵀ e^g S_{t-1})`, `o_t = qᵀ S_t`, where queries and keys
//! are divided by their Euclidean norm, and queries by `√key_dim`. Value head `i` reads key head
//! `i / (num_value_heads / num_key_heads)`.
//!
//! The CPU takes [`CHUNK`] tokens at a time, counted from the sequence's first one, so that almost
//! everything is a product of matrices: with the decays `E` since the chunk began, `D` between two
//! tokens and `F` until it ends, `U = (I + L)⁻¹ β (V - E K S)`, `L = tril(β D ∘ K Kᵀ, -1)`, and
//! `O = E Q S + tril(D ∘ Q Kᵀ) U`, `S' = E S + Kᵀ F U`. A row of these needs the rows before it and
//! none after, so decoding, which keeps the state at the chunk's start and keys and `U` of its rows
//! so far, gives the bits of a pass over the whole sequence. On a GPU the forward pass is the
//! recurrence itself, with the state in registers; the backward pass takes chunks.
//!
//! The backward pass needs the state at the start of every chunk, which is as large as the chunk's
//! activations of four layers. The forward pass keeps `U`, with which a state follows from the one
//! before by one product, and on the CPU the state at every [`KEPT_CHUNKS`]-th chunk.

mod backward;
mod buffers;
mod chunk;
pub(crate) mod cuda;
mod forward;
#[cfg(any(test, feature = "reference"))]
pub mod reference;

pub use chunk::CHUNK;
pub use cuda::MAX_KEY_DIM;

use crate::attention::Sequence;
use crate::processor::{Processor, Target};
use crate::view::{View, ViewMut};

/// Added to the sum of squares of queries and keys.
const EPS: f32 = 1e-6;

/// Chunks between states that the forward pass keeps.
const KEPT_CHUNKS: usize = 8;

/// Number and size of heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaHeads {
    /// Heads of queries and keys.
    pub num_key_heads: usize,
    /// Heads of values, a multiple of `num_key_heads`.
    pub num_value_heads: usize,
    /// Dimensions of a query and of a key.
    pub key_dim: usize,
    /// Dimensions of a value.
    pub value_dim: usize,
}

impl DeltaHeads {
    /// Elements of a packed row: queries, keys, values.
    pub fn qkv_width(&self) -> usize {
        self.v_at() + self.out_width()
    }

    /// Elements of an output row.
    pub fn out_width(&self) -> usize {
        self.num_value_heads * self.value_dim
    }

    /// Value heads per key head.
    pub fn group(&self) -> usize {
        self.num_value_heads / self.num_key_heads
    }

    /// Elements of the states of a sequence.
    pub fn state_len(&self) -> usize {
        self.num_value_heads * self.key_dim * self.value_dim
    }

    /// Position of the first value in a packed row.
    fn v_at(&self) -> usize {
        2 * self.num_key_heads * self.key_dim
    }
}

/// Queries, keys, values and gates.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// `[t, qkv_width]`.
    pub qkv: View<'a>,
    /// `[t, 2 num_value_heads]` f32: `β` of all heads, then `g`, which is not positive.
    pub gates: View<'a>,
}

/// What the forward pass keeps for the backward pass.
pub struct Kept<'a> {
    /// `U [t, out_width]`, of the type of `qkv`.
    pub written: ViewMut<'a>,
    /// `[`[`num_kept_states`]`, state_len]` f32.
    pub states: ViewMut<'a>,
}

/// What the backward pass needs from the forward pass.
#[derive(Clone, Copy)]
pub struct Saved<'a> {
    /// As in [`Kept`].
    pub written: View<'a>,
    /// As in [`Kept`].
    pub states: View<'a>,
}

/// States of the sequences of a pass that go on.
pub struct State<'a> {
    /// Place of each sequence in what follows.
    pub slots: &'a [u32],
    /// `[num_slots, state_len]` f32: on the CPU at the start of the chunk.
    pub states: ViewMut<'a>,
    /// The rows of the chunk so far, of none on a GPU.
    pub open: OpenChunk<'a>,
}

/// Rows of chunks that are not complete.
pub struct OpenChunk<'a> {
    /// Normalised, `[num_slots, CHUNK, num_key_heads key_dim]`, of the type of `qkv`.
    pub keys: ViewMut<'a>,
    /// `U`, `[num_slots, CHUNK, out_width]`, of the type of `qkv`.
    pub written: ViewMut<'a>,
    /// `g`, `[num_slots, CHUNK, num_value_heads]` f32.
    pub decays: ViewMut<'a>,
}

/// Rows of an [`OpenChunk`].
pub fn open_rows(target: Target) -> usize {
    match target {
        Target::Cpu => CHUNK,
        Target::Cuda => 0,
    }
}

/// States that the forward pass keeps of `t` rows, however they are cut into sequences.
pub fn num_kept_states(target: Target, t: usize) -> usize {
    match target {
        Target::Cpu => t / (KEPT_CHUNKS * CHUNK),
        Target::Cuda => 0,
    }
}

/// States that are kept of a sequence: none at its start, and none at its end.
fn kept_of(len: usize) -> usize {
    len.saturating_sub(1) / (KEPT_CHUNKS * CHUNK)
}

/// Bytes of scratch memory that each thread keeps after its first pass.
pub fn scratch_bytes(heads: &DeltaHeads) -> usize {
    forward::scratch_bytes(heads).max(buffers::scratch_bytes(heads))
}

/// Checks that no two sequences share a slot, and that only those with a state went on before.
fn check_slots(sequences: &[Sequence], slots: Option<&[u32]>) {
    match slots {
        None => assert!(sequences.iter().all(|s| s.k_len == s.q_len), "earlier rows have a state"),
        Some(slots) => {
            let different: std::collections::HashSet<_> = slots.iter().collect();
            assert!(slots.len() == sequences.len() && different.len() == slots.len());
        }
    }
}

/// Elements (f32) of workspace for the backward pass over `t` rows.
pub fn workspace_len(target: Target, heads: &DeltaHeads, t: usize) -> usize {
    match target {
        Target::Cpu => 0,
        Target::Cuda => cuda::workspace_len(heads, t),
    }
}

impl Processor {
    /// `out [t, out_width]`, of the type of `qkv`; zero for rows of no sequence. With a state, the
    /// first `k_len - q_len` rows of a sequence went before.
    ///
    /// # Panics
    /// If rows of sequences are not contiguous from row 0 on, or two sequences have one slot.
    pub fn gated_delta_rule(
        &self,
        inputs: Inputs<'_>,
        heads: &DeltaHeads,
        sequences: &[Sequence],
        (kept, state): (Option<Kept<'_>>, Option<State<'_>>),
        out: ViewMut<'_>,
    ) {
        match self {
            Self::Cpu(cpu) => forward::forward(cpu, inputs, heads, sequences, (kept, state), out),
            Self::Cuda(gpu) => {
                cuda::forward(gpu, inputs, heads, sequences, (kept, state), out.cuda());
            }
        }
    }

    /// `d_qkv [t, qkv_width]` and `d_gates [t, 2 num_value_heads]` f32, both overwritten, for
    /// `d_out [t, out_width]`. `workspace` is f32: [`workspace_len`] elements.
    pub fn gated_delta_rule_backward(
        &self,
        (inputs, saved): (Inputs<'_>, Saved<'_>),
        heads: &DeltaHeads,
        sequences: &[Sequence],
        d_out: View<'_>,
        (d_qkv, d_gates): (ViewMut<'_>, ViewMut<'_>),
        workspace: ViewMut<'_>,
    ) {
        match self {
            Self::Cpu(cpu) => {
                let d = (d_qkv, d_gates.f32());
                backward::backward(cpu, (inputs, saved), heads, sequences, d_out, d);
            }
            Self::Cuda(gpu) => {
                let d = (d_qkv.cuda(), d_gates.cuda().f32());
                let (d_out, workspace) = (d_out.cuda(), workspace.cuda().f32());
                cuda::backward(gpu, (inputs, saved), heads, sequences, d_out, d, workspace);
            }
        }
    }
}
