//! Rotary position embedding.

use super::{copy, rows_cols};
use crate::{Category, Cost, DType, Device, Heads, Tape, Tensor, Var, View};
use hone_kernels::lock;
use hone_kernels::memory::bytes_of;
pub use hone_kernels::rope::Rotated;
use hone_kernels::rope::{Direction, Rotation, reads_host_angles};
use std::sync::{Arc, Mutex};

/// Angles of a batch: `cos` and `sin`, `[t, rotated.dim / 2]`, including any factor of the scaling
/// method.
#[derive(Clone, Debug)]
pub struct Angles {
    /// The dimensions of a head that they rotate.
    pub rotated: Rotated,
    /// Cosines.
    pub cos: Vec<f32>,
    /// Sines.
    pub sin: Vec<f32>,
    /// Copy of both on a GPU, made once for all layers, with the GPU's number of failures when it
    /// was made: a copy that failed is not used again. One block, which usually reuses the memory
    /// of the previous batch's.
    on_gpu: Arc<Mutex<Option<(u64, Tensor)>>>,
}

impl Angles {
    /// Cosines and sines of the same angles.
    pub fn new(rotated: Rotated, cos: Vec<f32>, sin: Vec<f32>) -> Self {
        assert_eq!(cos.len(), sin.len());
        Self { rotated, cos, sin, on_gpu: Arc::default() }
    }

    /// The copy on a GPU; `None` where kernels read host memory.
    fn on_gpu(&self, device: &Device) -> Option<Tensor> {
        if reads_host_angles(device.target()) || device.is_dry() {
            return None;
        }
        let (mut on_gpu, num_failures) = (lock(&self.on_gpu), device.num_failures());
        if let Some((_, both)) = on_gpu.as_ref().filter(|(before, _)| *before == num_failures) {
            return Some(both.clone());
        }
        let both = [&self.cos[..], &self.sin].concat();
        let both = Tensor::try_from_bytes(bytes_of(View::F32(&both)), DType::F32, &[both.len()])
            .and_then(|both| device.upload(Category::Activations, &both));
        let both = both.map_err(|error| device.fail(error)).ok()?;
        *on_gpu = Some((num_failures, both.clone()));
        Some(both)
    }
}

/// Rotates queries and keys of `qkv [t, qkv_width]` by `angles`, in place if nothing else shares
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
    let on_gpu = angles.on_gpu(device);
    if let Some(on) = device.begin(Cost::memory_bound("rope", 2 * x.num_bytes())) {
        let len = angles.cos.len();
        let (cos, sin) = match &on_gpu {
            None => (View::F32(&angles.cos), View::F32(&angles.sin)),
            Some(both) => (both.view().part(0, len), both.view().part(len, len)),
        };
        let (num_heads, head_dim) = (heads.num_heads + heads.num_kv_heads, heads.head_dim);
        let rotated = angles.rotated;
        let rotation = Rotation { num_heads, head_dim, rotated, cos, sin, direction };
        on.rotate(x.view_mut(), width, rotation);
    }
}
