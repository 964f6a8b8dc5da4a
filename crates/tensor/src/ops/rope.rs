//! Rotary position embedding.

use super::{copy, rows_cols};
use crate::{Category, Cost, DType, Device, Heads, Tape, Tensor, Var, View};
use hone_kernels::lock;
use hone_kernels::memory::bytes_of;
pub use hone_kernels::rope::Rotated;
use hone_kernels::rope::{Direction, Rotation, reads_host_angles};
use std::ops::Range;
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
    /// Those of queries, where they are others than those of keys: a factor of their own.
    queries: Option<Box<Angles>>,
    /// Copy of both on a GPU, made once for all layers, with the GPU's number of failures when it
    /// was made: a copy that failed is not used again. One block, which usually reuses the memory
    /// of the previous batch's.
    on_gpu: Arc<Mutex<Option<(u64, Tensor)>>>,
}

impl Angles {
    /// Cosines and sines of the same angles.
    pub fn new(rotated: Rotated, cos: Vec<f32>, sin: Vec<f32>) -> Self {
        assert_eq!(cos.len(), sin.len());
        Self { rotated, cos, sin, queries: None, on_gpu: Arc::default() }
    }

    /// These for keys, and for queries those times the `factor` of each token, by which all of a
    /// query is multiplied: all dimensions are rotated.
    #[must_use]
    pub fn with_query_factors(mut self, factors: &[f32]) -> Self {
        let half = self.rotated.dim / 2;
        let times = |of: &[f32]| -> Vec<f32> {
            of.chunks_exact(half)
                .zip(factors)
                .flat_map(|(of, f)| of.iter().map(move |x| x * f))
                .collect()
        };
        self.queries = Some(Box::new(Self::new(self.rotated, times(&self.cos), times(&self.sin))));
        self
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
    let Heads { num_heads, num_kv_heads, head_dim, .. } = *heads;
    let all = num_heads + num_kv_heads;
    match &angles.queries {
        None => rotate_heads(device, x, (0..all, head_dim), angles, direction),
        Some(queries) => {
            rotate_heads(device, x, (0..num_heads, head_dim), queries, direction);
            rotate_heads(device, x, (num_heads..all, head_dim), angles, direction);
        }
    }
}

fn rotate_heads(
    device: &Device,
    x: &mut Tensor,
    (of, head_dim): (Range<usize>, usize),
    angles: &Angles,
    direction: Direction,
) {
    let (t, width) = rows_cols(x.shape());
    let on_gpu = angles.on_gpu(device);
    let bytes = 2 * t * of.len() * head_dim * x.dtype().size();
    if let Some(on) = device.begin(Cost::memory_bound("rope", bytes)) {
        let len = angles.cos.len();
        let (cos, sin) = match &on_gpu {
            None => (View::F32(&angles.cos), View::F32(&angles.sin)),
            Some(both) => (both.view().part(0, len), both.view().part(len, len)),
        };
        let (first_head, num_heads, rotated) = (of.start, of.len(), angles.rotated);
        let rotation = Rotation { first_head, num_heads, head_dim, rotated, cos, sin, direction };
        on.rotate(x.view_mut(), width, rotation);
    }
}
