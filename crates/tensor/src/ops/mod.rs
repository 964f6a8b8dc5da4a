//! The coarse operations of a decoder: forward, backward, allocations and costs.
//!
//! One operation, one file. Each has a backward pass, except those that go on from a state, such as
//! [`attend_paged`], which serve generation only. The arithmetic is in `hone-kernels`; shapes,
//! memory and costs are here.

mod activation;
mod adapters;
mod attention;
mod combine;
mod delta_columns;
mod delta_gates;
mod embedding;
mod expert_scales;
mod experts;
mod gated_delta_rule;
mod gated_rms_norm;
mod glu;
mod head;
mod joined;
mod layer_norm;
mod linear;
mod offloaded;
mod output_gate;
mod quantisation;
mod rms_norm;
mod rope;
mod router;
mod scaled;
mod short_conv;

pub use activation::activation;
pub(crate) use adapters::RoundedAdapters;
pub use adapters::round_adapters;
pub use attention::{
    KvPages, PagedRows, attend_kept, attend_paged, attention, attention_over, attention_with_sinks,
};
pub use combine::combine;
pub use delta_columns::delta_columns;
pub use delta_gates::{DeltaGates, delta_gates};
pub use embedding::{add_embedding, embedding};
pub use expert_scales::scaled_by_expert;
pub use experts::{RowOrder, expert_linear};
pub use gated_delta_rule::{
    DeltaHeads, DeltaState, MAX_KEY_DIM, delta_scratch_bytes_per_thread, gated_delta_rule,
    gated_delta_rule_step,
};
pub use gated_rms_norm::gated_rms_norm;
pub use glu::glu;
pub use head::{OutputHead, log_probs, logits, take_rows};
pub use hone_kernels::attention::PAGE_ROWS;
pub use joined::joined;
pub use layer_norm::{LayerNorm, layer_norm};
pub use linear::{linear, linear_in_f32};
pub use offloaded::with_offloaded;
pub use output_gate::{gate_output, without_gates};
pub use rms_norm::{HeadNorms, add_rms_norm, norm_heads, rms_norm, rms_norm_in_f32};
pub use rope::{Angles, Rotated, rope};
pub use router::{RouterLoad, Routers, Routing, route};
pub use scaled::scaled;
pub use short_conv::{ConvState, ShortConv, short_conv, short_conv_step};

pub use hone_kernels::activation::Activation;
pub use hone_kernels::head::Logits;
pub use hone_kernels::math::Softcap;
pub use hone_kernels::rms_norm::RmsNorm;
pub use hone_kernels::router::{Groups, MAX_EXPERTS, MAX_TOP_K, Router, Scoring};
pub use hone_kernels::short_conv::MAX_WIDTH as MAX_CONV_WIDTH;

use crate::{Category, Cost, DType, Device, DeviceError, Storage, Tape, Tensor, Var};
use hone_kernels::gemm;
use hone_kernels::vector::Columns;

/// Bytes of scratch memory that each thread keeps once it has run these operations.
pub fn scratch_bytes_per_thread(heads: &crate::Heads, hidden_size: usize) -> usize {
    use hone_kernels::{attention, head};
    let attention = attention::scratch_bytes(heads);
    gemm::SCRATCH_BYTES.max(attention).max(head::scratch_bytes(hidden_size))
}

/// Scratch bytes for converting `weights` to `compute`: a GPU converts them for each product, the
/// CPU while it packs them.
fn converted_bytes<'a>(
    device: &Device,
    compute: DType,
    weights: impl IntoIterator<Item = &'a Tensor>,
) -> usize {
    let target = device.target();
    let bytes = |w: &Tensor| gemm::converted_bytes(target, w.storage(), compute, w.len());
    weights.into_iter().map(bytes).sum()
}

fn copy(device: &Device, x: &Tensor, y: &mut Tensor) {
    if let Some(on) = device.begin(Cost::memory_bound("copy", 2 * x.num_bytes())) {
        on.convert(x.view(), y.view_mut());
    }
}

/// Columns `first..first + count` of a matrix, such as one of several projections of one input. The
/// backward pass of an operation adds to these columns of the gradient.
#[derive(Clone)]
pub struct Part {
    /// The matrix.
    pub of: Var,
    /// First column.
    pub first: usize,
    /// Number of columns.
    pub count: usize,
}

impl Part {
    /// All columns.
    pub fn whole(of: Var) -> Self {
        let (_, count) = rows_cols(of.value().shape());
        Self { of, first: 0, count }
    }

    fn rows(&self) -> usize {
        rows_cols(self.of.value().shape()).0
    }

    fn columns(&self) -> Columns<'_> {
        let (_, width) = rows_cols(self.of.value().shape());
        Columns { x: self.of.value().view(), width, col: self.first }
    }
}

/// The residual stream `x [t, h]` f32 in the compute type, for a block that does not normalise its
/// input.
pub fn in_compute_type(tape: &mut Tape<'_>, x: &Var) -> Var {
    let dtype = tape.dtype();
    if x.value().dtype() == dtype {
        return x.clone();
    }
    let mut y = tape.activation(dtype, x.value().shape());
    convert(tape.device(), x.value(), &mut y);
    let (id, requires_grad) = (x.id(), x.requires_grad());
    tape.push(y, requires_grad, move |sweep, d_y| {
        let mut d_x = sweep.activation(DType::F32, d_y.shape());
        convert(sweep.device, &d_y, &mut d_x);
        drop(d_y);
        sweep.add(id, d_x);
    })
}

/// Gives persistent memory of sequences room for more rows, keeping the existing ones. Old and new
/// memory exist at the same time.
fn grow(device: &Device, tensor: &mut Tensor, rows: usize) -> Result<(), DeviceError> {
    let mut shape = tensor.shape().to_vec();
    shape[0] = rows;
    let mut larger = device.persistent(Category::Cache, tensor.dtype(), &shape)?;
    if let Some(on) = device.begin(Cost::memory_bound("grow", 2 * tensor.num_bytes())) {
        let kept = larger.view_mut().part(0, tensor.len());
        on.convert(tensor.view(), kept);
    }
    device.settle()?;
    *tensor = larger;
    Ok(())
}

fn convert(device: &Device, x: &Tensor, y: &mut Tensor) {
    if let Some(on) = device.begin(Cost::memory_bound("convert", x.num_bytes() + y.num_bytes())) {
        on.convert(x.view(), y.view_mut());
    }
}

/// `[rows, cols]` of a tensor.
fn rows_cols(shape: &[usize]) -> (usize, usize) {
    match *shape {
        [rows, cols] => (rows, cols),
        _ => panic!("expected a matrix, found shape {shape:?}"),
    }
}

/// Columns `col..col + n` of `x`, multiplied by the scales of the rows of `weight` and quantised to
/// int8: `[t, n]`.
fn quantised(
    device: &Device,
    x: &Tensor,
    (col, n): (usize, usize),
    weight: Option<&Tensor>,
) -> Tensor {
    let (t, width) = rows_cols(x.shape());
    let mut y = device.alloc(Category::Workspace, Storage::INT8, &[t, n]);
    let bytes = t * n * x.dtype().size() + y.num_bytes();
    if let Some(on) = device.begin(Cost::memory_bound("quantise", bytes)) {
        let factors = weight.map(|weight| weight.view().packed().int8().scales);
        on.quantise_rows(Columns { x: x.view(), width, col }, factors, y.int8_mut());
    }
    y
}
