//! Short causal convolution of each channel by itself, as linear attention has before its heads:
//! `y_t = silu(b + Σ_j w_j · x_{t - (width - 1) + j})`, over the tokens of one sequence only.
//!
//! Decoding keeps the last `width - 1` inputs of a sequence in a ring, so that a step adds the same
//! products in the same order as a pass over the whole sequence.

mod cpu;
pub(crate) mod cuda;
#[cfg(any(test, feature = "reference"))]
pub mod reference;

use crate::attention::Sequence;
use crate::processor::Processor;
use crate::vector::Columns;
use crate::view::{View, ViewMut};

/// Largest width of a convolution.
pub const MAX_WIDTH: usize = 8;

/// What is convolved, and with what.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// The channels, columns of a matrix with `t` rows.
    pub x: Columns<'a>,
    /// `[channels, width]` f32, the present token's last.
    pub weight: View<'a>,
    /// `[channels]` f32.
    pub bias: Option<View<'a>>,
    /// Number of channels.
    pub channels: usize,
}

impl Inputs<'_> {
    fn width(&self) -> usize {
        let width = self.weight.len() / self.channels;
        assert!((2..=MAX_WIDTH).contains(&width) && self.weight.len() == self.channels * width);
        assert!(self.bias.is_none_or(|bias| bias.len() == self.channels));
        width
    }
}

/// Earlier inputs of the sequences of a pass.
pub struct State<'a> {
    /// Place of each sequence in `values`.
    pub slots: &'a [u32],
    /// `[num_slots, width - 1, channels]`, of the type of the inputs: input `p` of a sequence is at
    /// `p % (width - 1)`.
    pub values: ViewMut<'a>,
}

/// Gradients to add to; what is `None` is not computed.
pub struct Gradients<'a> {
    /// The columns of the input's gradient, of the input's type, and laid out as the input.
    pub d_x: Option<ViewMut<'a>>,
    /// `[channels, width]` f32.
    pub d_weight: Option<ViewMut<'a>>,
    /// `[channels]` f32.
    pub d_bias: Option<ViewMut<'a>>,
}

/// Where a row is in its sequence.
#[derive(Clone, Copy)]
struct Row {
    /// Number of the sequence's rows before it in this pass.
    index: u32,
    /// Number of the sequence's rows in earlier passes.
    done: u32,
    slot: u32,
}

impl Row {
    /// A row of no sequence.
    const NONE: Self = Self { index: u32::MAX, done: 0, slot: 0 };

    /// All rows of a pass; rows of a sequence beyond its queries went before.
    fn all(sequences: &[Sequence], slots: Option<&[u32]>, t: usize) -> Vec<Self> {
        let mut rows = vec![Self::NONE; t];
        assert!(slots.is_none_or(|slots| slots.len() == sequences.len()));
        for (i, s) in sequences.iter().enumerate() {
            let done = (s.k_len - s.q_len) as u32;
            assert!(slots.is_some() || done == 0, "earlier rows are in a state");
            let slot = slots.map_or(0, |slots| slots[i]);
            for (index, row) in rows[s.q_start..s.q_start + s.q_len].iter_mut().enumerate() {
                *row = Self { index: index as u32, done, slot };
            }
        }
        rows
    }
}

impl Processor {
    /// `y [t, channels]`, of the input's type; zero for rows of no sequence. With a state, the
    /// `k_len - q_len` first rows of a sequence are taken from there, and its last rows are kept.
    pub fn short_conv(
        &self,
        inputs: Inputs<'_>,
        sequences: &[Sequence],
        state: Option<State<'_>>,
        y: ViewMut<'_>,
    ) {
        match self {
            Self::Cpu(cpu) => cpu::forward(cpu, inputs, sequences, state, y),
            Self::Cuda(gpu) => cuda::forward(gpu, inputs, sequences, state, y.cuda()),
        }
    }

    /// Adds to the gradients for `d_y [t, channels]`, of the input's type.
    pub fn short_conv_backward(
        &self,
        inputs: Inputs<'_>,
        sequences: &[Sequence],
        d_y: View<'_>,
        gradients: Gradients<'_>,
    ) {
        match self {
            Self::Cpu(cpu) => cpu::backward(cpu, inputs, sequences, d_y, gradients),
            Self::Cuda(gpu) => cuda::backward(gpu, inputs, sequences, d_y.cuda(), gradients),
        }
    }
}
