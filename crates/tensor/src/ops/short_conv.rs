//! Short causal convolution with SiLU, over packed sequences and from where they stopped.

use super::{Part, grow};
use crate::{
    Category, Cost, DType, Device, DeviceError, Sequence, Tape, Tensor, Var, Weight, Work,
};
use hone_kernels::short_conv::{Gradients, Inputs, State};

/// Floating-point operations per element apart from the products, most of them for the exponential.
const FORWARD_FLOPS: usize = 22;
const BACKWARD_FLOPS: usize = 30;

/// The weights of a convolution, in f32.
#[derive(Clone, Copy)]
pub struct ShortConv<'a> {
    /// `[channels, width]` or, as in files, `[channels, 1, width]`, the present token's last; a
    /// width from 2 to 8.
    pub weight: &'a Weight,
    /// `[channels]`.
    pub bias: Option<&'a Weight>,
}

impl ShortConv<'_> {
    fn width(&self) -> usize {
        *self.weight.shape().last().expect("a row for each channel")
    }

    /// Shape of the last inputs of `num_slots` sequences.
    fn state_shape(&self, num_slots: usize) -> [usize; 3] {
        [num_slots, self.width() - 1, self.weight.shape()[0]]
    }
}

/// The channels `x [t, channels]` → `[t, channels]`. Sequences are rows of their own; rows of none
/// give zeros.
pub fn short_conv<'a>(
    tape: &mut Tape<'a>,
    x: Part,
    conv: ShortConv<'a>,
    sequences: &'a [Sequence],
) -> Var {
    let (t, channels) = (x.rows(), x.count);
    let y = forward(tape, &x, conv, sequences, None);
    let weights = [Some(conv.weight), conv.bias].map(|w| w.and_then(Weight::param));
    let requires_grad = x.of.requires_grad() || weights.iter().any(Option::is_some);
    tape.push(y, requires_grad, move |sweep, d_y| {
        let mut d_x = x.of.requires_grad().then(|| sweep.take_or_zeros(&x.of));
        let products = conv.width() * t * channels;
        let bytes = (3 + 2 * usize::from(d_x.is_some())) * d_y.num_bytes();
        let cost = Cost::memory_bound("d_short_conv", bytes)
            .with(Work::Elementwise, 6 * products + BACKWARD_FLOPS * t * channels);
        if let Some(on) = sweep.device.begin(cost) {
            let inputs = inputs(sweep.params, &x, conv);
            let [d_weight, d_bias] =
                sweep.gradients.each_mut(weights).map(|gradient| gradient.map(Tensor::view_mut));
            let d_x = d_x.as_mut().map(Tensor::view_mut);
            let gradients = Gradients { d_x, d_weight, d_bias };
            on.short_conv_backward(inputs, sequences, d_y.view(), gradients);
        }
        drop(d_y);
        if let Some(d_x) = d_x {
            sweep.add(x.of.id(), d_x);
        }
    })
}

/// The last inputs of sequences in the making, of one layer.
pub struct ConvState(Tensor);

impl ConvState {
    /// For `num_slots` sequences.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn new(
        device: &Device,
        dtype: DType,
        conv: ShortConv<'_>,
        num_slots: usize,
    ) -> Result<Self, DeviceError> {
        device.persistent(Category::Cache, dtype, &conv.state_shape(num_slots)).map(Self)
    }

    /// Gives more sequences a slot; those that have one keep their inputs.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn grow(&mut self, device: &Device, num_slots: usize) -> Result<(), DeviceError> {
        grow(device, &mut self.0, num_slots)
    }
}

/// [`short_conv`] of sequences that go on: the first `k_len - q_len` rows of a sequence went before
/// and left their last ones in its slot. Gives the bits of the whole sequence at once. Inference
/// only.
///
/// # Panics
/// If the tape records, or a slot does not exist.
pub fn short_conv_step<'a>(
    tape: &mut Tape<'a>,
    x: Part,
    conv: ShortConv<'a>,
    (sequences, slots): (&[Sequence], &[u32]),
    state: &mut ConvState,
) -> Var {
    assert!(!tape.is_recording(), "a convolution that goes on has no backward pass");
    assert!(slots.iter().all(|&slot| (slot as usize) < state.0.shape()[0]));
    let y = forward(tape, &x, conv, sequences, Some((slots, state)));
    tape.push(y, false, |_, _| {})
}

fn forward<'a>(
    tape: &Tape<'a>,
    x: &Part,
    conv: ShortConv<'a>,
    sequences: &[Sequence],
    state: Option<(&[u32], &mut ConvState)>,
) -> Tensor {
    let (t, channels) = (x.rows(), x.count);
    let mut y = tape.activation(x.of.value().dtype(), &[t, channels]);
    let width = conv.width();
    let cost = Cost::memory_bound("short_conv", 2 * y.num_bytes())
        .with(Work::Elementwise, (2 * width + FORWARD_FLOPS) * t * channels);
    if let Some(on) = tape.device().begin(cost) {
        let state = state.map(|(slots, state)| State { slots, values: state.0.view_mut() });
        on.short_conv(inputs(tape.params(), x, conv), sequences, state, y.view_mut());
    }
    y
}

fn inputs<'v>(params: &'v crate::Params, x: &'v Part, conv: ShortConv<'v>) -> Inputs<'v> {
    let bias = conv.bias.map(|bias| params.resolve(bias).view());
    let weight = params.resolve(conv.weight).view();
    Inputs { x: x.columns(), weight, bias, channels: x.count }
}
