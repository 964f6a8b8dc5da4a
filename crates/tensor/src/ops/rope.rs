//! Rotary position embedding.

use super::{copy, rows_cols};
use crate::{Category, Cost, Device, Heads, Tape, Tensor, Var, View};
use hone_kernels::rope::{Direction, reads_host_angles};
use std::sync::OnceLock;

/// Angles of a batch: `cos` and `sin`, `[t, head_dim / 2]`, times whatever the scaling method
/// multiplies them by.
#[derive(Clone, Debug, Default)]
pub struct Angles {
    /// Cosines.
    pub cos: Vec<f32>,
    /// Sines.
    pub sin: Vec<f32>,
    /// Both in the memory of the GPU that first asked for them: every layer does. One block, which
    /// is where that of the batch before was.
    on_gpu: OnceLock<Tensor>,
}

impl Angles {
    /// Cosines and sines of as many angles.
    pub fn new(cos: Vec<f32>, sin: Vec<f32>) -> Self {
        assert_eq!(cos.len(), sin.len());
        Self { cos, sin, on_gpu: OnceLock::new() }
    }

    /// Both where `device` reads them.
    fn views(&self, device: &Device) -> (View<'_>, View<'_>) {
        if reads_host_angles(device.target()) {
            return (View::F32(&self.cos), View::F32(&self.sin));
        }
        let both = self.on_gpu.get_or_init(|| {
            let both = [&self.cos[..], &self.sin].concat();
            device.hold(Category::Activations, &Tensor::from_f32(&both, &[both.len()]))
        });
        let len = self.cos.len();
        (both.view().part(0, len), both.view().part(len, len))
    }
}

/// Rotates queries and keys of `qkv [t, qkv_width]` by `angles`, in place where nothing else holds
/// the memory.
pub fn rope<'a>(tape: &mut Tape<'a>, qkv: Var, heads: &Heads, angles: &'a Angles) -> Var {
    let (requires_grad, input, heads) = (qkv.requires_grad(), qkv.id(), *heads);
    let mut y = qkv.into_value();
    if !y.is_unique() {
        let shared = y;
        y = tape.activation(shared.dtype(), shared.shape());
        copy(tape.device(), &shared, &mut y);
    }
    rotate(tape.device(), &mut y, &heads, angles, Direction::Forward);
    tape.push(y, requires_grad, move |sweep, mut d_y| {
        rotate(sweep.device, &mut d_y, &heads, angles, Direction::Backward);
        sweep.add(input, d_y);
    })
}

fn rotate(device: &Device, x: &mut Tensor, heads: &Heads, angles: &Angles, direction: Direction) {
    let (_, width) = rows_cols(x.shape());
    if let Some(on) = device.begin(Cost::memory("rope", 2 * x.num_bytes())) {
        let turning = (heads.num_heads + heads.num_kv_heads, heads.head_dim);
        on.rotate(x.view_mut(), width, turning, angles.views(device), direction);
    }
}
