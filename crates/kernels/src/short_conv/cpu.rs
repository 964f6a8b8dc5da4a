//! CPU kernels: forward by rows, backward by blocks of channels that walk along their rows once.

use super::{Gradients, Inputs, MAX_WIDTH, Row, State};
use crate::attention::Sequence;
use crate::cpu::{Cpu, Kernel, Split};
use crate::element::Element;
use crate::math::sigmoid;
use crate::view::{View, ViewMut};

/// Channels that are computed at a time, forward.
const BLOCK: usize = 64;

/// Channels of a task of the backward pass: each row of it is some cache lines.
const TASK: usize = 256;

/// See [`crate::Processor::short_conv`].
pub(super) fn forward(
    cpu: &Cpu,
    inputs: Inputs<'_>,
    sequences: &[Sequence],
    state: Option<State<'_>>,
    y: ViewMut<'_>,
) {
    let (slots, values) = state.map(|state| (state.slots, state.values)).unzip();
    match (inputs.x.x, y, values) {
        (View::F32(x), ViewMut::F32(y), None) => typed(cpu, inputs, x, sequences, None, y),
        (View::Bf16(x), ViewMut::Bf16(y), None) => typed(cpu, inputs, x, sequences, None, y),
        (View::F32(x), ViewMut::F32(y), Some(ViewMut::F32(values))) => {
            typed(cpu, inputs, x, sequences, slots.zip(Some(values)), y);
        }
        (View::Bf16(x), ViewMut::Bf16(y), Some(ViewMut::Bf16(values))) => {
            typed(cpu, inputs, x, sequences, slots.zip(Some(values)), y);
        }
        _ => panic!("inputs, outputs and states have the same element type"),
    }
}

fn typed<T: Element>(
    cpu: &Cpu,
    inputs: Inputs<'_>,
    x: &[T],
    sequences: &[Sequence],
    mut state: Option<(&[u32], &mut [T])>,
    y: &mut [T],
) {
    let (n, width) = (inputs.channels, inputs.width());
    let rows = Row::all(sequences, state.as_ref().map(|state| state.0), y.len() / n);
    let (weight, bias) = (columns_of(inputs.weight.f32(), width), inputs.bias.map(View::f32));
    let input = |t: usize| &x[t * inputs.x.width + inputs.x.col..][..n];
    let kept = state.as_ref().map_or(&[][..], |state| &*state.1);
    cpu.rows(y, n, (width + 2) * n, |t, y| {
        let Row { index, done, slot } = rows[t];
        if index == Row::NONE.index {
            return y.fill(T::from_f32(0.0));
        }
        let (mut taps, mut count) = ([(&[][..], &[][..]); MAX_WIDTH], 0);
        for lag in (0..width).rev() {
            let before = index as usize + done as usize;
            let row = match lag {
                lag if lag <= index as usize => input(t - lag),
                lag if lag <= before => {
                    let at = slot as usize * (width - 1) + (before - lag) % (width - 1);
                    &kept[at * n..][..n]
                }
                _ => continue,
            };
            taps[count] = (&weight[(width - 1 - lag) * n..][..n], row);
            count += 1;
        }
        cpu.isa.run(Forward { taps: &taps[..count], bias, y });
    });
    let Some((slots, kept)) = &mut state else { return };
    for (s, &slot) in sequences.iter().zip(*slots) {
        for index in s.q_len.saturating_sub(width - 1)..s.q_len {
            let place = (s.k_len - s.q_len + index) % (width - 1);
            let at = (slot as usize * (width - 1) + place) * n;
            kept[at..at + n].copy_from_slice(input(s.q_start + index));
        }
    }
}

/// `[channels, width]` → `[width, channels]`.
fn columns_of(weight: &[f32], width: usize) -> Vec<f32> {
    (0..width).flat_map(|j| weight.iter().skip(j).step_by(width).copied()).collect()
}

struct Forward<'a, T> {
    /// Weights and inputs of the tokens that there are, the present one last.
    taps: &'a [(&'a [f32], &'a [T])],
    bias: Option<&'a [f32]>,
    y: &'a mut [T],
}

impl<T: Element> Kernel for Forward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (block, y) in self.y.chunks_mut(BLOCK).enumerate() {
            let range = block * BLOCK..block * BLOCK + y.len();
            let mut sums = [0.0; BLOCK];
            if let Some(bias) = self.bias {
                sums[..y.len()].copy_from_slice(&bias[range.clone()]);
            }
            for (w, x) in self.taps {
                add_products(&mut sums, &w[range.clone()], &x[range.clone()]);
            }
            y.iter_mut().zip(sums).for_each(|(y, sum)| *y = T::from_f32(sum * sigmoid(sum)));
        }
    }
}

#[inline(always)]
fn add_products<T: Element>(sums: &mut [f32], w: &[f32], x: &[T]) {
    sums.iter_mut().zip(w.iter().zip(x)).for_each(|(sum, (w, x))| *sum += w * x.to_f32());
}

/// See [`crate::Processor::short_conv_backward`].
pub(super) fn backward(
    cpu: &Cpu,
    inputs: Inputs<'_>,
    sequences: &[Sequence],
    d_y: View<'_>,
    gradients: Gradients<'_>,
) {
    let Gradients { d_x, d_weight, d_bias } = gradients;
    let sums = (d_weight.map(ViewMut::f32), d_bias.map(ViewMut::f32));
    match (inputs.x.x, d_y, d_x) {
        (View::F32(x), View::F32(d_y), None) => {
            backward_typed(cpu, inputs, (x, d_y), sequences, None, sums);
        }
        (View::Bf16(x), View::Bf16(d_y), None) => {
            backward_typed(cpu, inputs, (x, d_y), sequences, None, sums);
        }
        (View::F32(x), View::F32(d_y), Some(ViewMut::F32(d_x))) => {
            backward_typed(cpu, inputs, (x, d_y), sequences, Some(d_x), sums);
        }
        (View::Bf16(x), View::Bf16(d_y), Some(ViewMut::Bf16(d_x))) => {
            backward_typed(cpu, inputs, (x, d_y), sequences, Some(d_x), sums);
        }
        _ => panic!("inputs and gradients have the same element type"),
    }
}

fn backward_typed<T: Element>(
    cpu: &Cpu,
    inputs: Inputs<'_>,
    (x, d_y): (&[T], &[T]),
    sequences: &[Sequence],
    d_x: Option<&mut [T]>,
    (d_weight, d_bias): (Option<&mut [f32]>, Option<&mut [f32]>),
) {
    let (n, width) = (inputs.channels, inputs.width());
    // Tasks write disjoint columns of these.
    let (d_x, d_weight) = (d_x.map(Split::new), d_weight.map(Split::new));
    let d_bias = d_bias.map(Split::new);
    let (weight, bias) = (inputs.weight.f32(), inputs.bias.map(View::f32));
    let trains = d_weight.is_some() || d_bias.is_some();
    cpu.pool.run(n.div_ceil(TASK), &|task| {
        let first = task * TASK;
        let count = TASK.min(n - first);
        let [weight_rows, d_weight_rows] = [[[0.0; TASK]; MAX_WIDTH]; 2];
        let mut own = Channels {
            weight: weight_rows,
            bias: [0.0; TASK],
            d_weight: d_weight_rows,
            d_bias: [0.0; TASK],
        };
        for c in 0..count {
            (0..width).for_each(|j| own.weight[j][c] = weight[(first + c) * width + j]);
            own.bias[c] = bias.map_or(0.0, |bias| bias[first + c]);
        }
        cpu.isa.run(Backward {
            inputs,
            first,
            count,
            x,
            d_y,
            sequences,
            d_x: &d_x,
            trains,
            own: &mut own,
        });
        if let Some(d_weight) = &d_weight {
            // SAFETY: these channels belong to this task.
            let d_weight = unsafe { d_weight.slice(first * width, count * width) };
            let sums = d_weight.iter_mut().enumerate();
            sums.for_each(|(i, sum)| *sum += own.d_weight[i % width][i / width]);
        }
        if let Some(d_bias) = &d_bias {
            // SAFETY: as above.
            let d_bias = unsafe { d_bias.slice(first, count) };
            d_bias.iter_mut().zip(own.d_bias).for_each(|(sum, d)| *sum += d);
        }
    });
}

/// Weights of a block of channels and their gradients, a row per tap.
struct Channels {
    weight: [Lane; MAX_WIDTH],
    bias: Lane,
    d_weight: [Lane; MAX_WIDTH],
    d_bias: Lane,
}

/// One number for each channel of a block.
type Lane = [f32; TASK];

struct Backward<'a, 's, T> {
    inputs: Inputs<'a>,
    /// First channel, and number of channels.
    first: usize,
    count: usize,
    x: &'a [T],
    d_y: &'a [T],
    sequences: &'a [Sequence],
    d_x: &'a Option<Split<'s, T>>,
    /// Whether gradients of the weights are wanted.
    trains: bool,
    own: &'a mut Channels,
}

impl<T: Element> Kernel for Backward<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { inputs, first, count, x, d_y, sequences, d_x, trains, own } = self;
        let width = inputs.width();
        // The last inputs, and gradients of the last sums before the activation.
        let [mut inputs_kept, mut d_kept] = [[[0.0; TASK]; MAX_WIDTH]; 2];
        let at = |t: usize| t * inputs.x.width + inputs.x.col + first;
        for s in sequences {
            let emit = |index: usize, d_kept: &[Lane; MAX_WIDTH], weight: &[Lane; MAX_WIDTH]| {
                let Some(d_x) = d_x else { return };
                let mut sums = [0.0; TASK];
                for lag in 0..width.min(s.q_len - index) {
                    let d = &d_kept[(index + lag) % MAX_WIDTH];
                    add_products(&mut sums, &weight[width - 1 - lag], d);
                }
                // SAFETY: these channels belong to this task.
                let d_x = unsafe { d_x.slice(at(s.q_start + index), count) };
                d_x.iter_mut().zip(sums).for_each(|(d, sum)| *d = T::from_f32(d.to_f32() + sum));
            };
            for index in 0..s.q_len {
                let t = s.q_start + index;
                let x = &x[at(t)..][..count];
                let kept = &mut inputs_kept[index % MAX_WIDTH];
                kept.iter_mut().zip(x).for_each(|(kept, x)| *kept = x.to_f32());
                let mut sum = own.bias;
                for lag in (0..width.min(index + 1)).rev() {
                    let x = &inputs_kept[(index - lag) % MAX_WIDTH];
                    add_products(&mut sum, &own.weight[width - 1 - lag], x);
                }
                let d = &mut d_kept[index % MAX_WIDTH];
                let d_y = &d_y[t * inputs.channels + first..][..count];
                for ((d, d_y), sum) in d.iter_mut().zip(d_y).zip(sum.iter()) {
                    let s = sigmoid(*sum);
                    *d = d_y.to_f32() * s * (1.0 + sum * (1.0 - s));
                }
                if trains {
                    own.d_bias.iter_mut().zip(d.iter()).for_each(|(sum, d)| *sum += d);
                }
                for lag in 0..if trains { width.min(index + 1) } else { 0 } {
                    let x = &inputs_kept[(index - lag) % MAX_WIDTH];
                    add_products(&mut own.d_weight[width - 1 - lag], d, x);
                }
                if index + 1 >= width {
                    emit(index + 1 - width, &d_kept, &own.weight);
                }
            }
            for index in (s.q_len + 1).saturating_sub(width)..s.q_len {
                emit(index, &d_kept, &own.weight);
            }
        }
    }
}
